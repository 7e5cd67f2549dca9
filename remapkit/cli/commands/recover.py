"""`remapkit recover`: restores a file after an interrupted rename in place."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from remapkit.api.recover import recover
from remapkit.cli.render import CommandOutcome


def run(args: Namespace) -> CommandOutcome:
    """Restore the file byte for byte from the journal next to it."""
    path = Path(args.file)
    restored = recover(path)
    words = "was restored to what it was before the rename" if restored else "has no journal; nothing to restore"
    return CommandOutcome(data={"file": str(path), "restored": restored}, text=(f"{path} {words}",))
