"""Messages through `logging`, for programs that use remapkit from Python: the logger is `remapkit`.

All `diagnostics` in the result of a function are also logged: notes as INFO, warnings as WARNING, failures as ERROR.
The command line prints diagnostics itself and logs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from remapkit.diagnostics.diagnostic import Diagnostic, Severity

_PRINTED = ContextVar("printed", default=False)


@contextmanager
def log_nothing() -> Iterator[None]:
    """Log nothing within the block: the caller prints the diagnostics."""
    token = _PRINTED.set(True)
    try:
        yield
    finally:
        _PRINTED.reset(token)


def log_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Log each diagnostic as one record, with the object as its attribute `diagnostic`."""
    # Importing logging takes longer than most commands take to plan; if it is not imported, there are no handlers.
    if _PRINTED.get() or "logging" not in sys.modules:
        return
    import logging

    logger = logging.getLogger("remapkit")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    levels = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.NOTE: logging.INFO}
    for diagnostic in diagnostics:
        logger.log(levels[diagnostic.severity], "%s", diagnostic, extra={"diagnostic": diagnostic})
