"""The commands: one module each, with `run(args) -> CommandOutcome`. Nothing is printed here.

Each parses its arguments, calls the function of its name in `api/`, and describes the result.
"""

from __future__ import annotations
