"""`remapkit learn`: a rule file derived from two checkpoints that hold the same weights, or from written pairs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from remapkit.api.learn import learn
from remapkit.authoring.learn import Learned
from remapkit.cli.arguments import get_reading_options
from remapkit.cli.render import CommandOutcome


def run(args: Namespace) -> CommandOutcome:
    """Derive a rule file that maps the keys of A to those of B."""
    report = learn(
        [args.a, *args.more_a],
        [args.b, *args.more_b],
        None if args.output == "-" else Path(args.output or f"{args.name or 'learned'}.yaml"),
        name=args.name,
        pairs=args.pairs,
        root_a=args.root_a,
        root_b=args.root_b,
        **get_reading_options(args),
        force=args.force,
    )
    data = _dump_learned(report.learned)
    if report.output is None:
        return CommandOutcome(data={"text": report.text, **data}, raw=report.text, diagnostics=report.diagnostics)
    output = report.output
    return CommandOutcome(
        data={"output": str(output), **data},
        text=(
            f"wrote {output} with its manifests: {report}; proven for all keys",
            f"next: review it; `remapkit lint {output}` and `remapkit test {output}` check it again",
        ),
        diagnostics=report.diagnostics,
    )


def _dump_learned(learned: Learned) -> dict[str, object]:
    return {
        "pairs": dict(learned.pairs),
        "settled": {
            fqn: {"target": settled.target, "by": settled.by.name.lower()} for fqn, settled in learned.settled.items()
        },
        "undecided": _group_undecided(learned),
        "open_b": list(learned.open_b),
        "only_a": list(learned.only_a),
        "only_b": list(learned.only_b),
        "unsaid": dict(learned.unsaid),
        "relations": [
            {"sources": list(each.sources), "targets": list(each.targets), "by": each.by}
            for each in learned.relations
        ],
    }


def _group_undecided(learned: Learned) -> list[dict[str, object]]:
    """Group keys by their candidates: thousands of constant tensors may all have the same thousands of candidates."""
    together: dict[int, list[str]] = {}
    for fqn, others in learned.undecided.items():
        together.setdefault(id(others), []).append(fqn)
    return [{"keys": fqns, "candidates": list(learned.undecided[fqns[0]])} for fqns in together.values()]
