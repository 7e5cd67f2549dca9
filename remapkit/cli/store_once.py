"""An option that is given once: `--target-keys FILE`."""

from __future__ import annotations

import argparse
from typing import Any


class StoreOnce(argparse.Action):
    """Stores a file, and refuses a second one: it would replace the first without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: Any, option: Any = None
    ) -> None:
        if getattr(args, self.dest) is not None:
            parser.error(
                f"{option} takes one file or one mount PREFIX=FILE, got two: {getattr(args, self.dest)}, {value}"
            )
        setattr(args, self.dest, value)
