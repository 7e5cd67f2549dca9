"""Isolation of foreign code: a model's module and its constructor, a converter."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

_exit_process = os._exit
_called: list[int] | None = None
"""The codes with which the code that runs now wanted to end the process; None while none runs."""
_owner = 0
"""The process that it runs in."""


@contextlib.contextmanager
def isolate_guest() -> Iterator[None]:
    """Redirect the code's output to stderr, since it is not part of our result, and hide our command line from it.

    Raises `SystemExit` where it calls `os._exit`, which would end our process without a word: also if it handles
    that itself, and goes on.

    >>> with isolate_guest():
    ...     print("loading ...")
    """
    global _called, _owner
    arguments, sys.argv = sys.argv, sys.argv[:1]
    before, called = (_called, _owner, os._exit), list[int]()
    _called, _owner, os._exit = called, os.getpid(), _refuse_exit
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        if called:
            _raise_exit(called[0])
    finally:
        _called, _owner, os._exit = before
        sys.argv = arguments


def _refuse_exit(status: int) -> NoReturn:
    """Stand for `os._exit`: of a process that the code forked it is the usual end, as of us once the code is done."""
    if _called is None or os.getpid() != _owner:
        _exit_process(status)
    _called.append(status)
    _raise_exit(status)


def _raise_exit(status: int) -> NoReturn:
    raise SystemExit(f"it called os._exit({status!r}), which ends the process")
