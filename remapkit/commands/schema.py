"""`remapkit schema`: the JSON Schema of rule files."""

from __future__ import annotations

from argparse import Namespace

from remapkit.report import Outcome
from remapkit.rulefile import schema_text


def run(args: Namespace) -> Outcome:
    """The JSON Schema of rule files."""
    return Outcome(data={}, raw=schema_text())
