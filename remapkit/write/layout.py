"""What an output file will consist of, byte by byte, before any is written.

Pure: a layout is a list of pieces (bytes, stretches of source files, tensors that must be made) computed from headers
and extents alone, so its size is known, and the same input gives the same output.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from remapkit.diagnostics.wording import show_key
from remapkit.files.copy import BLOCK
from remapkit.files.errors import MAX_DIMS, is_utf8, make_unwritable
from remapkit.files.source_file import SourceFile
from remapkit.formats.reader import Reader
from remapkit.formats.safetensors import DTYPES, header_json, pad_header
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.plans.moves import Move
from remapkit.tensors.spec import DTYPE_BITS


@dataclass(frozen=True, slots=True)
class BytesPiece:
    """Bytes that are written as they are."""

    data: bytes

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class CopyPiece:
    """A stretch of a source file."""

    source: SourceFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """A tensor that is not one stretch of a file: a strided view, a compressed storage, the result of operations."""

    move: Move
    nbytes: int


Piece = BytesPiece | CopyPiece | StreamPiece


@dataclass(frozen=True, slots=True)
class Seal:
    """The CRC-32 of a piece, known once it is written, goes to these places of the file (4 bytes each)."""

    piece: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One output file: its name, its pieces in order, and the moves whose tensors it holds."""

    name: str
    pieces: tuple[Piece, ...]
    moves: tuple[Move, ...]
    seals: tuple[Seal, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return sum(piece.nbytes for piece in self.pieces)


def make_fingerprint(layout: FileLayout, sources: Sequence[SourceFile]) -> str:
    """32 hex digits for what a file is made of: the bytes that are known, and where the others come from.

    It finds the file again that a killed run completed; whether its bytes are right, a comparison says. Empty where
    operations compute something: comparing would cost as much as making it.
    """
    import hashlib

    number = {id(source): n for n, source in enumerate(sources)}
    digest = hashlib.sha256()
    for piece in layout.pieces:
        if isinstance(piece, BytesPiece):
            digest.update(b"%d:" % piece.nbytes + piece.data)
        elif isinstance(piece, CopyPiece):
            digest.update(repr((number.get(id(piece.source)), piece.offset, piece.nbytes)).encode())
        elif piece.move.ops:
            return ""
        else:
            digest.update(repr((piece.move.sources, piece.move.spec, piece.nbytes)).encode())
    return digest.hexdigest()[:32]


def split_ties(moves: Sequence[Move], tied: Iterable[Sequence[str]]) -> tuple[list[Move], dict[str, str]]:
    """The moves with one name of each tied group, and what the others are tied to.

    safetensors has no aliases. The first name in output order is kept; every other is recorded as `other -> kept`,
    which is what `safetensors.torch.save_model` writes and `load_model` understands.
    """
    position = {move.target: number for number, move in enumerate(moves)}
    recorded: dict[str, str] = {}
    for group in tied:
        kept, *others = sorted((name for name in group if name in position), key=position.__getitem__) or [""]
        recorded |= dict.fromkeys(others, kept)
    return [move for move in moves if move.target not in recorded], recorded


def sort_for_alignment(moves: Sequence[Move]) -> list[Move]:
    """The moves in their order where every tensor then starts at a multiple of its element's width, else wide first.

    The format has no room for padding between tensors, so its own writer sorts by width; readers that map the file
    need aligned tensors. Here the given order is kept wherever it is aligned as it stands.

    >>> from remapkit import TensorSpec
    >>> from remapkit.plans.moves import RuleRef
    >>> move = lambda name, dtype: Move(name, (name,), (), RuleRef("all"), TensorSpec(dtype, (3,)))
    >>> [move.target for move in sort_for_alignment([move("mask", "U8"), move("w", "F32")])]
    ['w', 'mask']
    """
    position = 0
    for move in moves:
        if position % _find_element_width(move):
            return sorted(moves, key=_find_element_width, reverse=True)
        position += move.spec.nbytes
    return list(moves)


def _find_element_width(move: Move) -> int:
    return max(1, DTYPE_BITS[move.spec.dtype] // 8)


def lay_out_safetensors(name: str, moves: Sequence[Move], reader: Reader, metadata: Mapping[str, str]) -> FileLayout:
    """One safetensors file. Its data starts at its first source byte's offset modulo the block size, see `BLOCK`.

    Raises `UnwritableOutput` (RK505) for a dtype that the format has no name for.
    """
    check_dims(moves)
    _check_dtypes(moves)
    moves = sort_for_alignment(moves)
    raw = header_json(((move.target, move.spec) for move in moves), metadata)
    data = _merge_pieces(piece for move in moves for piece in make_tensor_pieces(move, reader))
    first = next(iter(data), None)
    start = first.offset % BLOCK if isinstance(first, CopyPiece) else 0
    # A data start of odd offset would leave every tensor unaligned: it only pays where blocks can be shared.
    try:
        header = pad_header(raw, start if start % 8 == 0 else 0)
    except ValueError as error:
        raise make_unwritable("RK505", str(error), help=("write shards: --shard-size 5GB",)) from None
    return FileLayout(name, (BytesPiece(header), *data), tuple(moves))


def check_dims(moves: Iterable[Move]) -> None:
    """Raise `UnwritableOutput` (RK505) for tensors that no reader takes back, this one included."""
    for move in moves:
        if len(move.spec.shape) > MAX_DIMS:
            rank = len(move.spec.shape)
            title = f"{show_key(move.target)} would have {rank} dimensions; tensors have at most {MAX_DIMS}"
            raise make_unwritable("RK505", title, help=("reshape it to fewer",))


def _check_dtypes(moves: Iterable[Move]) -> None:
    for move in moves:
        if move.spec.dtype not in DTYPES:
            title = f"{move.target} is {move.spec.dtype}, which safetensors has no name for"
            raise make_unwritable("RK505", title, help=("write a .pth: -o OUT.pth",))


def make_tensor_piece(move: Move, reader: Reader) -> Piece:
    """What a target's bytes are: a stretch of a source file, or something that must be made."""
    extent = reader.extent(move.sources[0]) if not move.ops else None
    if extent is None:
        return StreamPiece(move, move.spec.nbytes)
    return CopyPiece(extent.source, extent.offset, extent.length)


def make_tensor_pieces(move: Move, reader: Reader) -> list[Piece]:
    """What a target's bytes are, piece by piece: operations that only move stretches of bytes are copies too."""
    if move.ops and move.sources:
        header = reader.header()
        ranges = find_byte_ranges(move.ops, [header[fqn] for fqn in move.sources])
        extents = [reader.extent(fqn) for fqn in move.sources] if ranges is not None else [None]
        found = [extent for extent in extents if extent is not None]
        if ranges is not None and len(found) == len(extents):
            return [CopyPiece(found[r.source].source, found[r.source].offset + r.offset, r.length) for r in ranges]
    return [make_tensor_piece(move, reader)]


def _merge_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces without empty ones; neighbours that are neighbours in their source too become one."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if piece.nbytes == 0:
            continue
        if (
            isinstance(piece, CopyPiece)
            and isinstance(last, CopyPiece)
            and last.source is piece.source
            and last.offset + last.nbytes == piece.offset
        ):
            merged[-1] = CopyPiece(piece.source, last.offset, last.nbytes + piece.nbytes)
        else:
            merged.append(piece)
    return merged


def lay_out_shards(
    stem: str, moves: Sequence[Move], reader: Reader, metadata: Mapping[str, str], shard_size: int
) -> list[FileLayout]:
    """Shards of at most `shard_size` bytes of tensors, filled in order, and the index last.

    Source: the layout of Hugging Face's sharded checkpoints: `stem-00001-of-00003.safetensors` and
    `stem.safetensors.index.json` with `metadata.total_size` and `weight_map`. What fits one shard is one file.
    """
    groups = _split_into_shards(moves, shard_size)
    if not is_utf8(stem):
        title = f"the index cannot name shards of {stem}: the name is not UTF-8, and JSON is"
        raise make_unwritable("RK171", title, help=("give -o a name in UTF-8, or leave out --shard-size",))
    if len(groups) == 1:
        return [lay_out_safetensors(f"{stem}.safetensors", groups[0], reader, metadata)]
    names = [f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    shards = [lay_out_safetensors(name, group, reader, metadata) for name, group in zip(names, groups, strict=True)]
    weight_map = {move.target: shard.name for shard in shards for move in shard.moves}
    total = sum(move.spec.nbytes for move in moves)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = json.dumps(index, ensure_ascii=False, indent=2) + "\n"
    return [*shards, FileLayout(f"{stem}.safetensors.index.json", (BytesPiece(text.encode("utf-8")),), ())]


def _split_into_shards(moves: Sequence[Move], shard_size: int) -> list[list[Move]]:
    groups: list[list[Move]] = [[]]
    room = shard_size
    for move in moves:
        if groups[-1] and move.spec.nbytes > room:
            groups.append([])
            room = shard_size
        groups[-1].append(move)
        room -= move.spec.nbytes
    return groups
