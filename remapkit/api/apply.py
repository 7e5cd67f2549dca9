"""`remapkit.apply`: prove, plan, check, then write a checkpoint under its new keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from remapkit.api.inputs import (
    Keys,
    NamedTarget,
    count_proven_params,
    refuse_partial_counts,
    refuse_unproven,
)
from remapkit.api.ruleset import Config, Plan, RuleSet, RulesLike, checked, resolve_rules
from remapkit.api.sizes import parse_size
from remapkit.compute.move_bytes import refuse_unequal_merges
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, format_bytes
from remapkit.files.errors import make_unwritable
from remapkit.files.index_names import is_index
from remapkit.formats import Reader
from remapkit.formats.options import make_read_options
from remapkit.plans.cast import cast_plan
from remapkit.plans.check import Check, check_known_keys, make_check
from remapkit.plans.layers import is_another_size
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.plans.roots import choose_root, probe_root, take_root
from remapkit.plans.target_check import (
    TargetCheck,
    check_declared_target,
    report_contradictions,
    report_other_sizes,
    skip_target_check,
)
from remapkit.registry.identify import hint_layout
from remapkit.sources.declared import read_declared_source
from remapkit.sources.joined import JoinedReader, refuse_contradictions
from remapkit.sources.mounts import Mount, SourceLike
from remapkit.sources.open import open_source
from remapkit.sources.parts import find_only_path, list_parts
from remapkit.tensors.spec import StateDictSpec
from remapkit.write.apply import default_output, make_provenance, pause_collection, sort_by_target
from remapkit.write.execute import (
    KNOWN_SUFFIXES,
    WrittenFiles,
    choose_format,
    recover,
    refuse_same_output,
    rename_in_place,
    write_outputs,
)
from remapkit.write.layout import split_ties
from remapkit.write.outputs import (
    Output,
    OutputsLike,
    explain_prefixes,
    make_outputs,
    read_outputs,
    report_plan,
    report_shared_ties,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(WrittenFiles):
    """What `apply` did: the files that it wrote, and the plan that they follow.

    `moves` are the plan's moves in the order of writing, and `outputs` the targets that go to each output, with their
    prefixes. `check` is the check of the plan against its target, None
    if there is none; `checked` says how: `exact`, `layout` (only names and numbers of dimensions) or `no`.
    `restored` says that an interrupted rename of the file was undone first. After a dry run `files` is empty.
    """

    plan: Plan
    moves: tuple[Move, ...]
    outputs: Mapping[Path, tuple[str, ...]]
    check: Check | None
    checked: str
    restored: bool = False
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        if not self.files:
            return f"{self.plan}; nothing was written"
        where = f"{self.files[-1]} and {len(self.files) - 1} more" if len(self.files) > 1 else str(self.files[0])
        unchecked = ", not checked against a target" if self.check is None else ""
        return f"{count_noun(self.tensors, 'tensor')}, {format_bytes(self.nbytes)}, written to {where}{unchecked}"


@checked
def apply(
    rules: RulesLike,
    source: SourceLike,
    output: OutputsLike | None = None,
    *,
    to_format: str | None = None,
    dry_run: bool = False,
    dtype: str | None = None,
    in_place: bool = False,
    shard_size: int | str | None = None,
    verify: bool = False,
    untie: bool = False,
    force: bool = False,
    partial: bool = False,
    declared_target: bool = True,
    allow_undecided: bool = False,
    model: object = None,
    model_args: Mapping[str, Any] | None = None,
    model_config: Config | None = None,
    target_keys: Keys | None = None,
    strict_dtype: bool = False,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
    metadata_from: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Prove the rules, plan, check, and write the checkpoint `source` under its new keys.

    Args:
        rules: A `RuleSet`, the name of an installed pack, or the path of a rule file.
        source: A checkpoint: `.pth`, `.safetensors`, an index of shards, or a folder that holds one; or several
            files: a list, a mount `PREFIX=FILE`, a path for each prefix; see `open_checkpoint`.
        output: The file to write; by default `source` with the suffix `.safetensors`, in the same folder. Or several:
            mounts, `"vae.=vae.safetensors"` or `"tp{t}.=rank{t:02d}.pth"`, in a sequence, or as a mapping from
            prefixes to files. Each takes the keys that begin with its prefix, without it; a plain file the rest.
        to_format: `safetensors` or `pth`, for every output; by default given by its suffix.
        dry_run: Write nothing; the result has every move.
        dtype: Cast every plain float: `bf16`, `fp16`, `fp32` or `fp64`.
        in_place: Rename inside `source`, one safetensors file: only its header is written, under a journal.
        shard_size: Write shards of at most so many bytes (`"5GB"`, `"500MiB"`, a number) and an index, per output.
        verify: Read the output back and compare every tensor with its source.
        untie: Write tied weights as copies, not once with the other names in the metadata.
        force: Replace the output if it exists.
        partial: Accept a checkpoint that lacks keys that the rules are known to read.
        declared_target: Check the result against the target that the rules declare.
        allow_undecided: Continue even if a proof over all keys is undecided.
        model: The target instead: `plugin.module:Class`, `py:package.module:Class`, or a `torch.nn.Module`.
        model_args, model_config: Arguments and config of the model that `model` names.
        target_keys: The target instead: a manifest, a checkpoint or a header.
        strict_dtype: Make a dtype mismatch an error.
        params, config: Values for the params of the rules; see `load`.
        root, strip, strict_pickle, allow_expand, follow_links: How `source` is read; see `open_checkpoint`.
        metadata_from: The file whose metadata are kept where those of several files contradict each other.
        progress: Called repeatedly with the bytes done and the bytes in total.

    Returns:
        `Written`. Its `diagnostics`, warnings and notes, are logged too (logger `remapkit`).

    Raises:
        UsageError: Arguments that do not fit together, or rules, a pack or a model that does not exist.
        InvalidRules: Rules that cannot be compiled or proven.
        FailedCheck: The plan has errors, all of them listed. Nothing was written.
        UnreadableCheckpoint: A source that cannot be read.
        UnwritableOutput: An output that cannot be written, or exists (`OutputExists`), keys that no output takes.
            Nothing was changed.

    An interrupt (`KeyboardInterrupt`) leaves every file unchanged.

    >>> import pathlib, tempfile, torch, remapkit
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> torch.save({"a.0": torch.ones(2)}, folder / "old.pth")
    >>> rules = remapkit.loads("remapkit: 1\\nname: one\\nrules: [{id: a, path: 'a.{n:int}', to: 'b.{n}'}]")
    >>> written = apply(rules, folder / "old.pth", folder / "new.safetensors")
    >>> written.files[0].name, written.tensors, [diagnostic.code for diagnostic in written.diagnostics]
    ('new.safetensors', 1, ['RK360'])
    """
    mounts = None if output is None else read_outputs(output)
    out = _Output(mounts, to_format, dry_run, in_place, shard_size, verify, untie, force, progress)
    named = NamedTarget(model, model_args, model_config, target_keys)
    if named.option and not declared_target:
        title = f"--no-target and {named.option} contradict each other"
        raise UsageError(Diagnostic("RK609", title, help=("pass only one of them",)))
    out.check_source(source)
    with pause_collection(), ExitStack() as stack:
        rule_set = resolve_rules(rules, params, config)
        findings = refuse_unproven([rule_set], allow_undecided=allow_undecided)
        # A reader refuses a partly renamed file; restore it only for a caller that changes the file anyway.
        restored = in_place and not dry_run and recover(find_single_file(source))
        options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
        reader = stack.enter_context(open_source(source, options, rules=rule_set.file, metadata_from=metadata_from))
        refuse_contradictions(reader)
        if partial:
            refuse_partial_counts(rule_set, reader.header())
        provenance = make_provenance(rule_set, name_source(source, reader))
        fit = probe_root(rule_set, reader.header(), partial=partial) if root is None else None
        reader = take_root(reader, fit) if fit is not None else reader
        rule_set, plan = _make_plan(rule_set, reader, allow_undecided)
        if root is None and fit is None and (fit := choose_root(rule_set, plan, partial=partial)) is not None:
            reader = take_root(reader, fit)
            rule_set, plan = _make_plan(rule_set, reader, allow_undecided)
        if dtype is not None:
            plan = cast_plan(plan, dtype)
        try:
            held = _check_target(rule_set, plan, named, declared_target, partial=partial, strict_dtype=strict_dtype)
        except FailedCheck as error:
            raise FailedCheck(explain_prefixes(mounts or (), error.diagnostics)) from None
        plan = held.check.plan if held.check else plan
        moves = sort_by_target(plan, held.check.target if held.check else None)
        outputs = out.divide(plan, moves, reader, source, provenance)
        files = out.write(plan, moves, reader, outputs)
    # The plan reports dead rules in its warnings too.
    said = (finding for finding in findings if finding.code != "RK205")
    shared = () if untie else report_shared_ties(outputs, plan)
    diagnostics = (*said, *reader.notes, *report_plan(outputs, plan), *held.notes, *shared)
    log_diagnostics(diagnostics)
    return Written(
        **{each.name: getattr(files, each.name) for each in fields(files)},
        plan=Plan.of(plan),
        moves=moves,
        outputs={output.path: tuple(output.prefix + move.target for move in output.moves) for output in outputs},
        check=held.check,
        checked=held.how,
        restored=restored,
        diagnostics=diagnostics,
    )


def _make_plan(rules: RuleSet, reader: Reader, allow_undecided: bool) -> tuple[RuleSet, ResolvedPlan]:
    """Return the rules with the params that are counted in the checkpoint, proven again, and their plan."""
    rules = count_proven_params(rules, reader.header(), allow_undecided=allow_undecided)
    return rules, make_plan(rules, reader.header(), reader.root)


def _check_target(
    rules: RuleSet,
    plan: ResolvedPlan,
    named: NamedTarget,
    declared_target: bool,
    *,
    partial: bool,
    strict_dtype: bool,
) -> TargetCheck:
    """Check against the named target, else the declared one and the keys that the pack is known to read.

    Raises `FailedCheck` with every problem.
    """
    target, known = named.read(), read_declared_source(rules.file)
    lacking: list[Diagnostic] = []
    if target is not None:
        notes = tuple(report_contradictions(plan, known)) if known is not None else ()
        held = TargetCheck(make_check(plan, target, strict_dtype=strict_dtype), "exact", notes)
    else:
        lacking = check_known_keys(rules, plan, known) if known is not None and not partial else []
        # A target whose sources are missing is not reported as missing too.
        partial = partial or bool(lacking) or bool(plan.problems)
        held = _check_declared(rules, plan, declared_target, partial=partial, strict_dtype=strict_dtype)
        if held.how == "no" and known is not None and is_another_size(plan.source, known):
            held = replace(held, notes=(*held.notes, *report_other_sizes(plan, known, None)))
    problems = held.problems if held.check is not None else plan.problems
    if problems or lacking:
        raise FailedCheck(hint_layout([*problems, *lacking], plan.source, rules.name))
    return held


def _check_declared(
    rules: RuleSet, plan: ResolvedPlan, declared_target: bool, *, partial: bool, strict_dtype: bool
) -> TargetCheck:
    """Check against the declared target. A model of transformers or diffusers is built from its declared config."""
    if not declared_target:
        return skip_target_check(rules, "--no-target")
    target: StateDictSpec | str | None = None
    if rules.last.file.target is not None and rules.last.file.target.config is not None:
        from remapkit.models.target import read_config_target  # imports torch

        target = read_config_target(rules.last)
    if isinstance(target, str):
        return skip_target_check(rules, target)
    return check_declared_target(rules, plan, target=target, partial=partial, strict_dtype=strict_dtype)


@dataclass(frozen=True, slots=True)
class _Output:
    """The options for writing; conflicting options are refused."""

    mounts: tuple[Mount, ...] | None
    to_format: str | None
    dry_run: bool
    in_place: bool
    shard_size: int | str | None
    verify: bool
    untie: bool
    force: bool
    progress: Callable[[int, int], None] | None

    def __post_init__(self) -> None:
        """Raise `UsageError` (RK609, RK613) or `UnwritableOutput` (RK511) before anything is read."""
        paths = [str(mount.file) for mount in self.mounts or ()]
        for path in paths:
            if path in ("", "-"):
                help = ("a checkpoint is written beside its final place and then renamed; name a file",)
                raise UsageError(Diagnostic("RK609", f"-o {path!r} is not a file name", help=help))
        if self.in_place:
            self._refuse_beside_in_place()
        if self.shard_size is not None:
            parse_size(self.shard_size)
        for path in paths:
            if self.shard_size is None and is_index(Path(path).name):
                title = f"{path} is the name of an index of shards"
                raise UsageError(Diagnostic("RK609", title, help=("set the size of the shards: --shard-size 5GB",)))
            # A suffix with a number in it is known only with the keys.
            if "{" not in Path(path).suffix:
                self._check_format(path)

    def check_source(self, source: SourceLike) -> None:
        """Raise `UsageError` (RK609) if several files are read, but no output is named."""
        if self.in_place:
            find_single_file(source)
        elif self.mounts is None and not self.dry_run:
            choose_outputs(source, None, self.to_format)

    def _refuse_beside_in_place(self) -> None:
        options = {
            "output": self.mounts,
            "to-format": self.to_format,
            "shard-size": self.shard_size,
            "verify": self.verify,
            "untie": self.untie,
            "force": self.force,
        }
        given = [f"--{option}" for option, value in options.items() if value]
        if given:
            title = f"--in-place writes no other file and moves no data; it cannot be used with {', '.join(given)}"
            raise UsageError(Diagnostic("RK609", title, help=("leave out --in-place, or the other options",)))

    def _check_format(self, path: str) -> None:
        """Refuse a name without a known suffix, or with another format than `to_format`."""
        format = choose_format(path, self.to_format, shards=self.shard_size is not None)
        if Path(path).suffix.lower() in KNOWN_SUFFIXES and choose_format(path) != format:
            title = f"{path} is a name for {choose_format(path)}, but --to-format is {format}"
            raise make_unwritable("RK511", title, help=("leave out --to-format, or give the file another suffix",))

    def divide(
        self,
        plan: ResolvedPlan,
        moves: Sequence[Move],
        reader: Reader,
        source: SourceLike,
        provenance: Mapping[str, str],
    ) -> tuple[Output, ...]:
        """Return what goes to which output; nothing for a dry run that names none."""
        if self.in_place:
            mounts = read_outputs(find_single_file(source))
        elif self.mounts is not None or not self.dry_run:
            mounts = self.mounts or choose_outputs(source, None, self.to_format)
        else:
            return ()
        # The source's metadata without the names that became keys; the writer adds the records of tied names.
        own = {name: value for name, value in reader.header().metadata.items() if name not in plan.source}
        outputs = make_outputs(mounts, moves, plan, own, provenance)
        refuse_same_output(outputs, self.shard_size is not None)
        return outputs

    def write(
        self, plan: ResolvedPlan, moves: Sequence[Move], reader: Reader, outputs: Sequence[Output]
    ) -> WrittenFiles:
        if self.dry_run:
            if reader.format != "manifest":
                refuse_unequal_merges(moves, reader)
            return WrittenFiles((), 0, 0, 0.0)
        if self.in_place:
            renamed, recorded = split_ties(outputs[0].moves, outputs[0].tied)
            return rename_in_place(renamed, reader, metadata={**outputs[0].metadata, **recorded})
        return write_outputs(
            outputs,
            reader,
            format=self.to_format or ("safetensors" if self.mounts is None else None),
            shard_size=None if self.shard_size is None else parse_size(self.shard_size),
            untie=self.untie,
            verify=self.verify,
            force=self.force,
            progress=self.progress,
        )


def choose_outputs(source: SourceLike, output: OutputsLike | None, to_format: str | None = None) -> tuple[Mount, ...]:
    """Return the outputs of `apply`: the named ones, else the source's name with another suffix.

    Raises `UsageError` (RK609) if none is named and the source is several files.
    """
    if output is not None:
        return read_outputs(output)
    if (path := find_only_path(source)) is None:
        title = "a mount, or several files, are read: where should the result go?"
        raise UsageError(Diagnostic("RK609", title, help=("name a file with -o OUT",)))
    return read_outputs(default_output(path, f".{to_format or 'safetensors'}"))


def find_single_file(source: SourceLike) -> Path:
    """Return the path of a source that is one file under no prefix; raises `UsageError` (RK609) for any other."""
    if (path := find_only_path(source)) is not None:
        return path
    title = "--in-place renames inside one file, without a prefix; the source is a mount, or several files"
    raise UsageError(Diagnostic("RK609", title, help=("leave out --in-place, and name an output: -o OUT",)))


def name_source(source: SourceLike, reader: Reader) -> str:
    """Return the names of the files that were read, each with its prefix, for the metadata of what is made of it."""
    if not isinstance(reader, JoinedReader):
        return list_parts(source)[0].first.name
    names = ((member.prefix, member.reader.path.name) for member in reader.members)
    return ", ".join(f"{prefix}={name}" if prefix else name for prefix, name in names)
