"""Find names in a file's `__metadata__` that become stale because the rules rename or drop those keys."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.plans.moves import Move
from remapkit.tensors.spec import StateDictSpec

SUFFIXES = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "exclude_modules", "ignore")
"""Fields that refer to modules by the end of their path."""

DEEPEST = 32


def report_stale_names(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    """Return a warning for each metadata entry that contains renamed or dropped names.

    >>> from remapkit.plans.moves import Move, RuleRef
    >>> from remapkit.tensors.spec import TensorSpec
    >>> spec, quoted = TensorSpec("F32", (1,)), {"_quantization_metadata": '{"layers": {"a": {}}}'}
    >>> header = StateDictSpec({"a.weight": spec}, metadata=quoted)
    >>> report_stale_names(header, [Move("b.weight", ("a.weight",), (), RuleRef("r"), spec)])[0].values["names"]
    ['a']
    """
    entries = {name: _parse_json(text) for name, text in source.metadata.items() if text[:1] in ("{", "[")}
    quoted = {name: list(dict.fromkeys(_list_texts(value, False, 0))) for name, value in entries.items()}
    if not any(quoted.values()):
        return []
    asked = {each for names in quoted.values() for each in names}
    before, after = _find_existing(asked, source), _find_existing(asked, (move.target for move in moves))
    found = []
    for entry, names in quoted.items():
        gone = [name for name, end in names if (name, end) in before and (name, end) not in after]
        if gone:
            found.append(_report_stale_entry(entry, list(dict.fromkeys(gone)), source))
    return found


def _parse_json(text: str) -> Any:
    """Return the value of a JSON text, or None if it is not JSON: a metadata entry may be any text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _list_texts(value: Any, end: bool, depth: int) -> Iterator[tuple[str, bool]]:
    """Yield every text in a value, keys included, and whether it may be only the end of a name."""
    if isinstance(value, str):
        yield value, end
    elif isinstance(value, dict) and depth < DEEPEST:
        for key, each in value.items():
            yield key, end
            yield from _list_texts(each, end or key.rpartition(".")[2] in SUFFIXES, depth + 1)
    elif isinstance(value, list) and depth < DEEPEST:
        for each in value:
            yield from _list_texts(each, end, depth + 1)


def _find_existing(asked: Collection[tuple[str, bool]], fqns: Iterable[str]) -> set[tuple[str, bool]]:
    """Return the quoted names that are keys, modules of these keys, or the ends of such paths.

    The cost is bounded: a key of a thousand segments has half a million runs of segments, so only those as long as a
    quoted name are looked up, and keys of more than `DEEPEST` segments, which no model has, are skipped.
    """
    whole = {name for name, end in asked if not end}
    ends = {name for name, end in asked if end}
    lengths = sorted({name.count(".") + 1 for name in ends})
    found: set[tuple[str, bool]] = set()
    seen: set[str] = set()
    for fqn in fqns:
        path = fqn if fqn.count(".") < DEEPEST else ""
        while path and path not in seen:
            seen.add(path)
            if path in whole:
                found.add((path, False))
            for length in lengths:
                tail = path.rsplit(".", length)
                name = ".".join(tail[-length:]) if len(tail) >= length else ""
                if name in ends:
                    found.add((name, True))
            path = path.rpartition(".")[0]
    return found


def _report_stale_entry(entry: str, names: list[str], source: StateDictSpec) -> Diagnostic:
    count = count_noun(len(names), "name")
    title = f"the metadata entry `{entry}` contains {count} that the rules change; it is copied unchanged"
    help = "correct the entry in the written file; programs that read it would look for the old names"
    return Diagnostic(
        "RK369",
        title,
        notes=(list_names(names),),
        help=(help,),
        severity=Severity.WARNING,
        place=source.name,
        values={"entry": entry, "names": names},
    )
