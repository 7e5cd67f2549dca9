"""Writes moves to files: one target tensor at a time, or whole ranges copied by the kernel.

Only the targets are ever opened for writing, and they appear whole or not at all. `rename_in_place` is the only
exception, and keeps a journal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from remapkit.compute.move_bytes import Run, read_target_chunks, refuse_unequal_merges
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedWrite, UsageError
from remapkit.diagnostics.wording import list_names, show_key
from remapkit.files.atomic import ignore_interrupts
from remapkit.files.errors import make_unwritable
from remapkit.files.index_names import split_index_name
from remapkit.files.locks import hold_locks
from remapkit.formats.compare import are_equal_streams
from remapkit.formats.detect import open_checkpoint
from remapkit.formats.reader import Reader
from remapkit.formats.renamed import RenamedReader
from remapkit.plans.moves import Move
from remapkit.write import in_place
from remapkit.write.layout import FileLayout, OutputLayout, lay_out_safetensors, lay_out_shards, split_ties
from remapkit.write.outputs import Output
from remapkit.write.targets import find_same_output
from remapkit.write.torch_zip import lay_out_pth
from remapkit.write.writer import Progress, Writer, forget_cached

PTH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
"""Outputs with these suffixes are written in the format of torch.save."""
KNOWN_SUFFIXES = (".safetensors", *PTH_SUFFIXES)
FORMATS = ("safetensors", "pth")


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """The result of a write: the files (an index after its shards), numbers of tensors and bytes, the methods used.

    `how` is a subset of reflink, copy_file_range, sendfile, loop (ranges of files), gathered (views, operations),
    header, shifted (in place). `tied` maps names that are only recorded to the names whose tensors are written.
    """

    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    seconds: float
    how: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    verified: bool = False
    kept: int = 0
    """The number of complete files of a killed run that were reused."""


def write_checkpoint(
    moves: Sequence[Move],
    reader: Reader,
    out: str | Path,
    *,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    force: bool = False,
    untie: bool = False,
    tied: Sequence[Sequence[str]] | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    run: Run | None = None,
) -> WrittenFiles:
    """Write the targets of `moves`, in their order, to `out`.

    `format` is `safetensors` or `pth`; by default the suffix of `out` decides. With `shard_size` (bytes) the output
    is `out` without its suffix plus `-00001-of-00003.safetensors` and so on, with an index, or one file if one is
    enough. `tied` are groups of targets that share one storage (by default those whose sources do): a `.pth` keeps
    them tied, safetensors writes one name of each group and records the others in its metadata, and `untie` writes
    copies. `run` replaces the function that computes moves with operations. `verify` reads the output back before it
    gets its name.

    Raises `UnwritableOutput` (RK5xx) with nothing changed, `UnreadableCheckpoint` if the source changes meanwhile,
    `FailedCheck` (RK347) before anything is written if tensors to merge differ.
    """
    groups = tied if tied is not None else find_tied_targets(moves, reader)
    return write_outputs(
        [Output(Path(out), tuple(moves), metadata=metadata or {}, tied=groups)],
        reader,
        format=format,
        shard_size=shard_size,
        force=force,
        untie=untie,
        progress=progress,
        verify=verify,
        run=run,
    )


def write_outputs(
    outputs: Sequence[Output],
    reader: Reader,
    *,
    format: str | None = None,
    shard_size: int | None = None,
    force: bool = False,
    untie: bool = False,
    progress: Progress | None = None,
    verify: bool = False,
    run: Run | None = None,
) -> WrittenFiles:
    """Write several checkpoints, all or none of them; see `write_checkpoint` for the options and the errors.

    All files of all outputs are complete and flushed before the first one gets its name. `files` are in the order of
    `outputs`; `tied` has the names with their prefixes. Raises `UnwritableOutput` (RK517) if two outputs would write
    one file.
    """
    started = time.monotonic()
    refuse_same_output(outputs, shard_size is not None)
    layouts: list[OutputLayout] = []
    recorded: dict[str, str] = {}
    for output in outputs:
        files, names = _lay_out_files(output, reader, format, shard_size, untie)
        layouts.append(OutputLayout(output.path.parent, tuple(files)))
        recorded |= {output.prefix + other: output.prefix + kept for other, kept in names.items()}
    writer = Writer(reader, layouts, progress, run)
    inspect = _make_inspector(reader, run) if verify else None
    if verify:
        reader.check_sums()
    refuse_unequal_merges([move for output in outputs for move in output.moves], reader)
    written = writer.write(force, inspect)
    return WrittenFiles(
        files=written,
        tensors=sum(len(output.moves) for output in outputs) - len(recorded),
        nbytes=writer.total,
        seconds=time.monotonic() - started,
        how=tuple(writer.how),
        tied=recorded,
        verified=verify,
        kept=writer.kept,
    )


def refuse_same_output(outputs: Sequence[Output], shards: bool) -> None:
    """Raise `UnwritableOutput` (RK517) if two outputs would write one file, or are one checkpoint in two layouts."""
    if len(outputs) < 2:
        return
    names = [f"{make_shard_stem(output.path)}.safetensors" if shards else output.path.name for output in outputs]
    both = find_same_output([output.path for output in outputs], names)
    if both is None:
        return
    one, other = (outputs[number] for number in both)
    title = f"two outputs, {one.prefix!r} and {other.prefix!r}, would write {other.path}"
    if one.path != other.path:
        title = f"the outputs {one.path} and {other.path} are the same file, or two layouts of one checkpoint"
    help = ("give each output another file name, or another folder",)
    raise make_unwritable("RK517", title, help=help)


def choose_format(out: str | Path, format: str | None = None, *, shards: bool = False) -> str:
    """Return the format of an output, `safetensors` or `pth`: the given one, else that of its suffix.

    Shards are always safetensors, whatever the name. Raises `UnwritableOutput` (RK511) if the format is unknown, and
    `UsageError` if the given one is none.

    >>> choose_format("model.safetensors"), choose_format("model.PT"), choose_format("model.v2", "pth")
    ('safetensors', 'pth', 'pth')
    """
    if format is not None:
        if format not in FORMATS:
            title = f"--to-format {format!r} is not supported: choose 'safetensors' or 'pth'"
            raise UsageError(
                Diagnostic("RK609", title, help=("leave it out where the suffix of the output says it",))
            )
        return format
    out = Path(out)
    suffix = out.suffix.lower()
    if suffix in PTH_SUFFIXES:
        return "pth"
    # A folder is refused later, with an error that says that it is a folder.
    if suffix == ".safetensors" or shards or os.path.isdir(out):  # noqa: PTH112 - any name may be asked
        return "safetensors"
    what = f"the suffix {out.suffix} is not known" if suffix else "the name has no suffix"
    title = f"cannot tell the format of {out.name}: {what}"
    help = ("name the file .safetensors or .pth, or pass --to-format safetensors or --to-format pth",)
    raise make_unwritable("RK511", title, help=help)


def _lay_out_files(
    output: Output, reader: Reader, format: str | None, shard_size: int | None, untie: bool
) -> tuple[list[FileLayout], Mapping[str, str]]:
    """Return the files to write, and the tied names that are only recorded."""
    out, moves, metadata = output.path, output.moves, output.metadata
    format = choose_format(out, format, shards=shard_size is not None)
    tied = () if untie else output.tied
    if format == "pth":
        if shard_size is not None:
            title = f"--shard-size writes safetensors, not .pth: {out}"
            raise make_unwritable("RK505", title, help=("leave one of them out",))
        return [lay_out_pth(out.name, moves, reader, metadata, tied)], {}
    kept, recorded = split_ties(moves, tied)
    # transformers refuses files without this.
    described = {"format": "pt", **metadata, **recorded}
    if shard_size is not None:
        return lay_out_shards(make_shard_stem(out), kept, reader, described, shard_size), recorded
    return [lay_out_safetensors(out.name, kept, reader, described)], recorded


def make_shard_stem(out: Path) -> str:
    """Return the common beginning of the shards' names.

    >>> make_shard_stem(Path("out/model.safetensors")), make_shard_stem(Path("model.safetensors.index.json"))
    ('model', 'model')
    >>> make_shard_stem(Path("model.safetensors.index.fp16.json"))
    'model.fp16'
    """
    name, variant = split_index_name(out.name)
    return name.removesuffix(".safetensors") + variant


def find_tied_targets(moves: Sequence[Move], reader: Reader) -> list[list[str]]:
    """Return the groups of targets whose sources share one storage with the same offset, shape and strides."""
    by_source: dict[str, list[str]] = {}
    for move in moves:
        if not move.ops:
            by_source.setdefault(move.sources[0], []).append(move.target)
    groups = ([target for fqn in group for target in by_source.get(fqn, ())] for group in reader.header().tied)
    return [group for group in groups if len(group) > 1]


def rename_in_place(
    moves: Sequence[Move], reader: Reader, *, metadata: Mapping[str, str] | None = None
) -> WrittenFiles:
    """Rename the tensors of one safetensors file by writing only its header; the data stays where it is.

    Every tensor must be kept, and none computed. An interrupted run leaves the file unchanged, or with a journal from
    which `recover` restores it. Afterwards the reader's header is outdated.

    Raises `UnwritableOutput` (RK507) if the file cannot be renamed in place: other formats, links to it, dropped or
    computed tensors.
    """
    started = time.monotonic()
    if isinstance(reader, RenamedReader):
        moves, reader = [replace(move, sources=reader.list_old_names(move.sources)) for move in moves], reader.reader
    source = in_place.require_safetensors(reader)
    path = source.path
    in_place.check_no_links(path, source.sources[0])
    raw = in_place.make_header(moves, source, {"format": "pt", **(metadata or {})})
    with hold_locks([path]):
        how, nbytes = in_place.replace_header(path, source, raw)
        with ignore_interrupts():
            _check_renamed(path, moves)
    return WrittenFiles((path,), len(moves), nbytes, time.monotonic() - started, (how,))


def _check_renamed(path: Path, moves: Sequence[Move]) -> None:
    with open_checkpoint(path) as renamed:
        header = renamed.header()
        wrong = [move.target for move in moves if header.tensors.get(move.target) != move.spec]
    if wrong:
        raise _make_write_error(f"{len(wrong)} of {len(moves)} tensors were renamed incorrectly", show_key(wrong[0]))


def recover(path: str | Path) -> bool:
    """Restore a file whose rename in place was interrupted, byte for byte; return False if there is no journal.

    Raises `UnwritableOutput` (RK508) if the file is not the one that the journal describes.
    """
    return in_place.recover(Path(path))


def compare_output(moves: Sequence[Move], reader: Reader, out: str | Path, *, run: Run | None = None) -> int:
    """Read `out` back and compare every target with its source, byte by byte; return the number of tensors.

    A name that the output only records as tied is compared with the tensor that it is tied to. Raises
    `UnwritableOutput` (RK506) with the names of tensors that differ, `UnreadableCheckpoint` if `out` cannot be read.
    """
    with open_checkpoint(out, allow_expand=True) as written:
        _compare_targets(moves, reader, written, run)
    return len(moves)


def _make_inspector(reader: Reader, run: Run | None) -> Callable[[Path, FileLayout], None]:
    def inspect(path: Path, layout: FileLayout) -> None:
        if layout.moves:
            forget_cached(path)
            with open_checkpoint(path, allow_expand=True) as written:
                _compare_targets(layout.moves, reader, written, run)

    return inspect


def _compare_targets(moves: Sequence[Move], reader: Reader, written: Reader, run: Run | None) -> None:
    header = written.header()
    wrong = [move.target for move in moves if not _is_same_target(move, reader, written, header.metadata, run)]
    if wrong:
        names = list_names(list(map(show_key, wrong)))
        title = f"{len(wrong)} of {len(moves)} tensors were written incorrectly"
        raise _make_write_error(title, names)


def _make_write_error(title: str, names: str) -> FailedWrite:
    help = ("check the disk and the memory, then run it again",)
    return FailedWrite(Diagnostic("RK506", title, notes=(names,), help=help))


def _is_same_target(move: Move, reader: Reader, written: Reader, tied: Mapping[str, str], run: Run | None) -> bool:
    header = written.header()
    name = move.target if move.target in header else tied.get(move.target, move.target)
    if name not in header or header[name] != move.spec:
        return False
    return are_equal_streams(read_target_chunks(move, reader, run), written.chunks(name))


__all__ = [
    "Progress",
    "Run",
    "WrittenFiles",
    "choose_format",
    "compare_output",
    "find_tied_targets",
    "make_shard_stem",
    "recover",
    "refuse_same_output",
    "rename_in_place",
    "write_checkpoint",
    "write_outputs",
]
