"""Isolation of foreign code: a model's module and its constructor."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def isolate_guest() -> Iterator[None]:
    """Redirect the code's output to stderr, since it is not part of our result, and hide our command line from it.

    >>> with isolate_guest():
    ...     print("loading ...")
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
