"""`io_kit` and `nursery` are importable from the tests beside them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import remapkit

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a filesystem: flushing it to the disk takes no time."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="remapkit-test-") as folder:
        yield Path(folder)


@pytest.fixture
def keep() -> remapkit.RuleSet:
    """Rules that keep every key."""
    return remapkit.loads("remapkit: 1\nname: keep\nunmatched: keep\nkeep: ['{all:**}']\n")
