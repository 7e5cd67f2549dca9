"""`remapkit apply`: prove, plan, check, stream."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.cli.arguments import parse_target
from remapkit.cli.commands.common import load_rules, open_source, read_known_source, refuse_unproven
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.cli.sizes import parse_size
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.wording import count_noun, format_bytes, join_words
from remapkit.files.index_names import is_index
from remapkit.formats import Reader
from remapkit.models.target import read_target_header
from remapkit.plans.cast import cast_plan
from remapkit.plans.check import check_known_keys, make_check
from remapkit.plans.declared import Held, check_declared_target, skip_target_check
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan, collect_records
from remapkit.plans.moves import Move, describe_sources
from remapkit.write.apply import default_output, make_provenance, pause_collection, recover_file, sort_by_target
from remapkit.write.layout import split_ties

if TYPE_CHECKING:
    from remapkit.api.ruleset import RuleSet
    from remapkit.write.execute import Written


def run(args: Namespace) -> CommandOutcome:
    """Prove, plan, check, stream."""
    _check_usage(args)
    with pause_collection():
        return _apply_rules(args)


def _apply_rules(args: Namespace) -> CommandOutcome:
    rules = load_rules(args.rules, args)
    proven = tuple(finding for finding in refuse_unproven([rules], args) if finding.code != "RK205")
    source = Path(args.checkpoint)
    # Whoever asks to write the file anew asks for it whole; a reader only says what is wrong with it.
    restored = args.in_place and not args.dry_run and recover_file(source)
    with ExitStack() as stack:
        reader = stack.enter_context(open_source(source, args))
        plan = make_plan(rules, reader.header())
        if args.dtype is not None:
            plan = cast_plan(plan, args.dtype)
        held = _check_target(rules, plan, args)
        plan = held.check.plan if held.check else plan
        moves = sort_by_target(plan, held.check.target if held.check else None)
        if args.dry_run:
            return _add_findings(_describe_dry_run(plan, held, moves, reader), proven)
        job = Job(rules, plan, moves, reader, args, held)
        written = _rename_file(job) if args.in_place else _write_output(job)
    return _add_findings(_make_outcome(job, written, restored), proven)


def _add_findings(outcome: CommandOutcome, proven: tuple[Diagnostic, ...]) -> CommandOutcome:
    return replace(outcome, diagnostics=(*proven, *outcome.diagnostics))


def _check_usage(args: Namespace) -> None:
    """Refuse options that do not fit together before anything is read; raises `UsageError` (RK609, RK613)."""
    if args.output in ("", "-"):
        help = ("a checkpoint is written beside its final place and renamed: name a file",)
        raise UsageError(Diagnostic("RK609", f"-o {args.output!r} names no file", help=help))
    given = [
        option
        for option in ("output", "to_format", "shard_size", "verify", "untie", "force")
        if args.in_place and getattr(args, option)
    ]
    if given:
        names = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        verb = "does" if len(given) == 1 else "do"
        title = f"--in-place writes no other file and moves no data: {names} {verb} not go with it"
        raise UsageError(Diagnostic("RK609", title, help=("leave out --in-place, or the others",)))
    if args.no_target and (args.model or args.target_keys):
        option = "--model" if args.model else "--target-keys"
        raise UsageError(Diagnostic("RK609", f"--no-target and {option} contradict each other", help=("say one",)))
    if args.shard_size is not None:
        parse_size(args.shard_size)
    elif args.output is not None and is_index(Path(args.output).name):
        title = f"{args.output} is the name of an index of shards"
        raise UsageError(Diagnostic("RK609", title, help=("say how large they are: --shard-size 5GB",)))
    if args.output is not None:
        _check_format(args)


def _check_format(args: Namespace) -> None:
    """Raise `UnwritableOutput` (RK511) where the name of the output says no format, or another than `--to-format`."""
    from remapkit.files.errors import make_unwritable
    from remapkit.write.execute import KNOWN_SUFFIXES, choose_format

    shards = args.shard_size is not None
    format = choose_format(args.output, args.to_format, shards=shards)
    suffix = Path(args.output).suffix.lower()
    if suffix in KNOWN_SUFFIXES and choose_format(args.output) != format:
        title = f"{args.output} is a name for {choose_format(args.output)}, and --to-format says {format}"
        raise make_unwritable("RK511", title, help=("leave out --to-format, or give the file another suffix",))


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, proven and checked."""

    rules: RuleSet
    plan: ResolvedPlan
    moves: Sequence[Move]
    reader: Reader
    args: Namespace
    held: Held

    @property
    def metadata(self) -> dict[str, str]:
        """The source's own without what became a key (the output makes its own records), and where it comes from."""
        keys = self.plan.source
        kept = {name: value for name, value in self.reader.header().metadata.items() if name not in keys}
        return {**kept, **collect_records(self.plan), **make_provenance(self.rules, Path(self.args.checkpoint))}


def _check_target(rules: RuleSet, plan: ResolvedPlan, args: Namespace) -> Held:
    """Against the named target if there is one, else the declared one and the keys that the pack is known to read.

    Raises `FailedCheck` with everything that is wrong.
    """
    reference = parse_target(args)
    if reference is not None:
        held = Held(make_check(plan, read_target_header(reference), strict_dtype=args.strict_dtype), "exact")
        lacking: list[Diagnostic] = []
    else:
        known = read_known_source(rules)
        lacking = check_known_keys(plan, known) if known is not None and not args.partial else []
        # What lacks its sources is no target to be missed as well.
        partial = args.partial or bool(lacking) or bool(plan.problems)
        held = (
            skip_target_check(rules, unasked=True)
            if args.no_target
            else check_declared_target(rules, plan, partial=partial, strict_dtype=args.strict_dtype)
        )
    found = held.problems if held.check is not None else plan.problems
    if found or lacking:
        raise FailedCheck([*found, *lacking])
    return held


def _rename_file(job: Job) -> Written:
    from remapkit.write.execute import rename_in_place

    moves, recorded = split_ties(job.moves, job.plan.tied)
    return rename_in_place(moves, job.reader, metadata={**job.metadata, **recorded})


def _write_output(job: Job) -> Written:
    from remapkit.cli.progress import progress
    from remapkit.write.execute import execute

    args = job.args
    format = args.to_format or ("safetensors" if args.output is None else None)
    output = Path(args.output) if args.output else default_output(Path(args.checkpoint), f".{format}")
    with progress(f"writing {output.name}") as advance:
        return execute(
            job.moves,
            job.reader,
            output,
            format=format,
            metadata=job.metadata,
            shard_size=None if args.shard_size is None else parse_size(args.shard_size),
            tied=job.plan.tied,
            untie=args.untie,
            verify=args.verify,
            force=args.force,
            progress=advance,
        )


def _make_outcome(job: Job, written: Written, restored: bool) -> CommandOutcome:
    return CommandOutcome(
        data={
            # 50,000 moves as data are only made where they are printed.
            **(dump_plan(job.plan) if job.args.format == "json" else {}),
            "target": job.held.data(),
            "output": [str(path) for path in written.files],
            "tensors": written.tensors,
            "bytes": written.nbytes,
            "seconds": written.seconds,
            "how": list(written.how),
            "tied": dict(written.tied),
            "verified": written.verified,
            "shards_kept": written.kept,
        },
        text=(str(job.plan), *_describe_written(job, written, restored)),
        diagnostics=(*job.reader.notes, *job.plan.warnings, *job.held.notes),
    )


def _describe_written(job: Job, written: Written, restored: bool) -> Iterator[str]:
    if restored:
        yield f"{written.files[0]} was restored first: an earlier rename of it was interrupted"
    if written.kept:
        yield f"resume: {written.kept} of {len(written.files) - 1} shards kept"
    if job.args.in_place:
        yield f"renamed {written.tensors} tensors in {written.files[0]}"
        yield f"{format_bytes(written.nbytes)} written in {written.seconds:.2f} s; the data is where it was"
        return
    for path in written.files:
        yield f"wrote {path}"
    if written.tied:
        names = join_words((f"{other} = {kept}" for other, kept in written.tied.items()), 3)
        yield f"{len(written.tied)} tied names are recorded, not written ({names}); --untie writes copies"
    rate = format_bytes(written.nbytes / max(written.seconds, 1e-9))
    size = format_bytes(written.nbytes)
    yield f"{count_noun(written.tensors, 'tensor')}, {size} in {written.seconds:.2f} s ({rate}/s)"
    if written.verified:
        what = "what the rules make of the source" if any(move.ops for move in job.moves) else "the source's"
        yield f"ok: read back, all {written.tensors} tensors are {what}, byte for byte"


def _describe_dry_run(plan: ResolvedPlan, held: Held, moves: Sequence[Move], reader: Reader) -> CommandOutcome:
    rows = tuple((describe_sources(move), move.target, str(move.spec), _describe_rule(move)) for move in moves)
    rows += tuple((gone.fqn, "(dropped)", str(plan.source[gone.fqn]), gone.rule.id) for gone in plan.dropped)
    return CommandOutcome(
        data={**dump_plan(plan), "dry_run": True, "target": held.data()},
        text=(
            TextTable(("source", "target", "tensor", "rule"), rows),
            str(plan),
            *((str(held.check),) if held.check else ()),
            "nothing was written (--dry-run)",
        ),
        diagnostics=(*reader.notes, *plan.warnings, *held.notes),
    )


def _describe_rule(move: Move) -> str:
    """The rule, and what it does to the value."""
    return f"{move.rule.id} ({', '.join(op.name for op in move.ops)})" if move.ops else move.rule.id


def dump_plan(plan: ResolvedPlan) -> dict[str, Any]:
    """A plan as JSON."""
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
