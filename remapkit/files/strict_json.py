"""The one reader of JSON files: manifests, indexes, configs, pairs, journals. One meaning or none, in bounded time.

Refused: what is no regular file (a pipe or a device would never end), what is larger than its kind ever is, names
that occur twice, numbers of hundreds of digits, NaN, and nesting that no such file has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from remapkit.diagnostics.wording import shown, sized
from remapkit.files.errors import FileFault, find_size_problem
from remapkit.files.source_file import SourceFile

MAX_MANIFEST = 100_000_000
"""The largest manifest or index that is read, in bytes; a manifest takes about 80 a tensor."""
MAX_SMALL = 10_000_000
"""The largest config, list of pairs or witness, in bytes."""
_MAX_INTEGER = 400
"""Digits of a whole number. One of a million would take minutes."""


def _raise_fault(title: str, key: str | None = None) -> NoReturn:
    raise FileFault("RK408", title, key=key)


def read_json(source: SourceFile) -> Any:
    """The value of a manifest or an index; raises `FileFault` (RK408)."""
    if source.size > MAX_MANIFEST:
        _raise_fault(f"the file is {sized(source.size)}; a manifest or an index is read up to {sized(MAX_MANIFEST)}")
    return parse_json(source.read(0, source.size), "a manifest or an index", digits=20)


def read_small_json(path: Path, limit: int = MAX_SMALL) -> Any:
    """The value of a small JSON file; raises `UnreadableCheckpoint`: RK400 where it is no file, RK408 else."""
    source = SourceFile(path)
    try:
        if source.size > limit:
            _raise_fault(f"the file is {sized(source.size)}; up to {sized(limit)} are read")
        return parse_json(source.read(0, source.size))
    except FileFault as fault:
        raise fault.at(path) from None
    finally:
        source.close()


def parse_json(raw: bytes, kind: str = "a small JSON file", digits: int = _MAX_INTEGER) -> Any:
    """The value that bytes hold; raises `FileFault` (RK408). `kind` is what they are called where they are no such.

    >>> parse_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    if problem := find_size_problem(raw):
        _raise_fault(problem)

    def whole(written: str) -> int:
        if len(written) > digits:
            _raise_fault(f"a number of {len(written)} digits")
        return int(written)

    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _raise_fault(f"not UTF-8: byte {error.start}")
    try:
        return json.loads(text, object_pairs_hook=_build_object, parse_int=whole, parse_constant=_refuse_constant)
    except RecursionError:
        _raise_fault(f"nested too deeply for {kind}")
    except json.JSONDecodeError as error:
        _raise_fault(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except ValueError as error:
        _raise_fault(f"not valid JSON: {error}")


def _refuse_constant(name: str) -> NoReturn:
    _raise_fault(f"{name} is no number of JSON")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _raise_fault(f"the name {shown(key)!r} occurs twice", key)
            seen.add(key)
    return found
