"""Messages through `logging`, for programs that use remapkit from Python: the logger is `remapkit`.

Whatever a function reports in its result's `diagnostics` is logged too: notes as INFO, warnings as WARNING, findings
that fail as ERROR. The command line prints diagnostics itself, and logs nothing.
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
    """Within the block nothing is logged: somebody else prints what there is to say."""
    token = _PRINTED.set(True)
    try:
        yield
    finally:
        _PRINTED.reset(token)


def log_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Log each diagnostic as one record, whose `diagnostic` is the object itself."""
    # Importing logging takes longer than most commands plan; where nobody has imported it, nobody listens.
    if _PRINTED.get() or "logging" not in sys.modules:
        return
    import logging

    logger = logging.getLogger("remapkit")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    levels = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.NOTE: logging.INFO}
    for diagnostic in diagnostics:
        logger.log(levels[diagnostic.severity], "%s", diagnostic, extra={"diagnostic": diagnostic})
