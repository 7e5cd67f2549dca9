"""`remapkit schema`: the JSON Schema of rule files."""

from __future__ import annotations

from argparse import Namespace

from remapkit.cli.render import Outcome
from remapkit.rulefile.read import schema_text


def run(args: Namespace) -> Outcome:
    """The JSON Schema of rule files."""
    return Outcome(data={}, raw=schema_text())
