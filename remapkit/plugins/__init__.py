"""The package of the plugins: `remapkit.plugins.wan.vae` is the module that `wan.vae:WanVAE` names.

A plugin named `wan` is never importable as `wan`: upstream's own package has that name, and both must work side by
side. In a checkout the plugins lie in `plugins/` at its top; an installed remapkit has them in this folder.

The package is callable: `remapkit.plugins()` lists the plugins, as it did when it was a function only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remapkit.registry.installed import Plugin

_CHECKOUT = Path(__file__).parent.parent.parent

# A checkout has a pyproject.toml: a stray `plugins` folder in site-packages belongs to somebody else.
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "plugins").is_dir():
    __path__ = [*__path__, str(_CHECKOUT / "plugins")]


class _Plugins(ModuleType):
    """A module that can be called."""

    def __call__(self) -> tuple[Plugin, ...]:
        """Every installed plugin; see `remapkit.registry.installed.plugins`."""
        from remapkit.registry.installed import plugins

        return plugins()


sys.modules[__name__].__class__ = _Plugins
