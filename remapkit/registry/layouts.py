"""The layouts that installed packs read and write, by what their `from:`, `to:` and manifests say.

Reading 50 packs and their manifests takes half a second, so what they say is kept in a file of the user's cache
folder. Invariant: an entry counts only while the time and size of every file that it was made of are unchanged; a
cache that cannot be read or written costs time and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.errors import RemapkitError
from remapkit.diagnostics.version import VERSION
from remapkit.registry.installed import PackFile, packs
from remapkit.tensors.families import mask_indices

if TYPE_CHECKING:
    from remapkit.diagnostics.source import Text
    from remapkit.rulefile.syntax import RuleFile

CACHE = f"layouts-2-{VERSION}.json"
"""The file of the cache; another version of remapkit has another one."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pack: the names of its layout, the names of its manifest with numbers left open, its manifest."""

    names: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    manifest: Path | None = None


@dataclass(frozen=True, slots=True)
class PackLayouts:
    """A pack with the layouts that it reads and writes."""

    pack: str
    path: Path
    source: Side
    target: Side


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout: its name, its other names, and the packs that read and write it."""

    name: str
    aliases: tuple[str, ...]
    read_by: tuple[str, ...]
    written_by: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def list_pack_layouts() -> tuple[PackLayouts, ...]:
    """Return the layouts of every installed pack that can be read, sorted by the packs' names.

    >>> [each.target.names for each in list_pack_layouts() if each.pack == "wan22_pth"]
    [('wan22-vae/grouped',)]
    """
    files = packs()
    return _read_packs(files, tuple(_stamp(pack.path) for pack in files))


def list_layouts(found: Iterable[PackLayouts] | None = None) -> tuple[Layout, ...]:
    """Return the layouts that packs name, sorted: names that one pack gives to one layout are one layout.

    >>> [str(layout) for layout in list_layouts() if layout.name.startswith("wan22")]
    ['wan22-vae/diffusers', 'wan22-vae/grouped', 'wan22-vae/upstream']
    """
    found = list_pack_layouts() if found is None else tuple(found)
    sides = [side for each in found for side in (each.source, each.target) if side.names]
    owner: dict[str, str] = {}  # a name -> the first name of its layout; ends, because each round joins two groups
    for side in sides:
        known = dict.fromkeys(owner[name] for name in side.names if name in owner)
        first = next(iter(known), side.names[0])
        owner = {name: first if kept in known else kept for name, kept in owner.items()}
        owner.update(dict.fromkeys(side.names, first))
    layouts = []
    for name in sorted(set(owner.values())):
        own = {each for each, kept in owner.items() if kept == name}
        reads = tuple(each.pack for each in found if own & set(each.source.names))
        writes = tuple(each.pack for each in found if own & set(each.target.names))
        layouts.append(Layout(name, tuple(sorted(own - {name})), reads, writes))
    return tuple(layouts)


def find_layout(name: str, layouts: Iterable[Layout]) -> Layout | None:
    """Return the layout of a name or of another name, None if there is none."""
    return next((each for each in layouts if name == each.name or name in each.aliases), None)


def find_targets(name: str) -> tuple[str, ...]:
    """Return the layouts that installed packs write of a layout; inverses and routes may reach more."""
    found = list_pack_layouts()
    layouts = list_layouts(found)
    readers = {each.pack for each in found if (own := find_layout(name, layouts)) and each.pack in own.read_by}
    return tuple(each.name for each in layouts if readers & set(each.written_by))


# ---------------------------------------------------------------------------------------------------- the cache

Stamp = tuple[str, int, int]
"""A file, its time and its size: both -1 if it is not there."""


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _read_packs(files: tuple[PackFile, ...], _changed: tuple[Stamp, ...]) -> tuple[PackLayouts, ...]:
    cached = _read_cache()
    entries: dict[str, Any] = {}
    found = []
    for pack in files:
        key = str(pack.path)
        entry = cached.get(key)
        try:
            made = _read_entry(pack, entry)
        except (KeyError, TypeError, ValueError, AttributeError):  # another program wrote it
            made = None
        if made is None:
            entry = _make_entry(pack)
            made = _read_entry(pack, entry)
        entries[key] = entry
        found += [made] if made is not None else []
    if entries != {key: cached.get(key) for key in entries}:
        _write_cache({**cached, **entries})
    return tuple(found)


def _read_entry(pack: PackFile, entry: Any) -> PackLayouts | None:
    """Return what an entry says; None if there is none, or a file that it was made of has changed."""
    if entry is None or any(_stamp(Path(path)) != (path, time, size) for path, time, size in entry["files"]):
        return None
    sides = (
        Side(
            tuple(map(str, each["names"])),
            frozenset(map(str, each["kinds"])),
            Path(each["manifest"]) if each["manifest"] else None,
        )
        for each in entry["sides"]
    )
    source, target = sides
    return PackLayouts(pack.name, pack.path, source, target)


def _make_entry(pack: PackFile) -> dict[str, Any]:
    """Read a pack and its manifests; one that cannot be read says nothing."""
    from remapkit.rulefile.read import examine
    from remapkit.sources.declared import (
        find_target_manifest,
        read_declared_source,
        read_declared_target,
        resolve_declared_path,
    )

    files, sides = {pack.path: _stamp(pack.path)}, [Side(), Side()]
    try:
        file = examine(pack.path).file
    except RemapkitError:
        file = None
    if file is not None:
        files |= {path: _stamp(path) for path in _list_manifests(file)}
        for number, (names, read, find) in enumerate(
            (
                (file.source_layout, read_declared_source, _get_source_manifest),
                (file.target_layout, read_declared_target, find_target_manifest),
            )
        ):
            try:
                known, manifest = read(file), find(file)
                place = resolve_declared_path(file, manifest) if known and manifest is not None else None
            except RemapkitError:
                known, place = None, None
            kinds = frozenset(map(mask_indices, known or ()))
            sides[number] = Side(tuple(name.value for name in names), kinds, place)
    written = [
        {"names": list(side.names), "kinds": sorted(side.kinds), "manifest": str(side.manifest or "")}
        for side in sides
    ]
    return {"files": [list(stamp) for stamp in files.values()], "sides": written}


def _get_source_manifest(file: RuleFile) -> Text | None:
    return file.source_keys


def _list_manifests(file: RuleFile) -> Iterator[Path]:
    """Yield the files that a pack's manifests are, or would be, in."""
    from remapkit.sources.declared import find_home_folder

    home = find_home_folder(file)
    target = file.target
    for written in (file.source_keys, target.keys if target is not None else None):
        if written is not None and "\0" not in written.value:
            yield home / written.value
    if target is not None and target.model is not None:
        yield home / f"keys/{target.model.value.replace(':', '.').replace('/', '.')}.json"


def find_cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder for caches: `REMAPKIT_CACHE`, else the system's; None if the variable is empty.

    >>> find_cache_folder({"REMAPKIT_CACHE": "/tmp/cache"}), find_cache_folder({"REMAPKIT_CACHE": ""})
    (PosixPath('/tmp/cache'), None)
    """
    if "REMAPKIT_CACHE" in environment:
        return Path(environment["REMAPKIT_CACHE"]) if environment["REMAPKIT_CACHE"] else None
    if sys.platform == "win32":
        return Path(environment["LOCALAPPDATA"]) / "remapkit" if environment.get("LOCALAPPDATA") else None
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"]) / "remapkit"
    return Path(environment["HOME"]) / ".cache" / "remapkit" if environment.get("HOME") else None


def _read_cache() -> dict[str, Any]:
    folder = find_cache_folder()
    try:
        content = json.loads((folder / CACHE).read_bytes()) if folder is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(entries: Mapping[str, Any]) -> None:
    """Replace the cache at once, so that no other process reads half of it; entries of removed packs go."""
    folder = find_cache_folder()
    if folder is None:
        return
    kept = {key: entry for key, entry in entries.items() if Path(key).is_file()}
    part = folder / f"{CACHE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(folder / CACHE)
    except OSError:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
