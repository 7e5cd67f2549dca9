"""Imports torch from another directory where the working directory was deleted.

oneMKL reads the working directory while torch loads it, and ends the process if it was deleted. Everything else stays
in the deleted directory: a relative path must fail, not open a file in another directory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def import_in_root(name: str) -> None:
    """Make a later import of a module run in the root directory; do nothing if it is imported already."""
    if name not in sys.modules and not any(
        isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder(name))


class _Finder(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's usual spec with our loader; None for any other module."""
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """A loader that runs the module in the root directory, and otherwise delegates to the real one."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with the real loader."""
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module in the root directory."""
        with _enter_root():
            self._real.exec_module(module)


@contextlib.contextmanager
def _enter_root() -> Iterator[None]:
    # A deleted directory can still be opened, and entered again.
    back = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(back)
        os.close(back)
