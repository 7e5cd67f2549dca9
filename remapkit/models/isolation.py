"""Isolation of code that is not ours: a model's module and its constructor."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def isolate_guest() -> Iterator[None]:
    """Send what the code prints to stderr, as it is not a result of ours, and hide our command line from it.

    >>> with isolate_guest():
    ...     print("loading ...")
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
