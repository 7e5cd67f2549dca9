"""`remapkit recover`: a file whose rename in place was interrupted becomes what it was."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from remapkit.cli.render import CommandOutcome
from remapkit.files.errors import make_unreadable
from remapkit.write.execute import recover


def run(args: Namespace) -> CommandOutcome:
    """Restore the file from the journal beside it, to the byte."""
    path = Path(args.file)
    if not os.path.lexists(path):
        raise make_unreadable("RK400", f"no such file: {path}")
    restored = recover(path)
    words = "is restored: it is what it was before the rename" if restored else "has no journal: nothing to restore"
    return CommandOutcome(data={"file": str(path), "restored": restored}, text=(f"{path} {words}",))
