"""Arguments that several functions of the API share: rules, checkpoints, a target, and which files a call reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from remapkit.api.ruleset import Config, RuleSet, RulesLike
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, InvalidRules, MissingFile, UnreadableCheckpoint, UsageError
from remapkit.formats.options import ReadOptions
from remapkit.plans.count import count_along_route
from remapkit.proofs.model import Level, Proof
from remapkit.registry.installed import find_rules, packs
from remapkit.rulefile.read import read_file_bytes
from remapkit.rulefile.syntax import RuleFile
from remapkit.rules.counted import report_partial_counts
from remapkit.rules.model import CompiledRules
from remapkit.sources.declared import read_declared_source, resolve_declared_path
from remapkit.sources.mounts import SourceLike, is_path_mapping
from remapkit.tensors.spec import StateDictSpec, TensorSpec

if TYPE_CHECKING:
    from remapkit.files.source_file import SourceFile
    from remapkit.formats import Reader

Keys = str | Path | Mapping[str, TensorSpec]
"""A header: the path of a manifest or a checkpoint, or names with their dtypes and shapes."""


def list_rules(rules: RulesLike | Sequence[RulesLike]) -> list[RulesLike]:
    """Return one rule set, or several, as a list."""
    return [rules] if isinstance(rules, RulesLike) else list(rules)


def find_rule_paths(names: Sequence[str | Path]) -> list[Path]:
    """Return the named rule files, or every pack; raises `UsageError` with all names that have no file."""
    found: list[Path] = []
    problems: list[Diagnostic] = []
    kinds = set()
    for name in names:
        try:
            found.append(find_rules(name))
            read_file_bytes(found[-1])
        except UsageError as error:
            problems += error.diagnostics
            kinds.add(type(error))
    if problems:
        raise (MissingFile if kinds == {MissingFile} else UsageError)(problems)
    return found or [pack.path for pack in packs()]


def prove_rules(rules: RuleSet) -> Proof:
    """Prove rules over all keys; the declared source is read only if that leaves something to report."""
    proof = rules.prove()
    if proof.level is Level.ALL or rules.file.source_keys is None:
        return proof
    return rules.prove(header=read_declared_source(rules.file))


def refuse_partial_counts(rules: RuleSet, header: StateDictSpec) -> None:
    """Raise `FailedCheck` (RK373) if params are counted: in a partial checkpoint, that would be a guess."""
    known = read_declared_source(rules.file) if rules.counted else None
    problems = [each for part in rules.parts for each in report_partial_counts(part, known, header.name)]
    if problems:
        raise FailedCheck(problems)


def count_proven_params(rules: RuleSet, header: StateDictSpec, *, allow_undecided: bool) -> RuleSet:
    """Return the rules with the params that are counted in a header: proven, if these have other values there.

    The later parts of a route count in what the earlier ones make of it.
    """
    counted = count_along_route(rules, header)
    if counted is rules:
        return rules
    refuse_unproven([RuleSet.of(counted)], allow_undecided=allow_undecided)
    return RuleSet.of(counted)


def refuse_unproven(rule_sets: Sequence[RuleSet], *, allow_undecided: bool) -> tuple[Diagnostic, ...]:
    """Prove rule sets before they are used; return the findings that are not errors.

    Raises `InvalidRules` with everything refuted or, unless `allow_undecided`, undecided.
    """
    proofs = [prove_rules(RuleSet.of(part)) for rules in rule_sets for part in rules.parts]
    blocking = [finding for proof in proofs for finding in proof.blocking(allow_undecided=allow_undecided)]
    if blocking:
        raise InvalidRules(blocking)
    return tuple(finding for proof in proofs for finding in proof.findings)


# ------------------------------------------------------------------------------------------------- named targets


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """A target named by the caller: a model by reference or as a module, or `keys`, a file or a header."""

    model: object = None
    model_args: Mapping[str, Any] | None = None
    model_config: Config | None = None
    keys: Keys | None = None

    def __post_init__(self) -> None:
        """Raise `UsageError` (RK609) for a target that is named twice, or arguments without a model."""
        if self.model is not None and self.keys is not None:
            raise UsageError(
                Diagnostic("RK609", "--model and --target-keys are two targets", help=("pass only one of them",))
            )
        if not isinstance(self.model, str) and (self.model_args or self.model_config is not None):
            raise UsageError(Diagnostic("RK609", "--model-arg and --model-config need --model"))

    @property
    def option(self) -> str | None:
        """The command-line option that names it; None if no target is named."""
        return "--model" if self.model is not None else "--target-keys" if self.keys is not None else None

    def read(self) -> StateDictSpec | None:
        """Return the header of the target; None if no target is named."""
        from remapkit.models.target import TargetRef, header, read_target_header

        if isinstance(self.model, str):
            return read_target_header(TargetRef(self.model, self.model_args or {}, self.model_config))
        named = self.keys if self.model is None else self.model
        if isinstance(named, str | Path):
            return read_target_header(TargetRef(keys=Path(named)))
        return None if named is None else header(named)


# --------------------------------------------------------------------------------------------------- checkpoints


def is_header(keys: object) -> TypeGuard[Mapping[str, TensorSpec]]:
    """Return whether `keys` is a header, not a path or a path for each prefix."""
    return isinstance(keys, Mapping) and not is_path_mapping(keys)


@dataclass(frozen=True, slots=True)
class Side:
    """One of two checkpoints: its path or paths, its root, and the rule file that remaps it."""

    path: SourceLike
    root: str | None = None
    rules: RuleFile | None = None


def open_sides(stack: ExitStack, a: Side, b: Side, options: ReadOptions) -> tuple[Reader, Reader]:
    """Open two checkpoints A and B with separate roots; messages name the root option of the checkpoint concerned."""
    return (
        stack.enter_context(open_side(a, "--root-a", options)),
        stack.enter_context(open_side(b, "--root-b", options)),
    )


def open_side(side: Side, option: str, options: ReadOptions) -> Reader:
    """Open one of two checkpoints; messages name its root `option`."""
    from remapkit.sources.open import open_source  # the readers, which `lint` does not need

    try:
        return open_source(side.path, replace(options, root=side.root), rules=side.rules)
    except UnreadableCheckpoint as error:
        raise type(error)([_name_option(problem, option) for problem in error.diagnostics]) from None


def _name_option(problem: Diagnostic, option: str) -> Diagnostic:
    help = tuple(text.replace("--root", option) for text in problem.help)
    return replace(problem, title=problem.title.replace("--root", option), help=help)


# --------------------------------------------------------------------------------- files that must not be written


def list_files_read(arguments: Mapping[str, object], *readers: Reader, but: Sequence[str]) -> list[Path | SourceFile]:
    """Return the files that a call reads and may not write: those that its arguments name, and the readers' files.

    `arguments` are all arguments of the call, `but` those that name outputs: so arguments added later are covered
    too.
    """
    words = [word for name, value in arguments.items() if name not in but for word in _list_words(value)]
    # `PREFIX=FILE` names a file as well.
    named = [part for word in words for part in (word, word.partition("=")[2])]
    files = [
        Path(part)
        for part in named
        if os.path.isfile(part)  # noqa: PTH113 - a word too long for a path is not a file
    ]
    return [*files, *(source for reader in readers for source in reader.sources)]


def _list_words(value: object) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, CompiledRules):
        yield from map(str, list_rule_files(value))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _list_words(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _list_words(each)


def list_rule_files(rules: CompiledRules) -> list[Path]:
    """Return the files of a rule set: the rule file, its declared source, and the config of its declared target."""
    declared = [rules.file.source_keys, rules.file.target.config if rules.file.target is not None else None]
    found = [resolve_declared_path(rules.file, written) for written in declared if written is not None]
    return found if rules.file.path is None else [rules.file.path, *found]
