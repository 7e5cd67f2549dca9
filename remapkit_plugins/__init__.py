"""The namespace that plugins kept as folders are imported under: `remapkit_plugins.<plugin>.<module>`.

A plugin named `wan` is never importable as `wan`: upstream's own package has that name, and both must work side by
side. The folders are `plugins/` of a checkout and the copy inside an installed remapkit.
"""

from __future__ import annotations

from pathlib import Path

import remapkit

_PACKAGE = Path(remapkit.__file__).parent

__path__ = [
    str(folder)
    for folder in (_PACKAGE.parent / "plugins", _PACKAGE / "_bundled" / "plugins")
    # A checkout is told by its pyproject.toml: a stray `plugins` folder in site-packages is nobody's.
    if folder.is_dir() and (folder.parent != _PACKAGE.parent or (_PACKAGE.parent / "pyproject.toml").is_file())
]
