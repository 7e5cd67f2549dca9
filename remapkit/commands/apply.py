"""`remapkit apply`: prove, plan, check, stream."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.casting import with_dtype
from remapkit.check import Check, known_keys_problem, make_check
from remapkit.checkpoint import Reader
from remapkit.commands.common import known_source, load_rules, open_source, refuse_unproven
from remapkit.diagnostic import Diagnostic, FailedCheck, UsageError
from remapkit.library import version
from remapkit.plan import Move, Plan, from_where, make_plan
from remapkit.report import Outcome, Table, human_bytes
from remapkit.spec import StateDictSpec
from remapkit.targets import TargetRef, target_header

if TYPE_CHECKING:
    from remapkit.rules import RuleSet


def run(args: Namespace) -> Outcome:
    """Prove, plan, check, stream."""
    if args.output in ("", "-"):
        help = ("a checkpoint is written beside its final place and renamed: name a file",)
        raise UsageError(Diagnostic("RK609", f"-o {args.output!r} names no file", help=help))
    rules = load_rules(args.rules, args)
    proven = tuple(finding for finding in refuse_unproven([rules], args) if finding.code != "RK205")
    source = Path(args.checkpoint)
    with ExitStack() as stack:
        reader = stack.enter_context(open_source(source, args))
        plan = make_plan(rules, reader.header())
        if args.dtype is not None:
            plan = with_dtype(plan, args.dtype)
        check = _check(rules, plan, args)
        moves = in_target_order(plan, check.target if check else None)
        if args.dry_run:
            return _with(_dry_run(plan, check, moves, reader), proven)
        output = Path(args.output) if args.output is not None else default_output(source)
        return _with(_write(rules, plan, moves, reader, output, args), proven)


def _with(outcome: Outcome, proven: tuple[Diagnostic, ...]) -> Outcome:
    return replace(outcome, diagnostics=(*proven, *outcome.diagnostics))


def _check(rules: RuleSet, plan: Plan, args: Namespace) -> Check | None:
    """Against the named target if there is one, else against the keys that the pack is known to read."""
    reference = TargetRef.from_arguments(args)
    if reference is not None:
        check = make_check(plan, target_header(reference), strict_dtype=args.strict_dtype)
        check.raise_for_problems()
        return check
    known = known_source(rules)
    lacking = known_keys_problem(plan, known) if known is not None and not args.partial else []
    if plan.problems or lacking:
        raise FailedCheck([*plan.problems, *lacking])
    return None


def in_target_order(plan: Plan, target: StateDictSpec | None) -> tuple[Move, ...]:
    """The moves in the order of the target's names where it is known, else of the source's."""
    if target is None:
        return plan.moves
    order = {fqn: number for number, fqn in enumerate(target)}
    return tuple(sorted(plan.moves, key=lambda move: order.get(move.target, len(order))))


def default_output(source: Path) -> Path:
    """`ckpt.pth` -> `ckpt.safetensors`; shards and folders have no such name, so one must be given."""
    if source.is_dir() or source.name.endswith(".index.json"):
        raise UsageError(
            Diagnostic(
                "RK609", f"where should the remapped shards of {source} go?", help=("name a file with -o OUT",)
            )
        )
    return source.with_suffix(".safetensors")


def provenance(rules: RuleSet, source: Path) -> dict[str, str]:
    """What the written file says about where it comes from. No time: the same input gives the same bytes."""
    return {
        "remapkit.rules": rules.name,
        "remapkit.digest": rules.digest,
        "remapkit.source": source.name,
        "remapkit.version": version(),
    }


def _write(
    rules: RuleSet, plan: Plan, moves: Sequence[Move], reader: Reader, output: Path, args: Namespace
) -> Outcome:
    from remapkit.execute import execute
    from remapkit.progress import progress

    metadata = {**plan.source.metadata, **provenance(rules, Path(args.checkpoint))}
    started = time.monotonic()
    with progress(f"writing {output.name}") as advance:
        written = execute(
            moves, reader, output, metadata=metadata, tied=plan.tied, force=args.force, progress=advance
        )
    seconds = time.monotonic() - started
    rate = human_bytes(written.nbytes / max(seconds, 1e-9))
    return Outcome(
        data={
            **plan_data(plan),
            "output": [str(path) for path in written.files],
            "bytes": written.nbytes,
            "seconds": seconds,
        },
        text=(
            str(plan),
            *(f"wrote {path}" for path in written.files),
            f"{len(moves)} tensors, {human_bytes(written.nbytes)} in {seconds:.2f} s ({rate}/s)",
        ),
        diagnostics=(*reader.notes, *plan.warnings),
    )


def _dry_run(plan: Plan, check: Check | None, moves: Sequence[Move], reader: Reader) -> Outcome:
    rows = tuple((from_where(move), move.target, str(move.spec), move.rule.id) for move in moves)
    rows += tuple((gone.fqn, "(dropped)", str(plan.source[gone.fqn]), gone.rule.id) for gone in plan.dropped)
    return Outcome(
        data={**plan_data(plan), "dry_run": True},
        text=(
            Table(("source", "target", "tensor", "rule"), rows),
            str(plan),
            *((str(check),) if check else ()),
            "nothing was written (--dry-run)",
        ),
        diagnostics=(*reader.notes, *plan.warnings),
    )


def plan_data(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {
        "rules": plan.name,
        "source": plan.source.name,
        "moves": [
            {
                "target": move.target,
                "sources": list(move.sources),
                "rule": move.rule.id,
                "dtype": move.spec.dtype,
                "shape": list(move.spec.shape),
            }
            for move in plan.moves
        ],
        "dropped": [{"fqn": gone.fqn, "rule": gone.rule.id} for gone in plan.dropped],
    }
