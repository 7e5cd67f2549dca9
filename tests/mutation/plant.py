"""A pytest plugin: one module of the package is imported with a fault, and hypothesis always draws the same examples.

The environment names the module (`PLANTED_MODULE`) and a file with its source (`PLANTED_SOURCE`), which lies outside
the checkout: nothing in it is edited.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

# Without shrinking: that a test fails is enough. Without a database: a mutant's examples say nothing about the code.
settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)


class PlantedFinder(MetaPathFinder):
    """Finds the one module with the fault."""

    def __init__(self, module: str, source: Path) -> None:
        self.module, self.source = module, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.origin is not None
        spec.loader = PlantedLoader(compile(self.source.read_text(encoding="utf-8"), spec.origin, "exec"))
        return spec


class PlantedLoader(Loader):
    """Runs the source with the fault in place of the module's own."""

    def __init__(self, code: CodeType) -> None:
        self.code = code

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tables first, then properties: tables are faster, and the first failure ends the run."""
    items.sort(key=lambda item: is_hypothesis_test(getattr(item, "obj", None)))


if "PLANTED_MODULE" in os.environ:
    assert os.environ["PLANTED_MODULE"] not in sys.modules
    sys.meta_path.insert(0, PlantedFinder(os.environ["PLANTED_MODULE"], Path(os.environ["PLANTED_SOURCE"])))
