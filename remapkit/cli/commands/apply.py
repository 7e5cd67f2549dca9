"""`remapkit apply`: proves, plans, checks, writes; shows the result as text and data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remapkit.api.apply import Written, apply
from remapkit.api.outputs import choose_outputs
from remapkit.cli.arguments import get_adapter_options, get_writing_options
from remapkit.cli.progress import show_progress
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun, format_bytes, join_words
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move, describe_sources


def run(args: Namespace) -> CommandOutcome:
    """Prove, plan, check, write."""
    with show_progress(lambda: describe_writing(args)) as bar:
        written = apply(
            args.rules,
            args.checkpoint,
            args.output,
            in_place=args.in_place,
            declared_target=not args.no_target,
            metadata_from=args.metadata_from,
            **get_writing_options(args),
            **get_adapter_options(args),
            progress=bar,
        )
    return CommandOutcome(
        data=dump_written(written, args), text=tuple(describe_written(written, args)), diagnostics=written.diagnostics
    )


def dump_written(written: Written, args: Namespace) -> dict[str, Any]:
    """Return what was written, or would be, as JSON data."""
    outputs = {str(path): len(names) for path, names in written.outputs.items()}
    target = {"checked": written.checked, "against": written.check.target.name if written.check else None}
    if args.dry_run:
        return {**dump_plan(written.plan), "dry_run": True, "target": target, "outputs": outputs}
    return {
        # 50,000 moves are converted to data only if they are printed.
        **(dump_plan(written.plan) if args.format == "json" else {}),
        "target": target,
        "output": [str(path) for path in written.files],
        "outputs": outputs,
        "beside": [str(path) for path in written.beside],
        "tensors": written.tensors,
        "bytes": written.nbytes,
        "seconds": written.seconds,
        "how": list(written.how),
        "tied": dict(written.tied),
        "verified": written.verified,
        "shards_kept": written.kept,
    }


def describe_written(written: Written, args: Namespace) -> Iterator[str | TextTable]:
    """Yield what was written, or after a dry run every move."""
    if args.dry_run:
        yield from _describe_dry_run(written)
        return
    yield str(written.plan)
    yield from _describe_written(written, in_place=getattr(args, "in_place", False))


def describe_writing(args: Namespace) -> str:
    outputs = choose_outputs(args.checkpoint, args.output, args.to_format)
    return f"writing {join_words((Path(str(mount.file)).name for mount in outputs), 2)}"


def _describe_written(written: Written, *, in_place: bool) -> Iterator[str]:
    if written.restored:
        yield f"{written.files[0]} was restored first: an earlier rename of it was interrupted"
    if written.kept:
        one = len(written.outputs) == 1
        files = f"{len(written.files) - 1} shards" if one else f"{len(written.files)} files"
        yield f"resume: {written.kept} of {files} kept"
    size = format_bytes(written.nbytes)
    if in_place:
        yield f"renamed {written.tensors} tensors in {written.files[0]}"
        yield f"only the header was rewritten ({size} in {written.seconds:.2f} s)"
        return
    for path in written.files:
        # The tensors of a file are counted below if it is the only output.
        number = written.outputs.get(path) if len(written.outputs) > 1 else None
        yield f"wrote {path}" + (f" ({count_noun(len(number), 'tensor')})" if number is not None else "")
    for path in written.beside:
        yield f"wrote {path}"
    if written.tied:
        names = join_words((f"{other} = {kept}" for other, kept in written.tied.items()), 3)
        yield f"{len(written.tied)} tied names are recorded, not written ({names}); --untie writes copies"
    rate = format_bytes(written.nbytes / max(written.seconds, 1e-9))
    yield f"{count_noun(written.tensors, 'tensor')}, {size} in {written.seconds:.2f} s ({rate}/s)"
    if written.verified:
        what = "what the rules make of the source" if any(move.ops for move in written.moves) else "the source's"
        yield f"ok: read back; all {written.tensors} tensors equal {what}, byte for byte"


def _describe_dry_run(written: Written) -> Iterator[str | TextTable]:
    plan, moves = written.plan, written.moves
    rows = tuple((describe_sources(move), move.target, str(move.spec), _describe_rule(move)) for move in moves)
    rows += tuple((gone.fqn, "(dropped)", str(plan.source[gone.fqn]), gone.rule.id) for gone in plan.dropped)
    yield TextTable(("source", "target", "tensor", "rule"), rows)
    yield str(plan)
    if written.check:
        yield str(written.check)
    yield from _describe_outputs(written)
    yield "nothing was written (--dry-run)"


def _describe_outputs(written: Written) -> Iterator[str]:
    """Say what several outputs would have."""
    if len(written.outputs) > 1:
        for path, names in written.outputs.items():
            yield f"{path}: {count_noun(len(names), 'tensor')}"


def _describe_rule(move: Move) -> str:
    """Return the rule, and its effect on the value."""
    return f"{move.rule.id} ({', '.join(op.name for op in move.ops)})" if move.ops else move.rule.id


def dump_plan(plan: ResolvedPlan) -> dict[str, Any]:
    """Return a plan as JSON data."""
    return {
        "rules": plan.name,
        "source": plan.source.name,
        "moves": [
            {
                "target": move.target,
                "sources": list(move.sources),
                "rule": move.rule.id,
                "ops": [op.name for op in move.ops],
                "dtype": move.spec.dtype,
                "shape": list(move.spec.shape),
            }
            for move in plan.moves
        ],
        "dropped": [{"fqn": gone.fqn, "rule": gone.rule.id} for gone in plan.dropped],
    }
