"""`remapkit convert`: a checkpoint in another layout, by a route of packs."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.convert import Converted, convert
from remapkit.cli.arguments import get_writing_options
from remapkit.cli.commands.apply import describe_writing, describe_written, dump_written
from remapkit.cli.progress import show_progress
from remapkit.cli.render import CommandOutcome


def run(args: Namespace) -> CommandOutcome:
    """Identify, find the route, prove, plan, check, write."""
    with show_progress(lambda: describe_writing(args)) as bar:
        converted = convert(
            args.checkpoint,
            args.to,
            args.output,
            via=args.via,
            from_layout=args.from_layout,
            with_files=args.with_files,
            **get_writing_options(args),
            progress=bar,
        )
    return describe_converted(converted, args)


def describe_converted(converted: Converted, args: Namespace) -> CommandOutcome:
    """Return the route, then what `apply` shows of a write."""
    written = describe_written(converted.written, args)
    copied = tuple(f"copied {path}" for path in converted.beside)
    return CommandOutcome(
        data={
            "from": converted.source,
            "to": converted.target,
            "route": converted.route,
            "files": [str(path) for path in converted.beside],
            **dump_written(converted.written, args),
        },
        text=(converted.route, *written, *copied),
        diagnostics=converted.diagnostics,
    )
