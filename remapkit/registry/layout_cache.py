"""The cache of what packs say: a file in the user's cache folder, with an entry for each pack.

Invariant: an entry counts only while every file that it was made of is what it was: the same times, size and inode,
and already for `SETTLED` when the entry was made. Within the resolution of a clock a file can change twice, and look
as after the first time. A cache that cannot be read or written, or is damaged, costs time and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from remapkit.diagnostics.version import VERSION

CACHE = f"layouts-4-{VERSION}.json"
"""The file of the cache; another version of remapkit has another one."""
SETTLED = 2_000_000_000
"""The nanoseconds for which a file must have been left alone: some filesystems count in steps of two seconds."""

Stamp = tuple[str, int, int, int, int]
"""A file, the times of its last changes of content and of anything, its size and its inode: -1 if it is not there."""


def stamp_file(path: str | Path) -> Stamp:
    """Return what tells a file from itself after a change.

    >>> stamp_file("no/such/file")
    ('no/such/file', -1, -1, -1, -1)
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - 150 files of 50 packs, of which a `Path` each takes as long again
    except (OSError, ValueError):
        return str(path), -1, -1, -1, -1
    return str(path), found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def make_entry(made: int, files: Iterable[Stamp], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry: what was said at a time, in nanoseconds, by files that were stamped before they were read."""
    return {"made": made, "files": [list(stamp) for stamp in files], **said}


def is_current(entry: Any, now: int = 0) -> bool:
    """Return whether the files that an entry was made of have not changed since.

    A process that made the entry itself says what time it is `now`, and need not read files that have just changed
    again and again: once more when they are settled is enough.
    """
    try:
        return all(
            (changed + SETTLED <= entry["made"] or 0 < now < changed + SETTLED)
            and stamp_file(path) == (path, time, changed, size, inode)
            for path, time, changed, size, inode in entry["files"]
        )
    except (KeyError, TypeError, ValueError):  # another program wrote it
        return False


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


def read_cache() -> dict[str, Any]:
    """Return the entries of the cache by the paths of their packs; none if it is not there, or not whole."""
    folder = find_cache_folder()
    try:
        content = (folder / CACHE).read_bytes() if folder is not None else b""
        check, _, text = content.partition(b"\n")
        entries = json.loads(text) if check == _check(text) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def write_cache(entries: Mapping[str, Any]) -> None:
    """Replace the cache at once, so that no other process reads half of it; entries of removed packs go."""
    import tempfile

    folder = find_cache_folder()
    if folder is None:
        return
    kept = {key: entry for key, entry in entries.items() if Path(key).is_file()}
    text = json.dumps(kept, separators=(",", ":")).encode()
    part = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd, part = tempfile.mkstemp(".part", f"{CACHE}.", folder)
        with os.fdopen(fd, "wb") as file:
            file.write(_check(text) + b"\n" + text)
        Path(part).replace(folder / CACHE)
    except OSError:
        if part:
            Path(part).unlink(missing_ok=True)


def _check(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()
