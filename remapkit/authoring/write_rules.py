"""The parts of a rule file that `new`, `learn` and `invert` share: head, patterns, rules, tables, tests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import escape_line
from remapkit.patterns.literals import literal_text
from remapkit.rulefile.schema.text import SCHEMA_FILE
from remapkit.rulefile.yaml.emit import emit_entry, emit_flow, emit_scalar, quote_text
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class PatternText:
    """A pattern to write: `path:` or `match:`, with guards on its captures and its leaf.

    A guard is a list of words, or a range such as `0..47` as one text.
    """

    text: str
    surface: str = "path"
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    leaf: Sequence[str] | None = None

    def entries(self) -> Iterator[str]:
        """Yield the entries of a mapping, one per line.

        >>> list(PatternText("a.{b}", where={"b": ("u", "v")}).entries())
        ["path: 'a.{b}'", 'where: {b: [u, v]}']
        """
        yield f"{self.surface}: {quote_text(self.text)}"
        if self.where:
            guards = {
                name: words if isinstance(words, str) else [*map(literal_text, words)]
                for name, words in self.where.items()
            }
            yield f"where: {emit_flow(guards)}"
        if self.leaf is not None:
            yield f"leaf: {emit_flow([*map(literal_text, self.leaf)])}"

    def inline(self, *others: str) -> str:
        """Return the pattern as an item of a list: a plain string for a path without guards and `others`.

        >>> print(PatternText("a.{b}").inline(), PatternText("a|b", "match").inline("ops: [transpose]"))
        'a.{b}' {match: 'a|b', ops: [transpose]}
        """
        entries = [*self.entries(), *others]
        return quote_text(self.text) if len(entries) == 1 and self.surface == "path" else f"{{{', '.join(entries)}}}"


def write_rule(id: str, pattern: PatternText, to: str) -> Iterator[str]:
    """Yield the lines of a rule without operations, not indented: for `rules:` or for a comment."""
    yield f"- id: {emit_scalar(id)}"
    yield from (f"  {entry}" for entry in pattern.entries())
    yield f"  to: {quote_text(to)}"


def write_table(name: str, entries: Iterable[tuple[str, str]], *, lossy: bool) -> str:
    """Return a line under `tables:`.

    >>> write_table("slot", [("norm1", "residual.0")], lossy=False)
    '  slot: {norm1: residual.0}'
    """
    table = {literal_text(key): literal_text(value) for key, value in entries}
    return emit_entry(name, {"lossy": True, "entries": table} if lossy else table)


def write_test(source: str, targets: Sequence[str]) -> list[str]:
    """Return the lines of a test: a key, and its target key or keys."""
    return emit_entry(source, targets[0] if len(targets) == 1 else list(targets)).split("\n")


# ------------------------------------------------------------------------------------------------ the head


def check_name_and_source(name: str, source: StateDictSpec) -> None:
    """Raise `UsageError` for an invalid pack name (RK623), and for a header without tensors (RK624)."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        help = ("use letters, digits, _, - and .; the first character must not be - or .",)
        raise UsageError(Diagnostic("RK623", f"{name!r} is not a valid pack name", help=help))
    if not source:
        help = ("pass a checkpoint or a manifest that has tensors: their keys are where a rule file starts",)
        raise UsageError(Diagnostic("RK624", f"{source.name} holds no tensors", help=help))


def write_head(
    name: str,
    source: StateDictSpec,
    source_ref: str | None,
    target: StateDictSpec | None,
    target_ref: str | None,
    *,
    takes_all: bool = True,
    reaches_all: bool = True,
    target_args: Mapping[str, object] | None = None,
    target_config: str | None = None,
) -> Iterator[str]:
    """Yield the lines before the rules. A manifest that the rules do not cover yet is only declared in a comment.

    `target_args` and `target_config` are the arguments and the config of a model that `target_ref` names.
    """
    model = target_ref if target_ref is not None and not target_ref.endswith(".json") else None
    arrow = f" -> {escape_line(model or Path(target.name).name)}" if target is not None else ""
    yield f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}"
    yield "remapkit: 1"
    yield f"name: {emit_scalar(name)}"
    yield f"summary: {emit_scalar(f'{escape_line(Path(source.name).name)}{arrow}')}"
    yield ""
    if source_ref is not None:
        if not takes_all:
            yield "# Some of these keys have no rule. Once all have one, uncomment this: `remapkit test` tries all."
        yield f"{'' if takes_all else '# '}source: {{keys: {emit_scalar(source_ref)}}}"
    else:
        yield "# With a manifest (`remapkit inspect CKPT --manifest keys.json`), `remapkit test` tries every key:"
        yield "# source: {keys: keys.json}"
    if target_ref is not None:
        kind = "keys" if target_ref.endswith(".json") else "model"
        if not reaches_all:
            yield "# No rule produces some of these keys yet. Once rules produce all of them, uncomment this."
        written = {kind: target_ref, "args": dict(target_args or {}), "config": target_config}
        declared = emit_flow({name: value for name, value in written.items() if value})
        yield f"{'' if reaches_all else '# '}target: {declared}"
    else:
        yield '# target: {model: "plugin.module:Class"}'
    yield ""
