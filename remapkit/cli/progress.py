"""A progress bar on a terminal: bytes, rate and time left. Silent in a pipe, and then costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from remapkit.diagnostics.wording import escape_line

Advance = Callable[[int, int], None]
"""`advance(done, total)`, both in bytes."""


@contextmanager
def progress(title: str) -> Iterator[Advance | None]:
    """A bar on stderr for as long as the block runs; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape_line(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
