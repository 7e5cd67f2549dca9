"""Manifests: headers kept as JSON, `{"<fqn>": {"dtype": "F32", "shape": [160]}}`, without any data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from remapkit.diagnostics.wording import show_key
from remapkit.files.errors import MAX_DIMS, FileFault
from remapkit.files.source_file import CHUNK, SourceFile
from remapkit.files.strict_json import read_json
from remapkit.formats.reader import FileReader
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import StateDictSpec, TensorSpec, find_name_problem, find_recorded_names


def _raise_fault(title: str, key: str | None = None, help: tuple[str, ...] = ()) -> NoReturn:
    raise FileFault("RK408", title, key=key, help=help)


def read_manifest(path: str | Path) -> StateDictSpec:
    """Read the header in a manifest, in its order.

    Raises `UnreadableCheckpoint`: RK400 if there is no such file, RK408 (with the key) if it is not a manifest.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "keys.json")
    >>> write_manifest(StateDictSpec({"conv1.weight": TensorSpec("F32", (96, 96))}), path)
    >>> print(read_manifest(path)["conv1.weight"])
    F32 [96, 96]
    """
    source = SourceFile(Path(path))
    try:
        return parse_manifest(read_json(source), source.path.name)
    except FileFault as fault:
        raise fault.at(source.path) from None
    finally:
        source.close()


def parse_manifest(value: Any, name: str) -> StateDictSpec:
    """Convert a manifest's JSON value to a header; raises `FileFault` (RK408) with the key."""
    if not isinstance(value, dict):
        _raise_fault(f"a manifest is a JSON object, not {_describe_kind(value)}")
    if words := _find_message(value):
        title = f"a message, not a checkpoint: {show_key(words)}"
        raise FileFault("RK401", title, help=("the download failed: check the URL, and whether it needs a login",))
    tensors = {fqn: _parse_spec(fqn, entry) for fqn, entry in value.items() if fqn != "__metadata__"}
    metadata = value.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        _raise_fault("`__metadata__` must map strings to strings", "__metadata__")
    return StateDictSpec(tensors, metadata=metadata, name=name, recorded=find_recorded_names(tensors, metadata))


def _find_message(value: Mapping[str, Any]) -> str | None:
    """Return the error message that a server sent instead of a file, such as `{"error": "Repository not found"}`."""
    for key in ("error", "message", "detail", "errors"):
        message = value.get(key)
        message = message.get("message") if isinstance(message, dict) and "dtype" not in message else message
        message = message[0] if isinstance(message, list) and message else message
        if isinstance(message, str) and message.strip():
            return message.strip()
    return None


def _parse_spec(fqn: str, entry: Any) -> TensorSpec:
    if problem := find_name_problem(fqn):
        _raise_fault(f"a name {problem}", fqn)
    if not isinstance(entry, dict):
        _raise_fault(f'expected {{"dtype": "F32", "shape": [...]}}, found {_describe_kind(entry)}', fqn)
    if entry.keys() != {"dtype", "shape"}:
        _raise_fault(f"expected the fields dtype and shape, found {', '.join(map(show_key, entry)) or 'none'}", fqn)
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _raise_fault(f"unknown dtype {show_key(str(dtype), 40)!r}", fqn, (f"one of {', '.join(DTYPE_BITS)}",))
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        _raise_fault("`shape` must be a list of whole numbers", fqn)
    if len(shape) > MAX_DIMS:
        _raise_fault(f"a shape of {len(shape)} dimensions; tensors have at most {MAX_DIMS}", fqn)
    if math.prod(size for size in shape if size) * DTYPE_BITS[dtype] >= 1 << 66:
        _raise_fault(f"the shape {show_key(str(shape), 80)} overflows 64 bits", fqn)
    return TensorSpec(dtype, tuple(shape))


def _describe_kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def manifest_json(header: Mapping[str, TensorSpec]) -> str:
    """Format a header as a manifest, one tensor per line; recorded names stay in the metadata.

    >>> print(manifest_json({"w": TensorSpec("F32", (2,))}), end="")
    {
      "w": {"dtype": "F32", "shape": [2]}
    }
    """
    lines = [
        f'  {json.dumps(fqn, ensure_ascii=False)}: {{"dtype": "{spec.dtype}", "shape": {list(spec.shape)}}}'
        for fqn, spec in header.items()
    ]
    recorded = header.recorded if isinstance(header, StateDictSpec) else {}
    if recorded:
        lines.append(f'  "__metadata__": {json.dumps(dict(recorded), ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + ("\n}\n" if lines else "}\n")


def write_manifest(header: Mapping[str, TensorSpec], path: str | Path, *, force: bool = False) -> None:
    """Write a header as a manifest; the same header gives the same bytes.

    Raises `UnwritableOutput`: RK500 if the file exists and `force` is not set, RK503, RK504 and RK510 if it cannot be
    written.
    """
    from remapkit.files.text import write_texts

    write_texts({Path(path): manifest_json(header)}, force=force)


class ManifestReader(FileReader):
    """A manifest as a checkpoint without data: rules can be planned and checked on it, but not applied."""

    format = "manifest"

    def __init__(self, source: SourceFile, header: StateDictSpec) -> None:
        super().__init__(source.path, (source,))
        self._header = header

    def header(self) -> StateDictSpec:
        """Return names, dtypes and shapes in the manifest's order."""
        return self._header

    def extent(self, fqn: str) -> None:
        """Return None: a manifest has no data."""

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Raise `UnreadableCheckpoint` (RK408): a manifest has no data."""
        title = "a manifest has no data to move, only names, dtypes and shapes"
        raise FileFault("RK408", title, key=fqn).at(self.path)
