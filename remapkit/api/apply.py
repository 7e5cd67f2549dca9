"""`remapkit.apply`: prove, plan, check, then write a checkpoint under its new keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from remapkit.api.adapter_options import AdapterOptions, open_below
from remapkit.api.follow import FollowedAdapter, follow_adapter, refuse_beside_adapter
from remapkit.api.inputs import (
    Keys,
    NamedTarget,
    count_proven_params,
    refuse_partial_counts,
    refuse_unproven,
)
from remapkit.api.outputs import Writing, find_single_file, name_source
from remapkit.api.ruleset import Config, Plan, RuleSet, RulesLike, checked, resolve_rules
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, format_bytes
from remapkit.formats import Reader
from remapkit.formats.options import ReadOptions, make_read_options
from remapkit.plans.cast import cast_plan
from remapkit.plans.check import Check, check_known_keys, make_check
from remapkit.plans.layers import is_another_size
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.plans.roots import settle_root, take_root
from remapkit.plans.target_check import (
    TargetCheck,
    check_declared_target,
    report_contradictions,
    report_other_sizes,
    skip_target_check,
)
from remapkit.registry.identify import hint_layout
from remapkit.sources.declared import read_declared_source
from remapkit.sources.joined import refuse_contradictions
from remapkit.sources.mounts import Mount, SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec
from remapkit.write.apply import make_provenance, pause_collection, sort_by_target
from remapkit.write.execute import WrittenFiles, recover
from remapkit.write.outputs import (
    Output,
    OutputsLike,
    explain_prefixes,
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
    `restored` says that an interrupted rename of the file was undone first. `beside` is the config that was written
    beside an adapter. After a dry run `files` is empty.
    """

    plan: Plan
    moves: tuple[Move, ...]
    outputs: Mapping[Path, tuple[str, ...]]
    check: Check | None
    checked: str
    restored: bool = False
    beside: tuple[Path, ...] = ()
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
    adapter_format: str | None = None,
    fold_alpha: bool = False,
    alpha: float | None = None,
    base: Keys | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Prove the rules, plan, check, and write the checkpoint `source` under its new keys.

    If it is an adapter (LoRA) of the model that the rules are for, its rules are derived (docs/adapters.md).

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
        adapter_format: How an adapter is named: `peft`, `diffusers`, `kohya` or `comfy`; by default like the input.
        fold_alpha: Multiply the alphas of an adapter into its up matrices, each module's own alpha / LoRA rank.
        alpha: The alpha of all modules of an adapter, where the file has none.
        base: The model that an adapter is for: a checkpoint, a manifest, a header or `plugin.module:Class`.
            By default the manifest that the rules declare as their source. `root` names an adapter's model prefix.
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
    out = Writing(mounts, to_format, dry_run, in_place, shard_size, verify, untie, force, progress)
    named = NamedTarget(model, model_args, model_config, target_keys)
    _refuse_two_targets(named, declared_target)
    out.check_source(source)
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    adapters = AdapterOptions(base, adapter_format, fold_alpha, alpha)
    with pause_collection(), ExitStack() as stack:
        rule_set = resolve_rules(rules, params, config)
        findings = refuse_unproven([rule_set], allow_undecided=allow_undecided)
        # A reader refuses a partly renamed file; restore it only for a caller that changes the file anyway.
        restored = in_place and not dry_run and recover(find_single_file(source))
        reader, adapters = _open(stack, rule_set, source, options, adapters, metadata_from)
        provenance = make_provenance(rule_set, name_source(source, reader))
        names = reader.header()
        adapter = follow_adapter(rule_set, names, adapters, options, reader, allow_undecided=allow_undecided)
        if adapter is not None:
            refuse_beside_adapter({"in-place": in_place, "dtype": bool(dtype), "partial": partial}, names.name)
            out.require_output(source)
            rule_set, plan = adapter.rules, adapter.plan(names, reader.root)
        else:
            reader, rule_set, plan = _plan_source(rule_set, reader, root, partial, allow_undecided)
        plan = plan if dtype is None else cast_plan(plan, dtype)
        checking = _Checking(named, declared_target, partial, strict_dtype)
        held = checking.check(rule_set, plan, mounts, adapter)
        plan = held.check.plan if held.check else plan
        moves = sort_by_target(plan, held.check.target if held.check else None)
        outputs = out.divide(plan, moves, reader, source, provenance)
        texts, inputs = (adapter.texts, adapter.read) if adapter is not None else ({}, ())
        files, beside = out.write_with_texts(plan, moves, reader, outputs, texts, inputs)
    shared = () if untie else report_shared_ties(outputs, plan)
    derived = adapter.notes if adapter is not None else ()
    # The plan reports dead rules in its warnings too.
    said = (finding for finding in findings if finding.code != "RK205")
    diagnostics = (*said, *reader.notes, *derived, *report_plan(outputs, plan), *held.notes, *shared)
    log_diagnostics(diagnostics)
    written = _summarize(files, plan, moves, outputs, held, restored, diagnostics)
    return replace(written, beside=beside)


def _open(
    stack: ExitStack,
    rules: RuleSet,
    source: SourceLike,
    options: ReadOptions,
    adapters: AdapterOptions,
    metadata_from: str | Path | None,
) -> tuple[Reader, AdapterOptions]:
    """Open the source; the root may be the prefix of an adapter's modules, which is an option of the adapter then."""

    def open_below_root(root: str | None) -> Reader:
        own = replace(options, root=root)
        return stack.enter_context(open_source(source, own, rules=rules.file, metadata_from=metadata_from))

    reader, prefix = open_below(options.root, open_below_root)
    refuse_contradictions(reader)
    return reader, replace(adapters, prefix=prefix)


def _refuse_two_targets(named: NamedTarget, declared_target: bool) -> None:
    if named.option and not declared_target:
        title = f"--no-target and {named.option} contradict each other"
        raise UsageError(Diagnostic("RK609", title, help=("pass only one of them",)))


def _summarize(
    files: WrittenFiles,
    plan: ResolvedPlan,
    moves: tuple[Move, ...],
    outputs: Sequence[Output],
    held: TargetCheck,
    restored: bool,
    diagnostics: tuple[Diagnostic, ...],
) -> Written:
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


# -------------------------------------------------------------------------------------------------------- planning


def _plan_source(
    rules: RuleSet, reader: Reader, root: str | None, partial: bool, allow_undecided: bool
) -> tuple[Reader, RuleSet, ResolvedPlan]:
    """Return the checkpoint under its root, the rules with the params that are counted in it, and their plan."""
    if partial:
        refuse_partial_counts(rules, reader.header())

    def plan(reader: Reader) -> tuple[RuleSet, ResolvedPlan]:
        counted = count_proven_params(rules, reader.header(), allow_undecided=allow_undecided)
        return counted, make_plan(counted, reader.header(), reader.root)

    reader, planned = settle_root(root, rules, reader, reader.header(), plan, take_root, partial=partial)
    return reader, *(planned or plan(reader))


# -------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True, slots=True)
class _Checking:
    """What a plan is checked against, and how strictly."""

    named: NamedTarget
    declared_target: bool
    partial: bool
    strict_dtype: bool

    def check(
        self,
        rules: RuleSet,
        plan: ResolvedPlan,
        mounts: Sequence[Mount] | None,
        adapter: FollowedAdapter | None,
    ) -> TargetCheck:
        """Check against the named target, else the declared one and the keys that the pack is known to read.

        An adapter is checked against the part of that target which it changes.

        Raises `FailedCheck` with every problem; those of names say which outputs add prefixes to them.
        """
        try:
            return self._check_target(rules, plan) if adapter is None else self._check_adapter(adapter, plan)
        except FailedCheck as error:
            raise FailedCheck(explain_prefixes(mounts or (), error.diagnostics)) from None

    def _check_target(self, rules: RuleSet, plan: ResolvedPlan) -> TargetCheck:
        target, known = self.named.read(), read_declared_source(rules.file)
        lacking: list[Diagnostic] = []
        if target is not None:
            notes = tuple(report_contradictions(plan, known)) if known is not None else ()
            held = TargetCheck(make_check(plan, target, strict_dtype=self.strict_dtype), "exact", notes)
        else:
            lacking = check_known_keys(rules, plan, known) if known is not None and not self.partial else []
            # A target whose sources are missing is not reported as missing too.
            held = self._check_declared(rules, plan, self.partial or bool(lacking) or bool(plan.problems))
            if held.how == "no" and known is not None and is_another_size(plan.source, known):
                held = replace(held, notes=(*held.notes, *report_other_sizes(plan, known, None)))
        problems = held.problems if held.check is not None else plan.problems
        if problems or lacking:
            raise FailedCheck(hint_layout([*problems, *lacking], plan.source, rules.name))
        return held

    def _check_adapter(self, adapter: FollowedAdapter, plan: ResolvedPlan) -> TargetCheck:
        held = adapter.check(
            plan,
            self.named.read(),
            lambda own, whole: self._check_declared(own, whole, partial=True),
            variants=True,
        )
        if problems := held.problems if held.check is not None else plan.problems:
            raise FailedCheck(problems)
        return held

    def _check_declared(self, rules: RuleSet, plan: ResolvedPlan, partial: bool) -> TargetCheck:
        """Check against the declared target; a model of transformers or diffusers is built from its config."""
        if not self.declared_target:
            return skip_target_check(rules, "--no-target")
        target: StateDictSpec | str | None = None
        if rules.last.file.target is not None and rules.last.file.target.config is not None:
            from remapkit.models.target import read_config_target  # imports torch

            target = read_config_target(rules.last)
        if isinstance(target, str):
            return skip_target_check(rules, target)
        return check_declared_target(rules, plan, target=target, partial=partial, strict_dtype=self.strict_dtype)
