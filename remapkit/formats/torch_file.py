"""Reads checkpoints of torch.save without torch: the zip format, the older legacy format, and pickles of arrays.

Source: torch/serialization.py. `_save` writes the zip archive: `data.pkl`, `byteorder`, `data/<key>` for each
storage, and caffe2/serialize/inline_container.cc adds `version`. `_legacy_save` writes consecutive pickles (magic
number, protocol version, system info, the object, the storages' keys), then for each storage the number of elements
and the bytes. A pickle that begins otherwise is a checkpoint if it holds arrays of numpy.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import FileFault, make_note, make_unreadable
from remapkit.files.source_file import CHUNK, Extent, SourceFile, describe_os_error
from remapkit.files.strict_json import parse_json
from remapkit.formats.options import ReadOptions
from remapkit.formats.pickle.arrays import recode_latin
from remapkit.formats.pickle.read import read_pickle
from remapkit.formats.pickle.values import (
    PickleContent,
    PickledDict,
    PickledStorage,
    PickledTensor,
    PickleFault,
    describe_with_article,
)
from remapkit.formats.reader import FileReader
from remapkit.formats.state_dict import StateDict, choose_state_dict
from remapkit.formats.strided import EXPAND_FREE, Read, check_expansion, check_view, gather, is_contiguous
from remapkit.formats.zip_reader import ZipEntry, read_archive, read_entry, read_entry_chunks
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import StateDictSpec, TensorSpec

MAX_PICKLE = 1 << 30
"""The longest pickle that is read; 50,000 tensors take about 10 MB."""


METADATA = ".data/remapkit.json"
"""Our record for metadata; torch's format has no metadata, and its loader ignores the record."""


_MAX_INFLATED_PICKLE = 64_000_000
"""The longest `data.pkl` that is inflated, into memory; torch stores it uncompressed."""

_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""`MAGIC_NUMBER` and `PROTOCOL_VERSION` of torch/serialization.py."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """The location of a storage's bytes: a range of the file, an entry that must be inflated first, or memory.

    There, `text` bytes of UTF-8 may stand for them, a character for each byte.
    """

    nbytes: int
    offset: int
    entry: ZipEntry | None = None
    deflated: bool = False
    memory: memoryview | None = None
    text: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are those of the file from `offset` on."""
        return not (self.deflated or self.text or self.memory is not None)


class PthReader(FileReader):
    """A reader of one file of torch.save. Tensors are in the order of the state dict.

    Raises `UnreadableCheckpoint`: RK403 for a broken zip, RK404 for a pickle that is broken or hostile, RK405 for
    tensors that do not fit their storages, RK406 if there is not exactly one mapping of tensors, RK409 for known
    kinds of files that are not supported, RK410 for tensors that repeat their storage into much more data.
    """

    def __init__(self, source: SourceFile, format: str, options: ReadOptions) -> None:
        super().__init__(source.path, (source,))
        self.format = format
        self._source = source
        self._inflated: dict[str | int, mmap.mmap] = {}
        try:
            content, storages, metadata = _read_zip(source) if format == "pth" else _read_legacy(source)
            if content.is_plain:
                self.format = "pickle"
            state_dict = choose_state_dict(content, options.root, options.strict_pickle)
            self._tensors = state_dict.tensors
            self._storages: dict[str | int, _Stored] = _place_arrays(self._tensors, content)
            self._storages.update(storages)
            self._header = self._build_header(options, metadata)
        except FileFault as fault:
            raise fault.at(source.path) from None
        self.root = state_dict.root
        self.notes = tuple(self._list_notes(state_dict, options))

    def _list_notes(self, state_dict: StateDict, options: ReadOptions) -> Iterator[Diagnostic]:
        if state_dict.root and options.root is None:
            yield make_note("RK414", f"the state dict was found under {state_dict.root!r}", self.path)
        for text in state_dict.ignored:
            yield make_note("RK413", text, self.path)

    def _build_header(self, options: ReadOptions, metadata: Mapping[str, str]) -> StateDictSpec:
        specs: dict[str, TensorSpec] = {}
        for fqn, tensor in self._tensors.items():
            stored = self._storages.get(tensor.storage.key)
            if stored is None:
                raise FileFault(
                    "RK405", f"its storage {show_key(str(tensor.storage.key))!r} is not in the file", key=fqn
                )
            _check_storage(tensor.storage, stored)
            specs[fqn] = check_view(fqn, tensor, stored.nbytes)
            if not options.allow_expand:
                check_expansion(fqn, tensor, specs[fqn], stored.nbytes)
        tied = _find_tied(self._tensors)
        if not options.allow_expand:
            self._check_total(specs, tied)
        return StateDictSpec(specs, tied=tied, metadata=metadata, name=self.path.name)

    def _check_total(self, specs: Mapping[str, TensorSpec], tied: Sequence[Sequence[str]]) -> None:
        """Check that many views of one storage, or deflated entries, do not expand a small file into a huge one."""
        repeated = {fqn for group in tied for fqn in group[1:]}
        total = sum(spec.nbytes for fqn, spec in specs.items() if fqn not in repeated)
        inflated = sum(stored.nbytes for stored in self._storages.values() if stored.deflated)
        most = max(total, inflated)
        if most > 4 * self._source.size + EXPAND_FREE:
            title = f"tensors of {format_bytes(most)} in a file of {format_bytes(self._source.size)} are refused"
            raise FileFault("RK410", title, help=("pass --allow-expand to read it anyway",))

    def header(self) -> StateDictSpec:
        """Return names, dtypes, shapes and tied groups in the order of the state dict."""
        return self._header

    def extent(self, fqn: str) -> Extent | None:
        """Return the location of the tensor's bytes, or None for a strided view or a compressed storage."""
        tensor = self._tensors[fqn]
        stored = self._storages[tensor.storage.key]
        if not self._header[fqn].nbytes:
            # The offset of an empty tensor is meaningless, and may be outside the storage.
            return Extent(self._source, stored.offset, 0)
        if not stored.is_plain or not is_contiguous(tensor.shape, tensor.stride):
            return None
        start = stored.offset + tensor.offset * (DTYPE_BITS[tensor.dtype] // 8)
        return Extent(self._source, start, self._header[fqn].nbytes)

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes in pieces of about `size`; gathers strided views, inflates compressed storages."""
        extent = self.extent(fqn)
        if extent is not None:
            yield from self._source.chunks(extent.offset, extent.length, size)
            return
        tensor = self._tensors[fqn]
        try:
            stored = self._storages[tensor.storage.key]
            if stored.text and is_contiguous(tensor.shape, tensor.stride):
                yield from (memoryview(piece) for piece in self._decode_text(stored, size))
                return
            read = self._open_storage(tensor.storage.key)
        except FileFault as fault:
            raise fault.at(self.path) from None
        yield from gather(read, tensor, size)

    def _decode_text(self, stored: _Stored, size: int = CHUNK) -> Iterator[bytes]:
        """Yield the bytes that a text stands for, in pieces."""
        pieces = self._source.chunks(stored.offset, stored.text, size) if stored.memory is None else [stored.memory]
        try:
            yield from filter(None, recode_latin(pieces))
        except UnicodeError:
            # It was decoded once, when the pickle was read.
            raise make_unreadable("RK412", f"{self.path.name} changed while it was read", self.path) from None

    def crc32(self, fqn: str) -> int | None:
        """Return the storage's checksum if the tensor is the whole storage and the archive has a checksum."""
        stored = self._storages[self._tensors[fqn].storage.key]
        extent = self.extent(fqn)
        if extent is None or stored.entry is None or extent.length != stored.nbytes:
            return None
        return stored.entry.crc or None

    def check_sums(self) -> None:
        """Read every storage that a tensor uses, and verify its checksum."""
        try:
            for key in dict.fromkeys(tensor.storage.key for tensor in self._tensors.values()):
                entry = self._storages[key].entry
                if entry is not None and entry.crc:
                    for _ in read_entry_chunks(self._source, entry):
                        """The bytes are discarded: `read_entry_chunks` verifies the checksum at the end."""
        except FileFault as fault:
            raise fault.at(self.path) from None

    def _open_storage(self, key: str | int) -> Read:
        """Return a function that reads a storage, from the file or from the temporary file it was inflated into."""
        stored = self._storages[key]
        held = None if stored.text else stored.memory
        if stored.text or (stored.entry is not None and stored.deflated):
            if key not in self._inflated:
                self._inflated[key] = self._inflate(stored)
            held = memoryview(self._inflated[key])
        if held is not None:
            return lambda start, length: held[start : start + length]
        return lambda start, length: self._source.read(stored.offset + start, length)

    def _inflate(self, stored: _Stored) -> mmap.mmap:
        """Inflate a compressed storage, once, into an unnamed temporary file: memory stays small."""
        entry = stored.entry
        try:
            with tempfile.TemporaryFile() as file:
                for piece in self._decode_text(stored) if entry is None else read_entry_chunks(self._source, entry):
                    file.write(piece)
                file.flush()
                return mmap.mmap(file.fileno(), stored.nbytes, access=mmap.ACCESS_READ)
        except FileFault as fault:
            raise fault.at(self.path) from None
        except UnreadableCheckpoint:
            raise
        except OSError as error:
            name = show_key(entry.name if entry else "of an array")
            what = f"storage {name!r} cannot be inflated to {format_bytes(stored.nbytes)}"
            title = f"{what}: {describe_os_error(error)}"
            help = (f"make room in {tempfile.gettempdir()}, or set TMPDIR",)
            raise make_unreadable("RK400", title, self.path, help=help, refused=error) from error

    def close(self) -> None:
        """Close the file; maps are released with their last view."""
        self._inflated.clear()
        super().close()


def _map_file(source: SourceFile) -> mmap.mmap:
    try:
        with source.hold_open() as fd:
            return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    except UnreadableCheckpoint:
        raise
    except (OSError, ValueError) as error:
        words = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise FileFault("RK400", f"cannot map the file into memory: {words}") from error


def _check_storage(storage: PickledStorage, stored: _Stored) -> None:
    width = DTYPE_BITS[storage.dtype] // 8 if storage.dtype else 1
    claimed = storage.numel * width
    if claimed != stored.nbytes:
        title = f"storage {show_key(str(storage.key))!r} is {stored.nbytes} bytes, the pickle says {claimed}"
        raise FileFault("RK405", title, help=("fetch it again; if a tool wrote it, the tool has a bug",))


def _place_arrays(tensors: Mapping[str, PickledTensor], content: PickleContent) -> dict[str | int, _Stored]:
    """Return where the bytes of the arrays of numpy are: in the pickle, or in memory where that is compressed."""
    placed: dict[str | int, _Stored] = {}
    for tensor in tensors.values():
        data = tensor.storage.data
        if data is None:
            continue
        text = data.length if data.is_text else 0
        origin, end = content.origin, data.start + data.length
        if data.kept is not None:
            placed[tensor.storage.key] = _Stored(data.size, 0, memory=memoryview(data.kept))
        elif isinstance(origin, int):
            placed[tensor.storage.key] = _Stored(data.size, origin + data.start, text=text)
        else:
            placed[tensor.storage.key] = _Stored(data.size, 0, memory=memoryview(origin)[data.start : end], text=text)
    return placed


def _find_tied(tensors: Mapping[str, PickledTensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for fqn, tensor in tensors.items():
        if 0 not in tensor.shape:
            key = (tensor.storage.key, tensor.dtype, tensor.packed, tensor.offset, tensor.shape, tensor.stride)
            groups.setdefault(key, []).append(fqn)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _read_zip(source: SourceFile) -> tuple[PickleContent, dict[str, _Stored], dict[str, str]]:
    entries = read_archive(source)
    prefix = _find_prefix(entries)
    _refuse_unsupported(source, entries, prefix)
    content = _read_data_pkl(source, entries[prefix + "data.pkl"], len(entries))
    start = prefix + "data/"
    storages = {
        name.removeprefix(start): _Stored(entry.size, entry.offset, entry, not entry.is_stored)
        for name, entry in entries.items()
        if name.startswith(start)
    }
    return content, storages, _read_metadata(source, entries.get(prefix + METADATA))


def _read_metadata(source: SourceFile, entry: ZipEntry | None) -> dict[str, str]:
    """Read the metadata that remapkit writes into its files."""
    if entry is None:
        return {}
    try:
        metadata = parse_json(read_entry(source, entry, 1 << 20))
    except FileFault as fault:
        if fault.code != "RK408":
            raise
        raise FileFault("RK403", "the metadata is not JSON", key=entry.name) from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFault("RK403", "the metadata does not map strings to strings", key=entry.name)
    return metadata


def _find_prefix(entries: Mapping[str, ZipEntry]) -> str:
    """Return the prefix of `data.pkl`: the archive's folder, whose name is arbitrary."""
    prefixes = [name.removesuffix("data.pkl") for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if not prefixes:
        title = "a zip archive without data.pkl: not a file of torch.save"
        raise FileFault("RK403", title, help=("unpack it first, if it holds a checkpoint",))
    if len(prefixes) > 1:
        raise FileFault(
            "RK403",
            f"the archive holds {len(prefixes)} files named data.pkl: "
            + ", ".join(show_key(name + "data.pkl") for name in prefixes),
        )
    return prefixes[0]


def _refuse_unsupported(source: SourceFile, entries: Mapping[str, ZipEntry], prefix: str) -> None:
    if prefix + "constants.pkl" in entries or any(name.startswith(prefix + "code/") for name in entries):
        title = "a TorchScript archive: it holds code, not only tensors"
        raise FileFault("RK409", title, help=("save `model.state_dict()` instead",))
    # `_save` writes sys.byteorder since torch 2.1; without the record the bytes are little-endian.
    order = entries.get(prefix + "byteorder")
    if order is not None and (text := read_entry(source, order, 64)) != b"little":
        title = f"byteorder {show_key(repr(text.decode('latin-1')))}: only little-endian checkpoints are supported"
        raise FileFault("RK409", title, help=("save it again on a little-endian machine",))


def _read_data_pkl(source: SourceFile, entry: ZipEntry, entries: int) -> PickleContent:
    if not entry.is_stored or entry.size < 1 << 16:
        data = read_entry(source, entry, _MAX_INFLATED_PICKLE)
        content = _check_end(read_pickle(data, 0, entry.size, entries), entry.size)
        return replace(content, origin=entry.offset if entry.is_stored else data)
    if entry.size > MAX_PICKLE:
        raise PickleFault(f"data.pkl is {format_bytes(entry.size)}; at most {format_bytes(MAX_PICKLE)} are read")
    for _ in read_entry_chunks(source, entry):
        """The bytes are discarded: this verifies the checksum."""
    end = entry.offset + entry.size
    with _map_file(source) as mapped:
        return _check_end(read_pickle(mapped, entry.offset, end, entries), end)


def _check_end(content: PickleContent, end: int) -> PickleContent:
    if content.end != end:
        raise PickleFault(f"{format_bytes(end - content.end)} follow the end of the pickle")
    return content


def _read_legacy(source: SourceFile) -> tuple[PickleContent, dict[str, _Stored], dict[str, str]]:
    """Read magic number, protocol version, system info, the object, the storages' keys; then the storages."""
    with _map_file(source) as data:
        return _read_legacy_pickles(source, data)


def _read_legacy_pickles(
    source: SourceFile, data: mmap.mmap
) -> tuple[PickleContent, dict[str, _Stored], dict[str, str]]:
    limit = min(source.size, MAX_PICKLE)
    # Arrays lie in the pickle itself, so a pickle of arrays may be of any size; what is built stays bounded.
    magic = read_pickle(data, 0, source.size, limit // 64)
    if type(magic.value) is not int or magic.value != _MAGIC:
        return _check_plain(magic, source.size), {}, {}
    version = read_pickle(data, magic.end, limit)
    if version.value != _LEGACY_PROTOCOL:
        words = repr(version.value) if type(version.value) is int else describe_with_article(version.value)
        raise FileFault("RK409", f"version {words} of the legacy format is unknown")
    info = read_pickle(data, version.end, limit)
    if isinstance(info.value, PickledDict) and ("little_endian", False) in info.value.items:
        raise FileFault("RK409", "written on a big-endian machine: only little-endian checkpoints are supported")
    content = read_pickle(data, info.end, limit, source.size // 64)
    keys = read_pickle(data, content.end, limit, source.size // 64)
    if not isinstance(keys.value, list) or not all(isinstance(key, str) for key in keys.value):
        raise PickleFault("the list of storages is not a list of keys")
    pickles = (magic, version, info, content, keys)
    hostile = dict.fromkeys(name for pickle in pickles for name in pickle.hostile)
    named = dict.fromkeys(name for pickle in pickles for name in pickle.named)
    return (
        PickleContent(content.value, content.end, tuple(hostile), tuple(named)),
        _locate_legacy_storages(source, keys, content.widths),
        {},
    )


def _check_plain(content: PickleContent, end: int) -> PickleContent:
    """Check a pickle that torch.save did not write: it is a checkpoint if it holds arrays of numpy."""
    if not content.arrays and not content.hostile:
        title = "a pickle, but not one that torch.save wrote, and without arrays of numpy"
        raise FileFault("RK409", title, help=("load it where it was made, and save it with torch.save",))
    return replace(_check_end(content, end), is_plain=True)


def _locate_legacy_storages(source: SourceFile, keys: PickleContent, widths: Mapping[str, int]) -> dict[str, _Stored]:
    storages: dict[str, _Stored] = {}
    at = keys.end
    for key in keys.value:
        if key in storages:
            raise FileFault("RK405", f"storage {show_key(key)!r} is listed twice")
        if at + 8 > source.size:
            _raise_truncated(source)
        # `_write_file` writes the number of elements in 8 bytes, then the bytes; the pickle says how wide an element
        # is.
        numel = int.from_bytes(source.read(at, 8), "little")
        if not widths.get(key):
            # No tensor refers to this storage, but the start of the next one depends on its size.
            raise FileFault("RK405", f"storage {show_key(key)!r} belongs to no tensor that can be read")
        storages[key] = _Stored(numel * widths[key], at + 8)
        at += 8 + numel * widths[key]
        if at > source.size:
            _raise_truncated(source)
    if at != source.size:
        raise FileFault("RK405", f"{format_bytes(source.size - at)} follow the last storage")
    return storages


def _raise_truncated(source: SourceFile) -> NoReturn:
    title = f"the file ends within its storages, at {format_bytes(source.size)}: it is truncated"
    raise FileFault("RK405", title, help=("fetch it again",))
