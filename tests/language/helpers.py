"""Rule files made by hand: the language's tests do not depend on YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.diagnostics.source import Source, Text
from remapkit.rulefile.syntax import (
    RuleFile,
    WrittenEntry,
    WrittenGuard,
    WrittenPattern,
    WrittenRule,
    WrittenTable,
    WrittenTest,
)

Where = Mapping[str, Sequence[str] | str]


def pattern(
    *,
    match: str | None = None,
    path: str | None = None,
    where: Where | None = None,
    leaf: Sequence[str] | None = None,
) -> WrittenPattern:
    value = match if match is not None else path
    assert value is not None
    text = Text.of(value, "pattern")
    guards = tuple(
        WrittenGuard(Text.of(name), None, Text.of(values))
        if isinstance(values, str)
        else WrittenGuard(Text.of(name), tuple(map(Text.of, values)), None)
        for name, values in (where or {}).items()
    )
    leaves = None if leaf is None else tuple(map(Text.of, leaf))
    return WrittenPattern("match" if match is not None else "path", text, text.span, guards, leaves)


def rule(id: str, to: str, *, forget: Sequence[str] = (), **parts: Any) -> WrittenRule:
    written = pattern(**parts)
    return WrittenRule(Text.of(id), written, Text.of(to, "to"), written.span, tuple(map(Text.of, forget)))


def table(name: str, entries: Mapping[str, str], *, lossy: bool = False) -> WrittenTable:
    rows = []
    for key, value in entries.items():
        source = Source("table", f"{key}: {value}")
        rows.append(
            WrittenEntry(
                Text(key, source.whole()),
                Text(value, source.whole(), tuple(range(len(key) + 2, len(source.text) + 1))),
            )
        )
    return WrittenTable(Text.of(name), tuple(rows), lossy)


def rule_file(
    *rules: WrittenRule,
    keep: Sequence[WrittenPattern] = (),
    drop: Sequence[WrittenPattern] = (),
    tables: Mapping[str, Mapping[str, str]] | Sequence[WrittenTable] = (),
    unmatched: str = "error",
    domain: Sequence[WrittenPattern] = (),
    tests: Mapping[str, str | None] | None = None,
) -> RuleFile:
    written = [table(name, entries) for name, entries in tables.items()] if isinstance(tables, Mapping) else tables
    return RuleFile(
        source=Source("rules.yaml", ""),
        path=None,
        name=Text.of("t"),
        summary=None,
        digest="sha256:0",
        rules=tuple(rules),
        keep=tuple(keep),
        drop=tuple(drop),
        tables=tuple(written),
        unmatched=unmatched,  # type: ignore[arg-type]
        unmatched_span=None,
        tests=tuple(WrittenTest(Text.of(s), None if t is None else Text.of(t)) for s, t in (tests or {}).items()),
        source_keys=None,
        source_domain=tuple(domain),
        target=None,
    )


def rules(*written: WrittenRule, **rest: Any) -> RuleSet:
    return compile_rules(rule_file(*written, **rest))
