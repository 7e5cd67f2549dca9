"""What several commands share: opening sources, finding rule files and what they declare."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.api.ruleset import load
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, UnreadableCheckpoint, UsageError
from remapkit.files.source_file import SourceFile
from remapkit.formats import Reader, open_checkpoint
from remapkit.proofs.model import Level, Proof
from remapkit.registry.installed import find_rules, packs
from remapkit.rulefile.read import read_file_bytes
from remapkit.sources.declared import read_declared_source, resolve_declared_path
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.api.ruleset import RuleSet


def load_rules(name_or_path: str | Path, args: Namespace) -> RuleSet:
    """A rule file with the params and the config of the command line."""
    return load(name_or_path, params=parse_params(args.param), config=args.config)


def parse_params(written: Sequence[str]) -> dict[str, int]:
    """`name=number` as it was typed; raises `UsageError` (RK640) for anything else.

    >>> parse_params(["heads=40"])
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


def read_known_source(rules: RuleSet) -> StateDictSpec | None:
    """The manifest that a pack declares as its source, if it does."""
    return read_declared_source(rules.file)


def prove_rules(rules: RuleSet) -> Proof:
    """The proof over all keys; the declared source is read only where that leaves something to say."""
    proof = rules.prove()
    if proof.level is Level.ALL or rules.file.source_keys is None:
        return proof
    return rules.prove(header=read_known_source(rules))


def refuse_unproven(rule_sets: Sequence[RuleSet], args: Namespace) -> tuple[Diagnostic, ...]:
    """Proves rule sets before anything is done with them; returns what is worth saying.

    Raises `InvalidRules` with all that is refuted or, without `--allow-undecided`, undecided.
    """
    proofs = [prove_rules(rules) for rules in rule_sets]
    blocking = [each for proof in proofs for each in proof.blocking(allow_undecided=args.allow_undecided)]
    if blocking:
        raise InvalidRules(blocking)
    return tuple(finding for proof in proofs for finding in proof.findings)


def open_source(path: Path, args: Namespace) -> Reader:
    return open_checkpoint(path, root=args.root, **_collect_reader_options(args))


def _collect_reader_options(args: Namespace) -> dict[str, bool]:
    return {name: getattr(args, name) for name in ("strict_pickle", "allow_expand", "follow_links")}


def open_sides(args: Namespace, stack: ExitStack) -> tuple[Reader, Reader]:
    """The two checkpoints A and B of a command, each with its own `--root`, which messages then name."""
    return _open_side(args.a, args.root_a, "--root-a", args, stack), _open_side(
        args.b, args.root_b, "--root-b", args, stack
    )


def _open_side(path: str, root: str | None, option: str, args: Namespace, stack: ExitStack) -> Reader:
    try:
        reader = open_checkpoint(Path(path), root=root, **_collect_reader_options(args))
    except UnreadableCheckpoint as error:
        raise UnreadableCheckpoint([_name_option(each, option) for each in error.diagnostics]) from None
    return stack.enter_context(reader)


def _name_option(problem: Diagnostic, option: str) -> Diagnostic:
    help = tuple(text.replace("--root", option) for text in problem.help)
    return replace(problem, title=problem.title.replace("--root", option), help=help)


def find_rule_paths(args: Namespace) -> list[Path]:
    """The rule files that are named, or every pack; raises `UsageError` with all names that lead to no file."""
    found: list[Path] = []
    problems: list[Diagnostic] = []
    for name in args.rules:
        try:
            found.append(find_rules(name))
            read_file_bytes(found[-1])
        except UsageError as error:
            problems += error.diagnostics
    if problems:
        raise UsageError(problems)
    return found or [pack.path for pack in packs()]


def list_files_read(args: Namespace, *readers: Reader, but: Sequence[str]) -> list[Path | SourceFile]:
    """The files that a command reads and may not write: whatever its arguments name, and the readers' own files.

    `but` are the arguments that name what is written. An argument that is added later is covered too.
    """
    given = [value for name, value in vars(args).items() if name not in but]
    words = [each for value in given for each in (value if isinstance(value, list) else [value])]
    # `PREFIX=FILE` and `KEY=FILE` name files as well.
    named = [part for word in words if isinstance(word, str) for part in (word, word.partition("=")[2])]
    files = [
        Path(part)
        for part in named
        if os.path.isfile(part)  # noqa: PTH113 - a word too long for a path is no file
    ]
    return [*files, *(source for reader in readers for source in reader.sources)]


def list_rule_files(rules: RuleSet) -> list[Path]:
    """The files that a rule set comes from: its own, and the manifests that it declares."""
    declared = [rules.file.source_keys]
    found = [resolve_declared_path(rules.file, written) for written in declared if written is not None]
    return found if rules.file.path is None else [rules.file.path, *found]
