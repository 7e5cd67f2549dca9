"""A progress bar on a terminal: bytes, rate and time left. Silent and free of cost in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from remapkit.diagnostics.wording import escape_line

Advance = Callable[[int, int], None]
"""`advance(done, total)`, both in bytes."""


@contextmanager
def show_progress(title: Callable[[], str]) -> Iterator[Advance | None]:
    """Show a bar on stderr from the first call to the end of the block; None if stderr is not a terminal."""
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
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)

    def advance(done: int, total: int) -> None:
        if not bar.tasks:
            bar.start()
            bar.add_task(escape_line(title()), total=None)
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield advance
    finally:
        bar.stop()
