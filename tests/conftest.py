"""Settings for all tests: one thread per process, because pytest-xdist runs one process per core, and no deadlines.

Small convolutions are ten times slower if the threads of several processes wait for one another.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes are started, and each worker imports everything: without `__pycache__` each compiles it again.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

import pytest
from hypothesis import HealthCheck, settings

from tests import strict_skips

# Thousands of tests and the modules of torch live on the heap: looking for cycles among them was a fifth of the time.
gc.set_threshold(50_000, 20, 50)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs with Ctrl-C ignored, and processes that the tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("remapkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remapkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips", action="store_true", help="fail for a skip that tests/strict_skips.py does not allow"
    )


def pytest_configure(config: pytest.Config) -> None:
    _isolate_cache(config)
    if strict_skips.wanted(config):
        config.pluginmanager.register(strict_skips.StrictSkips(), "strict-skips")


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: the collector need not look at it again."""
    gc.collect()
    gc.freeze()


def _isolate_cache(config: pytest.Config) -> None:
    """Keep what tests say about packs out of the user's cache: they, and every process they start, share a new one.

    The processes of pytest-xdist inherit the variable from the one that starts them, which removes the folder.
    """
    if hasattr(config, "workerinput"):
        return
    before, folder = os.environ.get("REMAPKIT_CACHE"), tempfile.mkdtemp(prefix="remapkit-tests-")
    os.environ["REMAPKIT_CACHE"] = folder

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("REMAPKIT_CACHE")
        os.environ.update({"REMAPKIT_CACHE": before} if before is not None else {})

    config.add_cleanup(restore)


@pytest.fixture
def work() -> Callable[[Callable[[], object]], int]:
    """Counts the Python and C functions called during a call: a measure that the machine's load does not change."""

    def count(do: Callable[[], object]) -> int:
        calls = 0

        def seen(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        before = sys.getprofile()
        sys.setprofile(seen)
        try:
            do()
        finally:
            sys.setprofile(before)
        return calls

    return count
