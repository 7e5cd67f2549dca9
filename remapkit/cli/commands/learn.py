"""`remapkit learn`: a rule file derived from two checkpoints that hold the same weights, or from written pairs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from remapkit.api.learn import learn
from remapkit.api.learn_through import learn_through
from remapkit.authoring.learn import Learned
from remapkit.cli.arguments import get_reading_options, make_option_error, parse_model_args
from remapkit.cli.progress import show_progress
from remapkit.cli.render import CommandOutcome
from remapkit.diagnostics.wording import count_noun


def run(args: Namespace) -> CommandOutcome:
    """Derive a rule file that maps the keys of A to those of B, or that does what a converter does."""
    if args.through is not None:
        return _run_through(args)
    _refuse_options(args, {"--from": args.source, "--arg": args.arg, "--root": args.root}, "needs --through")
    if args.b is None:
        help = (
            "pass two checkpoints with the same weights: A B",
            "or a converter: --through py:module:function --from A",
        )
        raise make_option_error("learn needs two checkpoints, or a converter", *help)
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


def _run_through(args: Namespace) -> CommandOutcome:
    given = {"A": args.a, "--more-a": args.more_a, "--more-b": args.more_b, "--pairs": args.pairs}
    _refuse_options(args, {**given, "--root-a": args.root_a, "--root-b": args.root_b}, "does not go with --through")
    if not args.source:
        help = ("name the checkpoint or the manifest that it converts: --from FILE",)
        raise make_option_error("--through needs --from", *help)
    with show_progress(lambda: f"running {args.through}") as bar:
        report = learn_through(
            args.through,
            args.source,
            None if args.output == "-" else Path(args.output or f"{args.name or 'learned'}.yaml"),
            arg=parse_model_args(args.arg, "--arg"),
            name=args.name,
            root=args.root,
            **get_reading_options(args),
            force=args.force,
            progress=bar,
        )
    found = {name: list(getattr(report, name)) for name in ("vanished", "kept", "constant", "unstable", "added")}
    collisions = {target: list(fqns) for target, fqns in report.collisions.items()}
    data = {**_dump_learned(report.learned), "collisions": collisions, **found}
    if report.output is None:
        return CommandOutcome(data={"text": report.text, **data}, raw=report.text, diagnostics=report.diagnostics)
    output = report.output
    return CommandOutcome(
        data={"output": str(output), **data},
        text=(
            f"ran {args.through}: {count_noun(len(report.source), 'key')} became {len(report.target)}",
            f"wrote {output} with its manifests: {report}; proven for all keys, and run on the same values",
            f"next: review it; `remapkit lint {output}` and `remapkit test {output}` check it again",
        ),
        diagnostics=report.diagnostics,
    )


def _refuse_options(args: Namespace, given: dict[str, object], why: str) -> None:
    wrong = [option for option, value in given.items() if value]
    if wrong:
        raise make_option_error(f"{wrong[0]} {why}")


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
        "reasons": dict(learned.reasons),
        "relations": [
            {"sources": list(each.sources), "targets": list(each.targets), "by": each.by, "rounded": each.rounded}
            for each in learned.relations
        ],
    }


def _group_undecided(learned: Learned) -> list[dict[str, object]]:
    """Group keys by their candidates: thousands of constant tensors may all have the same thousands of candidates."""
    together: dict[int, list[str]] = {}
    for fqn, others in learned.undecided.items():
        together.setdefault(id(others), []).append(fqn)
    return [{"keys": fqns, "candidates": list(learned.undecided[fqns[0]])} for fqns in together.values()]
