"""`remapkit schema`: the JSON Schema of rule files."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.schema import schema
from remapkit.cli.render import CommandOutcome


def run(args: Namespace) -> CommandOutcome:
    """The JSON Schema of rule files."""
    return CommandOutcome(data={}, raw=schema())
