"""The layout of an output file, computed before anything is written.

A layout is a list of pieces: bytes, ranges of source files, tensors that must be computed. It is computed from
headers and extents alone, in time linear in their number. Invariant: the concatenated pieces are the file; so its
size is known before it is opened, every offset in its header is final, and the same input gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.diagnostics.wording import show_key
from remapkit.files.copy import BLOCK
from remapkit.files.errors import MAX_DIMS, is_utf8, make_unwritable
from remapkit.files.source_file import SourceFile
from remapkit.formats.reader import Reader
from remapkit.formats.safetensors import FORMAT_DTYPES, header_json, pad_header
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.plans.moves import Move
from remapkit.tensors.dtypes import DTYPE_BITS


@dataclass(frozen=True, slots=True)
class BytesPiece:
    """Bytes that are written unchanged."""

    data: bytes

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class CopyPiece:
    """A range of a source file."""

    source: SourceFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """A tensor that is not a range of a file: a strided view, a compressed storage, the result of operations."""

    move: Move
    nbytes: int


Piece = BytesPiece | CopyPiece | StreamPiece


@dataclass(frozen=True, slots=True)
class Seal:
    """The offsets in the file (4 bytes each) where a piece's CRC-32 is written once it is known."""

    piece: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One output file: its name, its pieces in order, and the moves whose tensors it contains."""

    name: str
    pieces: tuple[Piece, ...]
    moves: tuple[Move, ...]
    seals: tuple[Seal, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """The files of one output, all in one folder: a single one, or shards and their index last."""

    folder: Path
    files: tuple[FileLayout, ...]


def make_fingerprint(layout: FileLayout, sources: Sequence[SourceFile]) -> str:
    """Return 32 hex digits that identify the content of a file: its known bytes, and the sources of the others.

    It finds a file that a killed run completed, whose bytes are then compared. Empty if operations compute something:
    comparing would cost as much as computing it.
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
    """Return the moves with one name of each tied group, and the names that the others are tied to.

    safetensors has no aliases. The first name in output order is kept; every other is recorded as `other -> kept`,
    as `safetensors.torch.save_model` writes and `load_model` reads it.
    """
    position = {move.target: number for number, move in enumerate(moves)}
    recorded: dict[str, str] = {}
    for group in tied:
        kept, *others = sorted((name for name in group if name in position), key=position.__getitem__) or [""]
        recorded |= dict.fromkeys(others, kept)
    return [move for move in moves if move.target not in recorded], recorded


def sort_for_alignment(moves: Sequence[Move]) -> list[Move]:
    """Keep the moves in order if every tensor then starts at a multiple of its element's width, else widest first.

    The format allows no padding between tensors, so its own writer sorts by width; readers that map the file need
    aligned tensors. Here the given order is kept if all tensors are aligned in it.

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
    """Lay out one safetensors file. Its data starts at its first source byte's offset modulo the size of a `BLOCK`.

    Raises `UnwritableOutput` (RK505) for a dtype that the format has no name for.
    """
    check_dims(moves)
    _check_dtypes(moves)
    moves = sort_for_alignment(moves)
    raw = header_json(((move.target, move.spec) for move in moves), metadata)
    data = _merge_pieces(piece for move in moves for piece in make_tensor_pieces(move, reader))
    first = next(iter(data), None)
    start = first.offset % BLOCK if isinstance(first, CopyPiece) else 0
    # Filesystems share whole blocks: the data must start at the source's offset modulo the block size. If that is not
    # a multiple of 8, every tensor would be unaligned, which costs readers more than sharing saves.
    try:
        header = pad_header(raw, start if start % 8 == 0 else 0)
    except ValueError as error:
        raise make_unwritable("RK505", str(error), help=("write shards: --shard-size 5GB",)) from None
    return FileLayout(name, (BytesPiece(header), *data), tuple(moves))


def check_dims(moves: Iterable[Move]) -> None:
    """Raise `UnwritableOutput` (RK505) for tensors with more dimensions than any reader accepts, ours included."""
    for move in moves:
        if len(move.spec.shape) > MAX_DIMS:
            rank = len(move.spec.shape)
            title = f"{show_key(move.target)} would have {rank} dimensions; tensors have at most {MAX_DIMS}"
            raise make_unwritable("RK505", title, help=("reshape it to fewer",))


def _check_dtypes(moves: Iterable[Move]) -> None:
    for move in moves:
        if move.spec.dtype not in FORMAT_DTYPES:
            title = f"{move.target} is {move.spec.dtype}, which safetensors does not support"
            raise make_unwritable("RK505", title, help=("write a .pth: -o OUT.pth",))


def make_tensor_piece(move: Move, reader: Reader) -> Piece:
    """Return a target's bytes as one piece: a range of a source file, or a tensor that must be computed."""
    extent = reader.extent(move.sources[0]) if not move.ops else None
    if extent is None:
        return StreamPiece(move, move.spec.nbytes)
    return CopyPiece(extent.source, extent.offset, extent.length)


def make_tensor_pieces(move: Move, reader: Reader) -> list[Piece]:
    """Return a target's bytes as pieces: operations that only move ranges of bytes become copies."""
    if move.ops and move.sources:
        header = reader.header()
        ranges = find_byte_ranges(move.ops, [header[fqn] for fqn in move.sources])
        extents = [reader.extent(fqn) for fqn in move.sources] if ranges is not None else [None]
        known = [extent for extent in extents if extent is not None]
        if ranges is not None and len(known) == len(extents):
            return [CopyPiece(known[r.source].source, known[r.source].offset + r.offset, r.length) for r in ranges]
    return [make_tensor_piece(move, reader)]


def _merge_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Remove empty pieces, and merge ranges that are adjacent both in the file and in their source.

    So a rename of a whole file is one copy, which the filesystem can do by sharing blocks.
    """
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
    """Lay out shards of at most `shard_size` bytes of tensors, filled in order, and the index last.

    Source: the layout of Hugging Face's sharded checkpoints: `stem-00001-of-00003.safetensors` and
    `stem.safetensors.index.json` with `metadata.total_size` and `weight_map`. If one shard is enough, it is one file.
    """
    groups = _split_into_shards(moves, shard_size)
    if not is_utf8(stem):
        title = f"the index cannot list shards of {stem}: JSON needs names in UTF-8"
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
    """Split the moves in order; a shard ends where the next tensor does not fit. A tensor larger than it is alone."""
    groups: list[list[Move]] = [[]]
    room = shard_size
    for move in moves:
        if groups[-1] and move.spec.nbytes > room:
            groups.append([])
            room = shard_size
        groups[-1].append(move)
        room -= move.spec.nbytes
    return groups
