"""Running somebody else's code: a model's module is imported and its constructor called, and neither is ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def isolate_guest() -> Iterator[None]:
    """What the code prints is no result of ours: it goes to stderr. Our command line is not its own.

    >>> with isolate_guest():
    ...     print("loading ...")
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
