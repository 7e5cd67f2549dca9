"""The safetensors format: eight bytes of length, a JSON header, the data.

Source: the section "Format" of the safetensors README (quoted below as README), and `Metadata::validate` and
`TensorInfo` of its Rust library. This reader also refuses what the library accepts but no writer produces:
duplicate names (which the README disallows), unknown fields, control characters in names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from json.encoder import encode_basestring
from typing import Any, NoReturn

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import MAX_DIMS, FileFault
from remapkit.files.source_file import CHUNK, Extent, SourceFile
from remapkit.files.strict_json import HEADER_DIGITS, parse_json
from remapkit.formats.reader import FileReader
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import MAX_NAME, StateDictSpec, TensorSpec, find_name_problem, find_recorded_names

MAX_HEADER = 100_000_000
"""The longest header the format allows, in bytes."""
FORMAT_DTYPES = frozenset(DTYPE_BITS) - {"C128"}
"""The names in the library's enum `Dtype`."""
_FIELDS = {"dtype", "shape", "data_offsets"}
_LIMIT = 1 << 64


def _raise_fault(title: str, key: str | None = None, *help: str) -> NoReturn:
    raise FileFault("RK402", title, key=key, help=help)


class SafetensorsReader(FileReader):
    """A reader of one `.safetensors` file. Tensors are in the order of their data.

    Raises `UnreadableCheckpoint` (RK402) if the header does not conform exactly to the format.
    """

    format = "safetensors"

    def __init__(self, source: SourceFile) -> None:
        super().__init__(source.path, (source,))
        self._source = source
        try:
            self.data_start, metadata, entries = read_safetensors_header(source)
        except FileFault as fault:
            raise fault.at(source.path) from None
        self._spans = {fqn: span for fqn, (_, span) in entries.items()}
        tensors = {fqn: spec for fqn, (spec, _) in entries.items()}
        recorded = find_recorded_names(tensors, metadata)
        self._header = StateDictSpec(tensors, metadata=metadata, name=source.path.name, recorded=recorded)

    def header(self) -> StateDictSpec:
        """Return names, dtypes and shapes in the order of the data."""
        return self._header

    def extent(self, fqn: str) -> Extent:
        """Return the range of the tensor's bytes: always one. A recorded name has the range of its tensor."""
        start, end = self._spans[self._header.recorded.get(fqn, fqn)]
        return Extent(self._source, self.data_start + start, end - start)

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes in pieces of at most `size`."""
        extent = self.extent(fqn)
        return self._source.chunks(extent.offset, extent.length, size)


HeaderEntry = tuple[TensorSpec, tuple[int, int]]


def read_safetensors_header(source: SourceFile) -> tuple[int, dict[str, str], dict[str, HeaderEntry]]:
    """Return the data's start, the metadata, and `fqn -> (spec, (start, end))` in the order of the data."""
    if source.size < 8:
        _raise_fault(f"the file is {format_bytes(source.size)}: a safetensors file starts with 8 bytes of length")
    # README: "8 bytes: N, an unsigned little-endian 64-bit integer, containing the size of the header"
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:  # README: "there's a limit on the size of the header of 100MB"
        _raise_fault(
            f"the header would be {length} bytes ({format_bytes(length)}); "
            f"the format allows {format_bytes(MAX_HEADER)}"
        )
    if length + 8 > source.size:
        hint = "the file is truncated: fetch it again"
        _raise_fault(f"the header is {format_bytes(length)}, the file only {format_bytes(source.size)}", None, hint)
    metadata, entries = parse_header(source.read(8, length), source.size - 8 - length)
    return 8 + length, metadata, entries


def parse_header(raw: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, HeaderEntry]]:
    """Parse a header and check it against the number of data bytes that follow it; raises `FileFault` (RK402)."""
    # README: "N bytes: a JSON UTF-8 string", which "MUST begin with a { character"; "Duplicate keys are disallowed."
    if raw[:1] != b"{":
        _raise_fault("the header is not a JSON object: it must start with '{'")
    fields = parse_json(raw, "the header", "RK402", digits=HEADER_DIGITS, signed=False)
    # README: "a special key __metadata__ is allowed to contain free form string-to-string map"
    metadata = _check_metadata(fields.pop("__metadata__", {}))
    # Surrogates and control characters can only come from escapes: the JSON itself must be UTF-8 without them.
    careful = b"\\" in raw or not raw.isascii()
    entries = {fqn: _parse_entry(fqn, value) for fqn, value in fields.items()}
    for fqn in entries:
        if (careful or len(fqn) > MAX_NAME // 4) and (problem := find_name_problem(fqn)):
            _raise_fault(f"a name {problem}", fqn)
    return metadata, _sort_entries(entries, data_bytes)


def _check_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _raise_fault("`__metadata__` must map strings to strings", "__metadata__")
    for text in (*value, *value.values()):
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                _raise_fault("`__metadata__` holds a lone surrogate, which UTF-8 cannot write", "__metadata__")
    return value


def _parse_entry(fqn: str, value: Any) -> HeaderEntry:
    # README: {"dtype": "F16", "shape": [1, 16, 256], "data_offsets": [BEGIN, END]}, relative to the byte buffer
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        _raise_fault("a tensor has exactly the fields dtype, shape and data_offsets", fqn)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in FORMAT_DTYPES:
        _raise_fault(f"unknown dtype {show_key(str(dtype), 40)!r}", fqn)
    for numbers, name in ((shape, "shape"), (offsets, "data_offsets")):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < _LIMIT for n in numbers):
            _raise_fault(f"`{name}` must be a list of whole numbers from 0 to 2^64 - 1", fqn)
    if len(shape) > MAX_DIMS:
        _raise_fault(f"a shape of {len(shape)} dimensions; tensors have at most {MAX_DIMS}", fqn)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        _raise_fault(f"`data_offsets` must be [start, end] with start <= end, not {show_key(str(offsets), 60)}", fqn)
    spec = TensorSpec(dtype, tuple(shape))
    _check_size(fqn, spec, offsets[0], offsets[1])
    return spec, (offsets[0], offsets[1])


def _check_size(fqn: str, spec: TensorSpec, start: int, end: int) -> None:
    # The product overflows in the order of the dimensions, even where a later one is 0: [2^63, 4, 0].
    elements = 1
    for dimension in spec.shape:
        elements *= dimension
        if elements >= _LIMIT:
            _raise_fault(f"the shape {show_key(str(list(spec.shape)), 80)} overflows 64 bits", fqn)
    bits = elements * DTYPE_BITS[spec.dtype]
    if bits >= _LIMIT:
        _raise_fault(f"{spec} overflows 64 bits", fqn)
    if bits % 8:
        _raise_fault(f"{spec} is not a whole number of bytes", fqn)
    if bits // 8 != end - start:
        _raise_fault(f"{spec} takes {bits // 8} bytes, its data_offsets span {end - start}", fqn)


def _sort_entries(entries: dict[str, HeaderEntry], data_bytes: int) -> dict[str, HeaderEntry]:
    """Sort the entries by the order of their data, and check that they cover it.

    README: "The byte buffer needs to be entirely indexed, and cannot contain holes." If every entry, sorted by end,
    begins where the one before it ended, they cover the buffer exactly once. Empty tensors keep their positions.
    """
    ordered = sorted(entries.items(), key=lambda item: item[1][1])
    position = 0
    for fqn, (_, (start, end)) in ordered:
        if start != position:
            _raise_fault(
                f"the data {'overlaps' if start < position else 'has a hole'}: expected offset {position}", fqn
            )
        position = end
    if position != data_bytes:
        words = "the file is truncated" if position > data_bytes else "bytes follow the last tensor"
        hint = ("fetch it again",) if position > data_bytes else ()
        _raise_fault(f"the tensors take {position} bytes, the file holds {data_bytes}: {words}", None, *hint)
    return dict(ordered)


def header_json(tensors: Iterable[tuple[str, TensorSpec]], metadata: Mapping[str, str]) -> bytes:
    """Return the JSON of a header whose tensors are contiguous in the given order, without length and padding.

    >>> header_json([("w", TensorSpec("F32", (2, 2)))], {})
    b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    """
    parts = []
    if metadata:
        parts.append('"__metadata__":' + _dump_json({key: metadata[key] for key in sorted(metadata)}))
    position = 0
    for fqn, spec in tensors:
        if spec.dtype not in FORMAT_DTYPES:
            raise ValueError(f"{fqn} is {spec.dtype}, which safetensors does not support")
        end = position + spec.nbytes
        shape = ",".join(map(str, spec.shape))
        entry = f'{{"dtype":"{spec.dtype}","shape":[{shape}],"data_offsets":[{position},{end}]}}'
        parts.append(f"{encode_basestring(fqn)}:{entry}")
        position = end
    return ("{" + ",".join(parts) + "}").encode("utf-8")


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pad_header(raw: bytes, start_modulo: int = 0, block: int = 4096) -> bytes:
    """Return length, JSON, and enough spaces that the data starts at `start_modulo` modulo `block`.

    The format allows trailing spaces. If the data starts at its source's offset modulo the block size, the filesystem
    can share it with the source instead of copying it.

    >>> len(pad_header(b"{}")), len(pad_header(b"{}", 8, 16))
    (4096, 24)
    """
    padding = (start_modulo - 8 - len(raw)) % block
    length = len(raw) + padding
    if length > MAX_HEADER:
        raise ValueError(f"the header would be {format_bytes(length)}; the format allows {format_bytes(MAX_HEADER)}")
    return length.to_bytes(8, "little") + raw + b" " * padding
