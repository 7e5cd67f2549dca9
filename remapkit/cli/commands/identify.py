"""`remapkit identify`: the layout of a checkpoint."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.identify import describe_layout, dump_identification, identify
from remapkit.cli.arguments import get_reading_options
from remapkit.cli.render import CommandOutcome


def run(args: Namespace) -> CommandOutcome:
    """Say which layout a checkpoint has; an unknown one fails."""
    found = identify(args.checkpoint, root=args.root, **get_reading_options(args))
    return CommandOutcome(
        data={"checkpoint": found.name, "tensors": found.tensors, **dump_identification(found)},
        text=tuple(describe_layout(found)),
        diagnostics=found.diagnostics,
        failed=not found.ok,
    )
