"""The installed rule packs and plugins, found by name.

Packs are YAML files in `rules/` of a checkout, in the copy inside an installed remapkit, and in the `rules` folder of
any plugin. Plugins are packages named by entry points of the group `remapkit.plugins`, or folders of
`plugins/`, imported as `remapkit.plugins.<name>`. Two packs or plugins with one name are an error that shows both
places.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import MissingFile, UnreadableCheckpoint, UsageError
from remapkit.diagnostics.wording import suggest_name
from remapkit.files.strict_json import read_json_file

GROUP = "remapkit.plugins"
"""The entry-point group of plugins: `wan = "my_package"` makes `wan.vae` mean the module `my_package.vae`."""


_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin: its name, the package it is imported as, and its folder (None if it has none)."""

    name: str
    package: str
    folder: Path | None
    origin: str


@dataclass(frozen=True, slots=True)
class PackFile:
    """A rule pack: a rule file, named after the file, and where it comes from."""

    name: str
    path: Path
    origin: str


def find_home(folder: str) -> Path | None:
    """Return the folder `rules` or `plugins` of this remapkit: the checkout's, else the installed copy."""
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / folder).is_dir():
        return checkout / folder
    bundled = _PACKAGE / ("plugins" if folder == "plugins" else "_bundled/rules")
    return bundled if bundled.is_dir() else None


def plugins() -> tuple[Plugin, ...]:
    """Return every plugin, sorted by name; two with the same name are a `UsageError`.

    >>> [plugin.package for plugin in plugins() if plugin.name == "wan"]
    ['remapkit.plugins.wan']
    """
    ordered = sorted((*_list_folder_plugins(), *_list_entry_point_plugins()), key=lambda plugin: plugin.name)
    for one, other in pairwise(ordered):
        if one.name == other.name:
            raise UsageError(
                Diagnostic(
                    "RK602",
                    f"two plugins are named {one.name!r}",
                    notes=(f"{one.origin}\n{other.origin}",),
                    help=("uninstall one of them",),
                )
            )
    return tuple(ordered)


def _list_folder_plugins() -> Iterator[Plugin]:
    folder = find_home("plugins")
    for path in sorted(folder.iterdir()) if folder else ():
        if (path / "__init__.py").is_file():
            yield Plugin(path.name, f"remapkit.plugins.{path.name}", path, str(path))


def _list_entry_point_plugins() -> Iterator[Plugin]:
    if not _may_name_plugins():
        return
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else "an unknown distribution"
        yield Plugin(point.name, point.value, find_folder(point.value), f"{point.value} ({distribution})")


def _may_name_plugins() -> bool:
    """Say whether an installed distribution may have an entry point of our group; only a "no" is certain.

    `importlib.metadata` takes 25 ms to import and reads the same files again to parse them. It still decides what a
    plugin is, and where a distribution may be that is not in a folder of `sys.path`: in an archive, or where a finder
    of another kind looks.
    """
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return True
    return any(_mentions_group(place) for place in sys.path)


def _mentions_group(place: str) -> bool:
    """Say whether a folder of distributions mentions our group, or is a file, which only its finder can read.

    There may be hundreds of distributions: their names are joined as text, because each `Path` takes as long again.
    """
    try:
        infos = [name for name in os.listdir(place or ".") if name.lower().endswith("-info")]  # noqa: PTH208
    except OSError:
        return Path(place).is_file()
    group = GROUP.encode()
    for name in infos:
        with suppress(OSError), open(f"{place or '.'}/{name}/entry_points.txt", "rb") as file:  # noqa: PTH123
            if group in file.read():  # most distributions have no such file
                return True
    return False


def find_folder(package: str) -> Path | None:
    """Find the folder of a package without importing it; None if there is none, which is reported on use."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def packs() -> tuple[PackFile, ...]:
    """Return every installed pack, sorted by name.

    >>> "wan22_pth" in [pack.name for pack in packs()]
    True
    """
    return tuple(sorted(_list_packs(), key=lambda pack: (pack.name, pack.origin)))


def _list_packs() -> Iterator[PackFile]:
    yield from _list_folder_packs(find_home("rules"), "remapkit")
    for plugin in plugins():
        if plugin.folder is not None:
            yield from _list_folder_packs(plugin.folder / "rules", f"plugin {plugin.name}")


def _list_folder_packs(folder: Path | None, origin: str) -> Iterator[PackFile]:
    if folder is None or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in (".yaml", ".yml"):
            yield PackFile(path.stem, path, origin)


def find_rules(name_or_path: str | Path) -> Path:
    """Find the rule file of a name or a path: a path if it looks like one or exists, else a pack's name."""
    text = str(name_or_path)
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or "/" in text or path.is_file():
        return path
    named = [pack for pack in packs() if pack.name == text]
    if len(named) == 1:
        return named[0].path
    if named:
        places = "\n".join(f"{pack.path} ({pack.origin})" for pack in named)
        title = f"two packs are named {text!r}" if len(named) == 2 else f"{len(named)} packs are named {text!r}"
        raise UsageError(Diagnostic("RK602", title, notes=(places,), help=("name one by its path",)))
    if path.is_dir():
        help = "name the rule files in it, or the packs that you mean"
        raise UsageError(Diagnostic("RK601", f"{text} is a directory, not a rule file", help=(help,)))
    names = [pack.name for pack in packs()]
    help = suggest_name(text, names, f"installed packs: {', '.join(names) or 'none'}")
    raise MissingFile(Diagnostic("RK601", f"there is no rule file and no pack named {text!r}", help=(help,)))


def read_user_json(path: Path) -> Any:
    """Read a small JSON file that the user named; raises `UsageError` (RK611)."""
    try:
        return read_json_file(path)
    except UnreadableCheckpoint as error:
        (one,) = error.diagnostics
        title = one.title if str(path) in one.title else f"{path}: {one.title}"
        kind = MissingFile if isinstance(error, FileNotFoundError) else UsageError
        raise kind(Diagnostic("RK611", title, help=one.help)) from None


def add_current_folder() -> None:
    """Make modules of the current folder importable, as `python -m` does: a model is often a file there."""
    try:
        folder = str(Path.cwd())
    except OSError:  # a deleted folder contains no modules
        return
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
