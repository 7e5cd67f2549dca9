"""`remapkit.diff`: two checkpoints compared, key by key and value by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from remapkit.api.adapter_options import AdapterOptions, open_below
from remapkit.api.follow import follow_adapter
from remapkit.api.inputs import Keys, Side, open_side
from remapkit.api.ruleset import Config, RuleSet, RulesLike, checked, resolve_rules
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.files.source_file import CHUNK
from remapkit.formats import Reader
from remapkit.formats.compare import Contents, Difference, compare
from remapkit.formats.options import ReadOptions, make_read_options
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.recorded import add_recorded_moves
from remapkit.plans.roots import find_target_prefix, settle_root, take_root
from remapkit.plans.target_check import check_declared_target
from remapkit.registry.identify import describe_layouts, hint_layout
from remapkit.sources.mounts import SourceLike
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Diff:
    """How two checkpoints differ: the `Difference` of every common key, and the keys that only one of them has.

    `diagnostics` are notes on what would make the keys of both the same.
    """

    differences: Mapping[str, Difference]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tolerance: float = 0.0
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        only = f"{len(self.only_a)} only in a, {len(self.only_b)} only in b"
        return f"{self.identical} of {self.total} tensors identical; {only}"

    @property
    def identical(self) -> int:
        """The number of tensors with equal dtype, shape and bytes."""
        return sum(difference.identical for difference in self.differences.values())

    @property
    def total(self) -> int:
        """The number of distinct keys in both."""
        return len(self.differences) + len(self.only_a) + len(self.only_b)

    @property
    def max_abs(self) -> float:
        """The largest |a - b| of any tensor whose shapes agree."""
        found = (difference.max_abs for difference in self.differences.values())
        return max((each for each in found if each is not None), default=0.0)

    @property
    def ok(self) -> bool:
        """Whether both have the same keys and shapes, and no difference of values exceeds the tolerance."""
        within = all(difference.is_within(self.tolerance) for difference in self.differences.values())
        return within and not self.only_a and not self.only_b


@checked
def diff(
    a: SourceLike,
    b: SourceLike,
    *,
    rules_a: RulesLike | None = None,
    rules_b: RulesLike | None = None,
    root_a: str | None = None,
    root_b: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
    tolerance: float = 0.0,
    adapter_format: str | None = None,
    fold_alpha: bool = False,
    alpha: float | None = None,
    base: Keys | None = None,
) -> Diff:
    """Compare two checkpoints: keys, shapes, dtypes and values.

    Args:
        a, b: The checkpoints, each one or several files; see `open_checkpoint`.
        rules_a, rules_b: Remap the keys of this side first.
        root_a, root_b: Where the state dict is in a checkpoint that holds several.
        strip, strict_pickle, allow_expand, follow_links: How both are read; see `open_checkpoint`.
        params, config: Values for the params of the rules; see `load`.
        tolerance: The largest |difference| that passes.
        adapter_format, fold_alpha, alpha, base: How an adapter that rules are for is read and named; see `apply`.

    Returns:
        `Diff`; its `ok` says whether they are the same.

    Raises:
        UnreadableCheckpoint: A checkpoint that cannot be read.
        UsageError, InvalidRules: Rules that do not exist or cannot be compiled.
        FailedCheck: Rules that do not fit their side.

    >>> import pathlib, tempfile, torch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> torch.save({"w": torch.zeros(2)}, folder / "a.pth")
    >>> torch.save({"w": torch.tensor([0.0, 0.5]), "b": torch.zeros(1)}, folder / "b.pth")
    >>> found = diff(folder / "a.pth", folder / "b.pth")
    >>> found.ok, found.max_abs, found.only_b
    (False, 0.5, ('b',))
    """
    options = make_read_options(None, strip, strict_pickle, allow_expand, follow_links)
    with ExitStack() as stack:
        rule_sets = [None if rules is None else resolve_rules(rules, params, config) for rules in (rules_a, rules_b)]
        adapters = AdapterOptions(base, adapter_format, fold_alpha, alpha)
        opened = [
            _open_side(stack, path, root, option, rules, options)
            for path, root, option, rules in zip(
                (a, b), (root_a, root_b), ("--root-a", "--root-b"), rule_sets, strict=True
            )
        ]
        if adapters.given and not any(rule_sets):
            title = f"{join_words(adapters.given)} needs the rules of a side: an adapter is compared as it is"
            raise UsageError(Diagnostic("RK609", title, help=("name them: --rules-a R or --rules-b R",)))
        sides = [
            _plan_side(reader, rules, root, replace(adapters, prefix=prefix))
            for (reader, prefix), rules, root in zip(opened, rule_sets, (root_a, root_b), strict=True)
        ]
        readers: Sequence[Reader] = [reader for reader, _ in sides]
        plans = [plan for _, plan in sides]
        headers = [
            reader.header() if plan is None else plan.target for reader, plan in zip(readers, plans, strict=True)
        ]
        # A name that one side only records as tied is compared if the other side has it.
        names_a, names_b = headers[0].with_recorded(headers[1]), headers[1].with_recorded(headers[0])
        side_a, side_b = _remap_side(readers[0], plans[0], names_a), _remap_side(readers[1], plans[1], names_b)
        both = [fqn for fqn in names_a if fqn in names_b]
        differences = list(compare(side_a, side_b, [(fqn, fqn) for fqn in both]))
    only_a = tuple(fqn for fqn in names_a if fqn not in names_b)
    only_b = tuple(fqn for fqn in names_b if fqn not in names_a)
    hints = tuple(_list_hints(names_a, names_b, rule_sets)) if only_a and only_b else ()
    log_diagnostics(hints)
    return Diff(dict(zip(both, differences, strict=True)), only_a, only_b, tolerance, hints)


def _list_hints(
    names_a: StateDictSpec, names_b: StateDictSpec, rules: Sequence[RuleSet | None]
) -> Iterator[Diagnostic]:
    """Yield which root, or else which packs, would make the names of the two sides the same."""
    for one, other, side, used in ((names_a, names_b, "b", rules[1]), (names_b, names_a, "a", rules[0])):
        prefix = (find_target_prefix(one, other) or ("", ""))[1]
        if prefix and used is None:
            root, count = prefix.removesuffix("."), count_noun(len(one), "key")
            title = f"all {count} of {one.name} are there in {other.name} under root {root!r}"
            yield Diagnostic("RK318", title, help=(f"--root-{side} {root}",), severity=Severity.NOTE)
            return
    for names, side, used in ((names_a, "a", rules[0]), (names_b, "b", rules[1])):
        if used is None and (layout := describe_layouts(names)) is not None:
            help = (f"--rules-{side} R remaps them first",)
            yield Diagnostic("RK318", layout, help=help, severity=Severity.NOTE, place=names.name)


def _open_side(
    stack: ExitStack,
    path: SourceLike,
    root: str | None,
    option: str,
    rules: RuleSet | None,
    options: ReadOptions,
) -> tuple[Reader, str | None]:
    """Open a side; the root may be the prefix of an adapter's modules, if there are rules for that."""

    def open(root: str | None) -> Reader:
        return stack.enter_context(
            open_side(Side(path, root, None if rules is None else rules.file), option, options)
        )

    return open_below(root, open) if rules is not None else (open(root), None)


def _plan_side(
    reader: Reader, rules: RuleSet | None, root: str | None, adapters: AdapterOptions
) -> tuple[Reader, ResolvedPlan | None]:
    """Return a side under its only root where its rules fit, if no other is named, and their plan."""
    if rules is None:
        return reader, None
    if (adapter := follow_adapter(rules, reader.header(), adapters, reader=reader)) is not None:
        plan = adapter.plan(reader.header(), reader.root)
        held = adapter.check(
            plan, None, lambda own, whole: check_declared_target(own, whole, partial=True), variants=True
        )
        if problems := held.problems or plan.problems:
            raise FailedCheck(problems)
        return reader, plan

    def plan_side(reader: Reader) -> tuple[RuleSet, ResolvedPlan]:
        return rules, make_plan(rules, reader.header(), reader.root)

    reader, planned = settle_root(root, rules, reader, reader.header(), plan_side, take_root)
    _, plan = planned or plan_side(reader)
    if plan.problems:
        raise FailedCheck(hint_layout(plan.problems, reader.header(), rules.name))
    # Keys of only one side are part of the result; a target that does not exist is a fault of the rules.
    if problems := check_declared_target(rules, plan, partial=True).problems:
        raise FailedCheck(problems)
    return reader, plan


def _remap_side(reader: Reader, plan: ResolvedPlan | None, names: StateDictSpec) -> Contents:
    """Return the checkpoint under these names, or the result of the rules for it."""
    if plan is None:
        return _Named(reader, names)
    from remapkit.compute.remapped_reader import Remapped

    return Remapped(reader, add_recorded_moves(plan, names))


@dataclass(frozen=True, slots=True)
class _Named:
    """A checkpoint whose header includes recorded names as keys."""

    reader: Reader
    names: StateDictSpec

    def header(self) -> StateDictSpec:
        return self.names

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        return self.reader.chunks(fqn, size)
