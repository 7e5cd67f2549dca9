"""`os._exit` of foreign code is an error, of everything else what it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest

from remapkit.models.isolation import isolate_guest

END = os._exit
RAISED, PASSED, OTHER = 41, 42, 43
WHAT = "it called os._exit({}), which ends the process"


def run(code: Callable[[], object], said: str = "") -> int:
    """Run foreign code in a process of its own, which a fault would end, and return how that ends."""
    child = os.fork()
    if not child:
        status = OTHER
        try:
            with isolate_guest():
                code()
            status = PASSED
        except SystemExit as error:
            status = RAISED if str(error) == said else OTHER
        finally:
            END(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end_by_name() -> None:
    from os import _exit

    _exit(3)


def end() -> None:
    os._exit(0)


def go_on() -> None:
    with contextlib.suppress(BaseException):
        os._exit(0)


def nest() -> None:
    with isolate_guest():
        os._exit(4)


def fork() -> None:
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(("code", "status"), [(end, 0), (end_by_name, 3), (go_on, 0), (nest, 4)])
def test_foreign_code_ends_no_process(code: Callable[[], object], status: int) -> None:
    assert run(code, WHAT.format(status)) == RAISED


def test_other_code_is_as_it_was() -> None:
    assert run(lambda: None) == run(fork) == PASSED
    assert run(lambda: exec("raise SystemExit('away')"), "away") == RAISED


def test_afterwards_the_process_ends_as_before() -> None:
    with pytest.raises(SystemExit), isolate_guest():
        from os import _exit

        raise SystemExit
    assert os._exit is END
    child = os.fork()
    if not child:
        try:
            _exit(5)
        finally:
            END(OTHER)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
