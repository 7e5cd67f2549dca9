"""`remapkit diff`: two checkpoints, key by key and value by value."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from remapkit.cli.commands.common import load_rules, open_sides
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.errors import FailedCheck
from remapkit.files.source_file import CHUNK
from remapkit.formats import Reader
from remapkit.formats.compare import Contents, Difference, compare
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.recorded import add_recorded_moves
from remapkit.plans.target_check import check_declared_target
from remapkit.tensors.families import find_families
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def run(args: Namespace) -> CommandOutcome:
    """Same keys, shapes, dtypes, values? Exit code 1 where not."""
    with ExitStack() as stack:
        a, b = open_sides(args, stack)
        plans = _plan_side(a, args.rules_a, args), _plan_side(b, args.rules_b, args)
        headers = [each.header() if plan is None else plan.target for each, plan in zip((a, b), plans, strict=True)]
        # A name that one side only records as tied is compared where the other side has it.
        names_a, names_b = headers[0].with_recorded(headers[1]), headers[1].with_recorded(headers[0])
        side_a, side_b = _remap_side(a, plans[0], names_a), _remap_side(b, plans[1], names_b)
        both = [fqn for fqn in names_a if fqn in names_b]
        differences = list(compare(side_a, side_b, [(fqn, fqn) for fqn in both]))
    only_a = [fqn for fqn in names_a if fqn not in names_b]
    only_b = [fqn for fqn in names_b if fqn not in names_a]
    return _make_outcome(args, dict(zip(both, differences, strict=True)), only_a, only_b)


def _plan_side(reader: Reader, rules: str | None, args: Namespace) -> ResolvedPlan | None:
    if rules is None:
        return None
    rule_set = load_rules(rules, args)
    plan = make_plan(rule_set, reader.header())
    plan.raise_for_problems()
    # Keys that only one side has are what a difference shows; a target that does not exist is a fault of the rules.
    if problems := check_declared_target(rule_set, plan, partial=True).problems:
        raise FailedCheck(problems)
    return plan


def _remap_side(reader: Reader, plan: ResolvedPlan | None, names: StateDictSpec) -> Contents:
    """The checkpoint under these names, or what rules would make of it."""
    if plan is None:
        return _Named(reader, names)
    from remapkit.compute.remapped_reader import Remapped

    return Remapped(reader, add_recorded_moves(plan, names))


@dataclass(frozen=True, slots=True)
class _Named:
    """A checkpoint whose header has recorded names as keys too."""

    reader: Reader
    names: StateDictSpec

    def header(self) -> StateDictSpec:
        return self.names

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        return self.reader.chunks(fqn, size)


def _list_only_in(name: str, fqns: Sequence[str]) -> list[tuple[str, str]]:
    """Keys of one side as key families; JSON has every key."""
    header = StateDictSpec(dict.fromkeys(fqns, TensorSpec("U8", (0,))))
    return [
        (each.pattern, f"only in {name}" + (f" ({len(each.fqns)} keys)" if len(each.fqns) > 1 else ""))
        for each in find_families(header)
    ]


def _make_outcome(
    args: Namespace, differences: Mapping[str, Difference], only_a: Sequence[str], only_b: Sequence[str]
) -> CommandOutcome:
    worst = max((each.max_abs for each in differences.values() if each.max_abs is not None), default=0.0)
    same = sum(each.identical for each in differences.values())
    bad = {fqn: each for fqn, each in differences.items() if not each.is_within(args.tolerance)}
    rows = [(fqn, each.describe()) for fqn, each in differences.items() if not each.identical]
    rows += [*_list_only_in(args.a, only_a), *_list_only_in(args.b, only_b)]
    total = len(differences) + len(only_a) + len(only_b)
    text: list[str | TextTable] = [TextTable(("key", "difference"), tuple(rows))] if rows else []
    text.append(f"{same} of {total} tensors identical" + (f", max |Δ| = {worst:g}" if differences else ""))
    if only_a or only_b:
        text.append(f"{len(only_a)} only in {args.a}, {len(only_b)} only in {args.b}")
    if only_a and only_b and not (args.rules_a or args.rules_b):
        text.append("two layouts of one model? `--rules-a R` or `--rules-b R` remaps the keys of one side first")
    failed = bool(bad or only_a or only_b)
    return CommandOutcome(
        data={
            "identical": same,
            "total": total,
            "max_abs": worst,
            "only_a": list(only_a),
            "only_b": list(only_b),
            "differences": {fqn: each.describe() for fqn, each in differences.items() if not each.identical},
        },
        text=tuple(text),
        failed=failed,
    )
