"""Divides the targets of a plan among several outputs: each takes the keys that begin with its prefix, without it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from remapkit.diagnostics.arguments import describe_value
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import BadArgument, UnwritableOutput, UsageError
from remapkit.diagnostics.wording import count_noun, escape_line, join_words, list_names, show_key
from remapkit.formats.name_map import NameMap
from remapkit.formats.quoted_names import rewrite_entries
from remapkit.plans.model import ResolvedPlan, collect_records
from remapkit.plans.moves import Move
from remapkit.plans.stale_metadata import CODES, report_metadata, rewrite_metadata
from remapkit.sources.mounts import Mount, NumberedText, is_mount, parse_mount
from remapkit.tensors.spec import StateDictSpec

OutputsLike = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
"""A file, a mount `PREFIX=FILE`, several of these, or a mapping from prefixes to files."""


@dataclass(frozen=True, slots=True)
class Output:
    """One checkpoint to write: its path, and its moves, with `prefix` taken off their targets.

    `tied` are groups of targets that share one storage, under the names in the file.
    """

    path: Path
    moves: tuple[Move, ...]
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    tied: Sequence[Sequence[str]] = ()


def read_outputs(given: OutputsLike) -> tuple[Mount, ...]:
    """Return the outputs that a caller names; a plain file is a mount with an empty prefix.

    Raises `UsageError`: RK426 for a mount that is malformed, RK609 for anything else.

    >>> [str(mount) for mount in read_outputs(["vae.=out/vae.safetensors", "rest.pth"])]
    ['vae.=out/vae.safetensors', '=rest.pth']
    """
    if isinstance(given, Mapping):
        mounts = [_read_pair(prefix, path) for prefix, path in given.items()]
    else:
        mounts = [_read_output(each) for each in ([given] if isinstance(given, str | Path) else given)]
    if not mounts:
        raise UsageError(Diagnostic("RK609", "no output is named", help=("name a file, or leave out `output`",)))
    seen: dict[str, Mount] = {}
    for mount in mounts:
        other = seen.setdefault(str(mount.prefix), mount)
        if other is not mount:
            keys = f"the keys that begin with {str(mount.prefix)!r}" if str(mount.prefix) else "all other keys"
            title = f"two outputs take {keys}: {other.file} and {mount.file}"
            help = ("give each output a prefix of its own: -o PREFIX=FILE",)
            raise UsageError(Diagnostic("RK609", escape_line(title), help=help))
    return tuple(mounts)


def _read_pair(prefix: str, path: str | Path) -> Mount:
    if not isinstance(prefix, str) or not isinstance(path, str | Path):
        title = f"`output` must map prefixes to paths, got {describe_value(prefix)}: {describe_value(path)}"
        raise BadArgument(Diagnostic("RK609", title))
    return parse_mount(f"{prefix}={path}") if prefix else _name_file(str(path))


def _read_output(given: str | Path) -> Mount:
    if not isinstance(given, str | Path):
        title = f"`output` must have paths in it, got {describe_value(given)}"
        raise BadArgument(Diagnostic("RK609", title))
    if isinstance(given, Path) or not is_mount(given) or _is_path(given):
        return _name_file(str(given))
    return parse_mount(given)


def _is_path(text: str) -> bool:
    """Return whether the `=` is in the name of a folder: `runs/lr=0.1/m.pth`, or `lr=0.1/m.pth` if that exists."""
    folder, _, _ = text.rpartition("/")
    return "/" in text.partition("=")[0] or ("=" in folder and Path(folder).is_dir())


def _name_file(path: str) -> Mount:
    return Mount(NumberedText(()), NumberedText((path,)))


# ------------------------------------------------------------------------------------------------ who takes what


@dataclass(slots=True)
class _Taken:
    """The moves that one output takes so far."""

    mount: int
    numbers: tuple[int, ...]
    prefix: str
    path: Path
    moves: list[Move] = field(default_factory=list)


def divide_moves(mounts: Sequence[Mount], moves: Sequence[Move]) -> tuple[Output, ...]:
    """Return one output for each mount, and for each combination of its numbers; their order is that of both.

    A key goes to the output with the longest prefix that it begins with. Time: number of keys x number of mounts.

    Raises `UnwritableOutput` with all problems: RK515 if no output takes a key, RK516 if an output takes no key,
    RK518 if a key without its prefix is not a name.

    >>> from remapkit import TensorSpec
    >>> from remapkit.plans.moves import RuleRef
    >>> moves = [Move(key, (key,), (), RuleRef("all"), TensorSpec("F32", (1,))) for key in ("tp0.w", "tp1.w", "step")]
    >>> outputs = divide_moves(read_outputs(["tp{t}.=rank{t:02d}.pth", "rest.pth"]), moves)
    >>> [(output.path.name, [move.target for move in output.moves]) for output in outputs]
    [('rank00.pth', ['w']), ('rank01.pth', ['w']), ('rest.pth', ['step'])]
    """
    if len(mounts) == 1 and not mounts[0].prefix.parts:
        return (Output(Path(str(mounts[0].file)), tuple(moves)),)
    taken: dict[tuple[int, str], _Taken] = {}
    untaken: list[str] = []
    wrong: dict[int, list[str]] = {}
    starts = [_find_literal_start(mount) for mount in mounts]
    for move in moves:
        longest = _find_mount(mounts, starts, move.target)
        if longest is None:
            untaken.append(move.target)
            continue
        number, prefix, numbers = longest
        name = move.target[len(prefix) :]
        if not name or name.startswith("."):
            wrong.setdefault(number, []).append(move.target)
            continue
        one = taken.get((number, prefix))
        if one is None:
            path = Path(mounts[number].write_file(numbers))
            one = taken[number, prefix] = _Taken(number, tuple(numbers.values()), prefix, path)
        # Not `replace`, which takes three times as long.
        one.moves.append(Move(name, move.sources, move.ops, move.rule, move.spec) if prefix else move)
    problems = [*_report_untaken(untaken, len(moves)), *_report_wrong_names(mounts, wrong)]
    used = {number for number, _ in taken} | set(wrong)
    problems += [_report_empty(mounts[number], moves) for number in range(len(mounts)) if number not in used]
    if problems:
        raise UnwritableOutput(problems)
    ordered = sorted(taken.values(), key=lambda one: (one.mount, one.numbers))
    return tuple(Output(one.path, tuple(one.moves), one.prefix) for one in ordered)


def _find_literal_start(mount: Mount) -> tuple[str, bool]:
    """Return the literal text that a prefix begins with, and whether that is all of it."""
    parts = mount.prefix.parts
    start = parts[0] if parts and isinstance(parts[0], str) else ""
    return start, len(parts) <= bool(start)


def _find_mount(
    mounts: Sequence[Mount], starts: Sequence[tuple[str, bool]], fqn: str
) -> tuple[int, str, Mapping[str, int]] | None:
    """Return the mount with the longest prefix of a key, that prefix and its numbers; of equals, the literal one."""
    best: tuple[int, str, Mapping[str, int]] | None = None
    for number, (start, is_literal) in enumerate(starts):
        if not fqn.startswith(start):
            continue
        found = (start, {}) if is_literal else mounts[number].match_key(fqn)
        if found is None:
            continue
        shorter = -1 if best is None else len(best[1])
        if len(found[0]) > shorter or (len(found[0]) == shorter and is_literal):
            best = (number, *found)
    return best


def _report_untaken(untaken: Sequence[str], total: int) -> list[Diagnostic]:
    if not untaken:
        return []
    title = f"{len(untaken)} of {count_noun(total, 'key')} {'goes' if len(untaken) == 1 else 'go'} to no output"
    mount = _propose_mount(untaken)
    help = ("name a file for the rest: -o FILE" + (f"; or one for the prefix: -o {mount!r}" if mount else ""),)
    return [Diagnostic("RK515", title, notes=(list_names(untaken),), help=help, values={"keys": list(untaken)})]


def _propose_mount(fqns: Sequence[str]) -> str | None:
    """Return a mount for the most frequent first segment, with `{t}` if several segments differ in one number."""
    heads: dict[str, int] = {}
    patterns: dict[str, set[str]] = {}
    for fqn in fqns:
        head, dot, _ = fqn.partition(".")
        pattern = re.sub(r"[0-9]+", "{t}", head, count=1)
        if dot:
            heads[pattern] = heads.get(pattern, 0) + 1
            patterns.setdefault(pattern, set()).add(head)
    if not heads:
        return None
    best = max(heads, key=heads.__getitem__)
    name = best if len(patterns[best]) > 1 else min(patterns[best])
    return f"{name}.={name}.safetensors"


def _report_wrong_names(mounts: Sequence[Mount], wrong: Mapping[int, Sequence[str]]) -> list[Diagnostic]:
    problems = []
    for number, fqns in wrong.items():
        prefix = str(mounts[number].prefix)
        title = (
            f"without {prefix!r}, {count_noun(len(fqns), 'key')} would have no name, or one that begins with a dot"
        )
        # Behind a prefix that is a whole key nothing is left, with a dot or without.
        has_more = not prefix.endswith(".") and any("." in fqn[len(prefix) :] for fqn in fqns)
        help = f"end the prefix with a dot: -o '{prefix}.=FILE'" if has_more else "use a shorter prefix"
        problems.append(Diagnostic("RK518", escape_line(title), notes=(list_names(fqns),), help=(help,)))
    return problems


def _report_empty(mount: Mount, moves: Sequence[Move]) -> Diagnostic:
    prefix = str(mount.prefix)
    title = f"no key begins with {show_key(prefix)!r}: nothing would be written to {mount.file}"
    if any(mount.match_key(move.target) is not None for move in moves):
        title = f"other outputs take every key: nothing would be written to {mount.file}"
    begin = (f"{move.target.partition('.')[0]}." for move in moves if "." in move.target)
    notes = (f"keys begin with {join_words(map(show_key, begin), 8)}",) if moves else ()
    return Diagnostic(
        "RK516", escape_line(title), notes=notes, help=("correct the prefix, or leave out this output",)
    )


def explain_prefixes(mounts: Sequence[Mount], problems: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return the problems of a check; if the target lacks only the prefixes of the outputs, RK311 says so."""
    missing = {fqn for each in problems if each.code == "RK310" for fqn in each.values["missing_keys"]}
    starts = [_find_literal_start(mount) for mount in mounts]
    explained = []
    for problem in problems:
        keys = problem.values["unexpected_keys"] if problem.code == "RK311" else ()
        found = ((fqn, _find_mount(mounts, starts, fqn)) for fqn in keys)
        used = {
            mount[0] for fqn, mount in found if mount is not None and mount[1] and fqn[len(mount[1]) :] in missing
        }
        if used:
            prefixes = join_words((str(mounts[number].prefix) for number in sorted(used)), 5)
            help = (
                f"names are compared before the prefixes of the outputs ({escape_line(prefixes)}) are taken off: "
                "name a target that has them, with --target-keys, or leave out the check (--no-target)",
            )
            problem = replace(problem, help=help)
        explained.append(problem)
    return explained


# ------------------------------------------------------------------------------------------------ ties and records


def make_outputs(
    mounts: Sequence[Mount],
    moves: Sequence[Move],
    plan: ResolvedPlan,
    metadata: Mapping[str, str],
    provenance: Mapping[str, str],
) -> tuple[Output, ...]:
    """Divide the moves of a plan, and give each output its ties and its metadata.

    Names that are tied, or that metadata records as tied, stay so where one file has both; a file that has only one
    of them has a tensor of its own. Every file has the metadata of the source and the provenance. Raises as
    `divide_moves` does.
    """
    records = collect_records(plan)
    if len(mounts) > 1 and records:
        copies = _find_record_copies(mounts, records, plan)
        moves = (*moves, *copies)
        records = {other: kept for other, kept in records.items() if other not in {move.target for move in copies}}
    outputs = divide_moves(mounts, moves)
    if len(outputs) == 1 and not outputs[0].prefix:
        own = rewrite_metadata(replace(plan.source, metadata=metadata), moves, plan.entries).metadata
        return (replace(outputs[0], tied=plan.tied, metadata={**own, **records, **provenance}),)
    owners = _find_owners(outputs)
    ties: list[list[list[str]]] = [[] for _ in outputs]
    for group in plan.tied:
        for number in sorted({owners[fqn] for fqn in group if fqn in owners}):
            ties[number].append(
                [fqn.removeprefix(outputs[number].prefix) for fqn in group if owners.get(fqn) == number]
            )
    recorded: list[dict[str, str]] = [{} for _ in outputs]
    for other, kept in records.items():
        prefix = outputs[owners[kept]].prefix
        recorded[owners[kept]][other.removeprefix(prefix)] = kept.removeprefix(prefix)
    source = replace(plan.source, metadata=metadata)
    return tuple(
        replace(output, tied=tied, metadata={**_rewrite_own(source, output, plan), **names, **provenance})
        for output, tied, names in zip(outputs, ties, recorded, strict=True)
    )


def _rewrite_own(source: StateDictSpec, output: Output, plan: ResolvedPlan) -> Mapping[str, str]:
    """Return the metadata with the names that an output has, without its prefix."""
    return rewrite_metadata(source, output.moves, _rewrite_settled(output, plan)).metadata


def _rewrite_settled(output: Output, plan: ResolvedPlan) -> Mapping[str, str | None]:
    """Return the entries that were written for the plan with the names that an output has."""
    if not plan.entries:
        return {}
    own = {output.prefix + move.target: (move.target,) for move in output.moves}
    names = NameMap({move.target: own.get(move.target, ()) for move in plan.moves})
    written = {name: text for name, text in plan.entries.items() if text is not None}
    return {**plan.entries, **{name: entry.text for name, entry in rewrite_entries(written, names).items()}}


def report_plan(outputs: Sequence[Output], plan: ResolvedPlan) -> list[Diagnostic]:
    """Return the warnings of a plan; what they say of metadata, they say of the outputs, each with its own names."""
    if all(not output.prefix for output in outputs) and len(outputs) < 2:
        return list(plan.warnings)
    said = [
        replace(each, place=str(output.path))
        for output in outputs
        for each in report_metadata(plan.source, output.moves, _rewrite_settled(output, plan))
    ]
    return [*(each for each in plan.warnings if each.code not in CODES), *said]


def _find_record_copies(mounts: Sequence[Mount], records: Mapping[str, str], plan: ResolvedPlan) -> list[Move]:
    """Return the moves of names that are only recorded, but go to another output than the tensor that they name."""
    moves = {move.target: move for move in plan.recorded.values()}
    starts = [_find_literal_start(mount) for mount in mounts]
    copies = []
    for other, kept in records.items():
        there, here = (_find_mount(mounts, starts, fqn) for fqn in (other, kept))
        if there is not None and here is not None and there[:2] != here[:2]:
            copies.append(moves[other])
    return copies


def report_shared_ties(outputs: Sequence[Output], plan: ResolvedPlan) -> list[Diagnostic]:
    """Return a note on tied names that go to several outputs: each of these has a copy."""
    groups = [*plan.tied, *((kept, other) for other, kept in collect_records(plan).items())]
    if len(outputs) < 2 or not groups:
        return []
    owners = _find_owners(outputs)
    sources = {move.target: move.sources for move in (*plan.recorded.values(), *plan.moves)}
    shared = [group for group in groups if _is_torn(group, owners, sources)]
    if not shared:
        return []
    title = f"{count_noun(len(shared), 'tied weight')} in several outputs: each of them has a copy"
    notes = (list_names([" = ".join(group) for group in shared]),)
    return [Diagnostic("RK519", title, notes=notes, severity=Severity.NOTE)]


def _is_torn(group: Sequence[str], owners: Mapping[str, int], sources: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether a file lacks one of the tied names: of the source's, or of the rule's if these have one source.

    Ranks that each have a copy of both names keep the tie.
    """
    found: dict[int, set[object]] = {}
    by_source = len({sources[fqn] for fqn in group}) > 1
    for fqn in group:
        if fqn in owners:
            found.setdefault(owners[fqn], set()).add(sources[fqn] if by_source else fqn)
    return len(found) > 1 and any(names != set().union(*found.values()) for names in found.values())


def _find_owners(outputs: Sequence[Output]) -> dict[str, int]:
    """Return the position of the output that has each target."""
    return {output.prefix + move.target: number for number, output in enumerate(outputs) for move in output.moves}
