"""The commands: one module each, with `run(args) -> Outcome`. Nothing is printed here."""

from __future__ import annotations
