"""The layouts that installed packs read and write, by what their `from:`, `to:` and manifests say.

Reading 50 packs and their manifests takes seconds, so what they say is kept in a cache (`layout_cache.py`). Which
packs are installed is looked up each time.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.errors import RemapkitError
from remapkit.registry.installed import PackFile, packs
from remapkit.registry.layout_cache import (
    find_cache_folder,
    is_current,
    make_entry,
    read_cache,
    stamp_file,
    write_cache,
)
from remapkit.registry.taken_keys import TakenKeys, find_taken
from remapkit.tensors.families import mask_indices

if TYPE_CHECKING:
    from remapkit.diagnostics.source import Text
    from remapkit.rulefile.syntax import RuleFile
    from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pack: the names of its layout, and the names of its manifest with numbers left open, its kinds.

    `counts` says how many names the manifest has of each kind, `digest` is that of its names and shapes.
    """

    names: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    manifest: Path | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True)
class PackLayouts:
    """A pack, the layouts that it reads and writes, and the keys that it takes: None if its rules must be asked."""

    pack: str
    path: Path
    source: Side
    target: Side
    taken: TakenKeys | None = None


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
    return _read_packs(packs())


def list_layouts(found: Iterable[PackLayouts] | None = None) -> tuple[Layout, ...]:
    """Return the layouts that packs name, sorted: names that one pack gives to one layout are one layout.

    >>> [str(layout) for layout in list_layouts() if layout.name.startswith("wan22")]
    ['wan22-vae/diffusers', 'wan22-vae/grouped', 'wan22-vae/upstream']
    """
    found = list_pack_layouts() if found is None else tuple(found)
    sides = [side for each in found for side in (each.source, each.target) if side.names]
    owner: dict[str, str] = {}  # a name -> the first name of its layout
    for side in sides:
        known = dict.fromkeys(owner[name] for name in side.names if name in owner)
        first = next(iter(known), side.names[0])
        if len(known) > 1:  # this pack says that they are one
            owner = {name: first if kept in known else kept for name, kept in owner.items()}
        owner.update(dict.fromkeys(side.names, first))
    others: dict[str, list[str]] = {name: [] for name in sorted(set(owner.values()))}
    reads: dict[str, list[str]] = {name: [] for name in others}
    writes: dict[str, list[str]] = {name: [] for name in others}
    for name, kept in owner.items():
        if name != kept:
            others[kept].append(name)
    for each in found:
        for side, packs_of in ((each.source, reads), (each.target, writes)):
            if side.names:
                packs_of[owner[side.names[0]]].append(each.pack)
    return tuple(
        Layout(name, tuple(sorted(others[name])), tuple(reads[name]), tuple(writes[name])) for name in others
    )


def find_layout(name: str, layouts: Iterable[Layout]) -> Layout | None:
    """Return the layout of a name or of another name, None if there is none."""
    return next((each for each in layouts if name == each.name or name in each.aliases), None)


def find_targets(name: str) -> tuple[str, ...]:
    """Return the layouts that installed packs write of a layout; inverses and routes may reach more."""
    found = list_pack_layouts()
    layouts = list_layouts(found)
    readers = {each.pack for each in found if (own := find_layout(name, layouts)) and each.pack in own.read_by}
    return tuple(each.name for each in layouts if readers & set(each.written_by))


# ---------------------------------------------------------------------------------------------- what a pack says


_KNOWN: dict[PackFile, tuple[Any, PackLayouts | None]] = {}
"""The entries that this process has read, and what they say."""


def _read_packs(files: Sequence[PackFile]) -> tuple[PackLayouts, ...]:
    now = time.time_ns()
    seen = dict(_KNOWN)  # other threads replace it
    known = {pack: seen[pack] for pack in files if pack in seen and is_current(seen[pack][0], now)}
    if others := [pack for pack in files if pack not in known]:
        known |= _read_others(others)
    _KNOWN.clear()  # of packs that are installed no more, too
    _KNOWN.update(known)
    return tuple(said for pack in files if (said := known[pack][1]) is not None)


def _read_others(files: Sequence[PackFile]) -> dict[PackFile, tuple[Any, PackLayouts | None]]:
    """Read packs that this process has not read, or that have changed: from the cache, else from their files."""
    cached = read_cache()
    entries: dict[str, Any] = {}
    found: dict[PackFile, tuple[Any, PackLayouts | None]] = {}
    for pack in files:
        key = str(pack.path)
        entry = cached.get(key)
        said = _read_entry(pack, entry) if is_current(entry) else None
        if said is None:
            entry = _make_entry(pack)
            said = _read_entry(pack, entry)
        entries[key] = entry
        found[pack] = entry, said
    if entries != {key: cached.get(key) for key in entries}:
        write_cache({**cached, **entries})
    return found


def _read_entry(pack: PackFile, entry: Any) -> PackLayouts | None:
    """Return what an entry says; None if it is no entry."""
    try:
        source, target = (
            Side(
                tuple(each["names"]),
                frozenset(each["counts"]),
                Path(each["manifest"]) if each["manifest"] else None,
                dict(each["counts"]),
                str(each["digest"]),
            )
            for each in entry["sides"]
        )
        taken = None if entry["taken"] is None else TakenKeys.read(entry["taken"])
    except (KeyError, TypeError, ValueError):
        return None
    return PackLayouts(pack.name, pack.path, source, target, taken)


def _make_entry(pack: PackFile) -> dict[str, Any]:
    """Read a pack and its manifests; one that cannot be read says nothing."""
    from remapkit.rulefile.read import examine
    from remapkit.sources.declared import (
        find_target_manifest,
        read_declared_source,
        read_declared_target,
        resolve_declared_path,
    )

    made, files, sides = time.time_ns(), {pack.path: stamp_file(pack.path)}, [Side(), Side()]
    file, taken = None, None
    with suppress(RemapkitError):
        reading = examine(pack.path)
        file = reading.file
        # Only the cache is worth the time: without one, the rules that are asked are compiled then.
        if file is not None and not reading.problems and find_cache_folder() is not None:
            taken = find_taken(file)
    if file is not None:
        files |= {path: stamp_file(path) for path in _list_manifests(file)}
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
            sides[number] = _make_side(tuple(name.value for name in names), known or {}, place)
    said = [
        {
            "names": list(side.names),
            "counts": dict(sorted(side.counts.items())),
            "manifest": str(side.manifest or ""),
            "digest": side.digest,
        }
        for side in sides
    ]
    return make_entry(made, files.values(), {"sides": said, "taken": taken and taken.dump()})


def _make_side(names: tuple[str, ...], known: Mapping[str, TensorSpec], manifest: Path | None) -> Side:
    counts = Counter(map(mask_indices, known))
    return Side(names, frozenset(counts), manifest, counts, digest_tensors(known) if known else "")


def digest_tensors(tensors: Mapping[str, TensorSpec]) -> str:
    """Return a digest of names and shapes, in any order.

    >>> from remapkit.tensors.spec import TensorSpec
    >>> one, two = {"a": TensorSpec("F32", (1, 2))}, {"b": TensorSpec("F32", ())}
    >>> digest_tensors({**one, **two}) == digest_tensors({**two, **one}) != digest_tensors(one)
    True
    """
    import hashlib

    rows = sorted((fqn, spec.shape) for fqn, spec in tensors.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


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
