"""The commands: one module per command, with `run(args) -> CommandOutcome`. Nothing is printed here.

A command parses its arguments, calls the function of the same name in `api/`, and describes the result.
"""

from __future__ import annotations
