"""What several commands share: opening sources, finding rule files and what they declare."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.checkpoint import Reader, open_checkpoint
from remapkit.declared import declared_source
from remapkit.diagnostic import Diagnostic, InvalidRules, UnreadableCheckpoint, UsageError
from remapkit.library import find_rules, load, packs
from remapkit.prove import Level, Proof
from remapkit.rulefile import file_bytes
from remapkit.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.rules import RuleSet


def load_rules(name_or_path: str | Path, args: Namespace) -> RuleSet:
    """A rule file with the params and the config of the command line."""
    return load(name_or_path, params=given_params(args.param), config=args.config)


def given_params(written: Sequence[str]) -> dict[str, int]:
    """`name=number` as it was typed; raises `UsageError` (RK640) for anything else.

    >>> given_params(["heads=40"])
    {'heads': 40}
    """
    found: dict[str, int] = {}
    for each in written:
        name, sign, value = each.partition("=")
        try:
            number = int(value)
        except ValueError:
            sign = ""
        if not sign or not name or name in found:
            title = f"--param {each}: " + ("given twice" if name in found else "that is no param with a whole number")
            raise UsageError(Diagnostic("RK640", title, help=("write it as --param heads=40",)))
        found[name] = number
    return found


def known_source(rules: RuleSet) -> StateDictSpec | None:
    """The manifest that a pack declares as its source, if it does."""
    return declared_source(rules)


def proven(rules: RuleSet) -> Proof:
    """The proof over all keys; the declared source is read only where that leaves something to say."""
    proof = rules.prove()
    if proof.level is Level.ALL or rules.file.source_keys is None:
        return proof
    return rules.prove(header=known_source(rules))


def refuse_unproven(rule_sets: Sequence[RuleSet], args: Namespace) -> tuple[Diagnostic, ...]:
    """Proves rule sets before anything is done with them; returns what is worth saying.

    Raises `InvalidRules` with all that is refuted or, without `--allow-undecided`, undecided.
    """
    proofs = [proven(rules) for rules in rule_sets]
    blocking = [each for proof in proofs for each in proof.blocking(allow_undecided=args.allow_undecided)]
    if blocking:
        raise InvalidRules(blocking)
    return tuple(finding for proof in proofs for finding in proof.findings)


def open_source(path: Path, args: Namespace) -> Reader:
    return open_checkpoint(path, root=args.root, strict_pickle=args.strict_pickle, allow_expand=args.allow_expand)


def recorded_ties(header: StateDictSpec) -> dict[str, str]:
    """The names that a safetensors file only records as tied, each with the tensor that it is tied to.

    The format has no aliases, so its writers keep one name and put `other: kept` into the metadata.
    """
    return {
        other: kept
        for other, kept in header.metadata.items()
        if kept in header and other not in header and other != "format" and not other.startswith("remapkit.")
    }


def with_recorded(header: StateDictSpec, ties: Mapping[str, str]) -> StateDictSpec:
    """The header with the recorded names as keys of their own: rules speak about them as about all others."""
    if not ties:
        return header
    groups: dict[str, list[str]] = {group[0]: list(group) for group in header.tied}
    first = {fqn: group[0] for group in header.tied for fqn in group}
    for other, kept in ties.items():
        groups.setdefault(first.get(kept, kept), [kept]).append(other)
    tensors = {**header.tensors, **{other: header[kept] for other, kept in ties.items()}}
    return replace(header, tensors=tensors, tied=tuple(map(tuple, groups.values())))


def open_sides(args: Namespace, stack: ExitStack) -> tuple[Reader, Reader]:
    """The two checkpoints A and B of a command, each with its own `--root`, which messages then name."""
    return _open_side(args.a, args.root_a, "--root-a", args, stack), _open_side(
        args.b, args.root_b, "--root-b", args, stack
    )


def _open_side(path: str, root: str | None, option: str, args: Namespace, stack: ExitStack) -> Reader:
    try:
        reader = open_checkpoint(
            Path(path), root=root, strict_pickle=args.strict_pickle, allow_expand=args.allow_expand
        )
    except UnreadableCheckpoint as error:
        raise UnreadableCheckpoint([_with_option(each, option) for each in error.diagnostics]) from None
    return stack.enter_context(reader)


def _with_option(problem: Diagnostic, option: str) -> Diagnostic:
    help = tuple(text.replace("--root", option) for text in problem.help)
    return replace(problem, title=problem.title.replace("--root", option), help=help)


def rule_paths(args: Namespace) -> list[Path]:
    """The rule files that are named, or every pack; raises `UsageError` with all names that lead to no file."""
    found: list[Path] = []
    problems: list[Diagnostic] = []
    for name in args.rules:
        try:
            found.append(find_rules(name))
            file_bytes(found[-1])
        except UsageError as error:
            problems += error.diagnostics
    if problems:
        raise UsageError(problems)
    return found or [pack.path for pack in packs()]
