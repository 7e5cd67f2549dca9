"""`remapkit diff`: compares two checkpoints key by key and value by value; shows the differences."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from remapkit.api.diff import diff
from remapkit.cli.arguments import get_adapter_options, get_param_options, get_reading_options
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import join_words
from remapkit.tensors.families import find_families
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def run(args: Namespace) -> CommandOutcome:
    """Compare keys, shapes, dtypes and values; exit code 1 if any differ."""
    found = diff(
        [args.a, *args.more_a],
        [args.b, *args.more_b],
        rules_a=args.rules_a,
        rules_b=args.rules_b,
        root_a=args.root_a,
        root_b=args.root_b,
        **get_reading_options(args),
        **get_adapter_options(args),
        **get_param_options(args),
        tolerance=args.tolerance,
    )
    name_a, name_b = (join_words(names, 2) for names in ([args.a, *args.more_a], [args.b, *args.more_b]))
    changed = {fqn: each.describe() for fqn, each in found.differences.items() if not each.identical}
    rows = [*changed.items(), *_list_only_in(name_a, found.only_a), *_list_only_in(name_b, found.only_b)]
    text: list[str | TextTable] = [TextTable(("key", "difference"), tuple(rows))] if rows else []
    largest = f", max |Δ| = {found.max_abs:g}" if found.differences else ""
    text.append(f"{found.identical} of {found.total} tensors identical{largest}")
    if found.only_a or found.only_b:
        text.append(f"{len(found.only_a)} only in {name_a}, {len(found.only_b)} only in {name_b}")
    if found.only_a and found.only_b and not (args.rules_a or args.rules_b or found.diagnostics):
        text.append("two layouts of one model? `--rules-a R` or `--rules-b R` remaps the keys of one side first")
    return CommandOutcome(
        data={
            "identical": found.identical,
            "total": found.total,
            "max_abs": found.max_abs,
            "only_a": list(found.only_a),
            "only_b": list(found.only_b),
            "differences": changed,
        },
        text=tuple(text),
        diagnostics=found.diagnostics,
        failed=not found.ok,
    )


def _list_only_in(name: str, fqns: Sequence[str]) -> list[tuple[str, str]]:
    """List the keys of one side as key families; JSON has every key."""
    header = StateDictSpec(dict.fromkeys(fqns, TensorSpec("U8", (0,))))
    return [
        (family.pattern, f"only in {name}" + (f" ({len(family.fqns)} keys)" if len(family.fqns) > 1 else ""))
        for family in find_families(header)
    ]
