"""Names of keys and modules that a file's `__metadata__` quotes, and that would stay as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from remapkit.diagnostic import Diagnostic, Severity, counted
from remapkit.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.plan import Move

SUFFIXES = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "exclude_modules", "ignore")
"""Fields that name modules by the end of their path."""

DEEPEST = 32
SHOWN = 5


def stale_names(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    """A warning for each entry of the metadata that quotes names which are renamed or dropped.

    >>> from remapkit.plan import Move, RuleRef
    >>> from remapkit.spec import TensorSpec
    >>> spec, quoted = TensorSpec("F32", (1,)), {"_quantization_metadata": '{"layers": {"a": {}}}'}
    >>> header = StateDictSpec({"a.weight": spec}, metadata=quoted)
    >>> stale_names(header, [Move("b.weight", ("a.weight",), (), RuleRef("r"), spec)])[0].values["names"]
    ['a']
    """
    entries = {name: _json(text) for name, text in source.metadata.items() if text[:1] in ("{", "[")}
    quoted = {name: list(dict.fromkeys(_names(value, False, 0))) for name, value in entries.items()}
    if not any(quoted.values()):
        return []
    before, after = _modules(source), _modules(move.target for move in moves)
    found = []
    for entry, names in quoted.items():
        gone = [name for name, end in names if _is_there(name, end, before) and not _is_there(name, end, after)]
        if gone:
            found.append(_stale(entry, list(dict.fromkeys(gone)), source))
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _names(value: Any, end: bool, depth: int) -> Iterator[tuple[str, bool]]:
    """Every text in a value, keys included, and whether it may be only the end of a name."""
    if isinstance(value, str):
        yield value, end
    elif isinstance(value, dict) and depth < DEEPEST:
        for key, each in value.items():
            yield key, end
            yield from _names(each, end or key.rpartition(".")[2] in SUFFIXES, depth + 1)
    elif isinstance(value, list) and depth < DEEPEST:
        for each in value:
            yield from _names(each, end, depth + 1)


def _modules(fqns: Any) -> tuple[set[str], set[str]]:
    """Every key and module of some keys; and the ends of the modules' paths."""
    whole: set[str] = set()
    for fqn in fqns:
        while fqn and fqn not in whole:
            whole.add(fqn)
            fqn = fqn.rpartition(".")[0]
    ends: set[str] = set()
    for fqn in whole:
        steps = fqn.split(".")
        ends.update(".".join(steps[at:]) for at in range(len(steps)))
    return whole, ends


def _is_there(name: str, end: bool, modules: tuple[set[str], set[str]]) -> bool:
    return name in modules[1 if end else 0]


def _stale(entry: str, names: list[str], source: StateDictSpec) -> Diagnostic:
    title = f"the metadata `{entry}` quotes {counted(len(names), 'name')} that the rules change: it stays as it was"
    lines = names[:SHOWN] + [f"... and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
    help = "correct the entry in the written file, or whoever reads it looks for names that are gone"
    return Diagnostic(
        "RK369",
        title,
        notes=("\n".join(lines),),
        help=(help,),
        severity=Severity.WARNING,
        place=source.name,
        values={"entry": entry, "names": names},
    )
