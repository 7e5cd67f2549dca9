"""What a call writes and how: the options of `apply` for its outputs, and the names of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.api.sizes import parse_size
from remapkit.compute.move_bytes import refuse_unequal_merges
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import join_words
from remapkit.files.errors import make_unwritable
from remapkit.files.index_names import is_index
from remapkit.formats import Reader
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.sources.joined import JoinedReader
from remapkit.sources.mounts import Mount, SourceLike
from remapkit.sources.parts import find_only_path, list_parts
from remapkit.write.apply import default_output
from remapkit.write.beside import FilesBeside
from remapkit.write.execute import (
    KNOWN_SUFFIXES,
    WrittenFiles,
    choose_format,
    refuse_same_output,
    rename_in_place,
    write_outputs,
)
from remapkit.write.layout import split_ties
from remapkit.write.outputs import Output, OutputsLike, make_outputs, read_outputs
from remapkit.write.targets import check_folders


@dataclass(frozen=True, slots=True)
class Writing:
    """The options for writing; conflicting options are refused."""

    mounts: tuple[Mount, ...] | None
    to_format: str | None
    dry_run: bool
    in_place: bool
    shard_size: int | str | None
    verify: bool
    untie: bool
    force: bool
    progress: Callable[[int, int], None] | None

    def __post_init__(self) -> None:
        """Raise `UsageError` (RK609, RK613) or `UnwritableOutput` (RK511) before anything is read."""
        paths = [str(mount.file) for mount in self.mounts or ()]
        for path in paths:
            if path in ("", "-"):
                help = ("a checkpoint is written beside its final place and then renamed; name a file",)
                raise UsageError(Diagnostic("RK609", f"-o {path!r} is not a file name", help=help))
        if self.in_place:
            self._refuse_beside_in_place()
        if self.shard_size is not None:
            parse_size(self.shard_size)
        for path in paths:
            if self.shard_size is None and is_index(Path(path).name):
                title = f"{path} is the name of an index of shards"
                raise UsageError(Diagnostic("RK609", title, help=("set the size of the shards: --shard-size 5GB",)))
            # A suffix with a number in it is known only with the keys.
            if "{" not in Path(path).suffix:
                self._check_format(path)

    def check_source(self, source: SourceLike) -> None:
        """Raise `UsageError` (RK609) if several files are read, but no output is named."""
        if self.in_place:
            find_single_file(source)
        elif self.mounts is None and not self.dry_run:
            choose_outputs(source, None, self.to_format)

    def require_output(self, source: SourceLike) -> None:
        """Raise `UsageError` (RK609) if the default output is the source: only a rename can be done in place."""
        if self.mounts is not None or self.dry_run or (path := find_only_path(source)) is None:
            return
        if default_output(path, f".{self.to_format or 'safetensors'}") == path:
            title = f"{path} is the input: where should the result go?"
            raise UsageError(Diagnostic("RK609", title, help=("name a file with -o OUT",)))

    def _refuse_beside_in_place(self) -> None:
        options = {
            "output": self.mounts,
            "to-format": self.to_format,
            "shard-size": self.shard_size,
            "verify": self.verify,
            "untie": self.untie,
            "force": self.force,
        }
        given = [f"--{option}" for option, value in options.items() if value]
        if given:
            title = f"--in-place writes no other file and moves no data; it cannot be used with {', '.join(given)}"
            raise UsageError(Diagnostic("RK609", title, help=("leave out --in-place, or the other options",)))

    def _check_format(self, path: str) -> None:
        """Refuse a name without a known suffix, or with another format than `to_format`."""
        format = choose_format(path, self.to_format, shards=self.shard_size is not None)
        if Path(path).suffix.lower() in KNOWN_SUFFIXES and choose_format(path) != format:
            title = f"{path} is a name for {choose_format(path)}, but --to-format is {format}"
            raise make_unwritable("RK511", title, help=("leave out --to-format, or give the file another suffix",))

    def divide(
        self,
        plan: ResolvedPlan,
        moves: Sequence[Move],
        reader: Reader,
        source: SourceLike,
        provenance: Mapping[str, str],
    ) -> tuple[Output, ...]:
        """Return what goes to which output; nothing for a dry run that names none."""
        if self.in_place:
            mounts = read_outputs(find_single_file(source))
        elif self.mounts is not None or not self.dry_run:
            mounts = self.mounts or choose_outputs(source, None, self.to_format)
        else:
            return ()
        # The source's metadata without the names that became keys; the writer adds the records of tied names.
        own = {name: value for name, value in reader.header().metadata.items() if name not in plan.source}
        outputs = make_outputs(mounts, moves, plan, own, provenance)
        refuse_same_output(outputs, self.shard_size is not None)
        return outputs

    def write_with_texts(
        self,
        plan: ResolvedPlan,
        moves: Sequence[Move],
        reader: Reader,
        outputs: Sequence[Output],
        texts: Mapping[str, str],
        inputs: Sequence[Path],
    ) -> tuple[WrittenFiles, tuple[Path, ...]]:
        """Write the outputs, and texts beside them by name: all of it or nothing; none of `inputs` is replaced."""
        if not texts or self.dry_run:
            return self.write(plan, moves, reader, outputs), ()
        if len(outputs) != 1 or outputs[0].prefix:
            title = f"{join_words(texts)} belongs beside one file, and the outputs are several, or have a prefix"
            raise UsageError(Diagnostic("RK609", title, help=("name one output, without a prefix: -o OUT",)))
        check_folders([outputs[0].path])
        with FilesBeside((), outputs[0].path.parent, force=self.force, texts=texts, inputs=inputs) as beside:
            return self.write(plan, moves, reader, outputs), beside.commit()

    def write(
        self, plan: ResolvedPlan, moves: Sequence[Move], reader: Reader, outputs: Sequence[Output]
    ) -> WrittenFiles:
        if self.dry_run:
            if reader.format != "manifest":
                refuse_unequal_merges(moves, reader)
            return WrittenFiles((), 0, 0, 0.0)
        if self.in_place:
            renamed, recorded = split_ties(outputs[0].moves, outputs[0].tied)
            return rename_in_place(renamed, reader, metadata={**outputs[0].metadata, **recorded})
        return write_outputs(
            outputs,
            reader,
            format=self.to_format or ("safetensors" if self.mounts is None else None),
            shard_size=None if self.shard_size is None else parse_size(self.shard_size),
            untie=self.untie,
            verify=self.verify,
            force=self.force,
            progress=self.progress,
        )


def choose_outputs(source: SourceLike, output: OutputsLike | None, to_format: str | None = None) -> tuple[Mount, ...]:
    """Return the outputs of `apply`: the named ones, else the source's name with another suffix.

    Raises `UsageError` (RK609) if none is named and the source is several files.
    """
    if output is not None:
        return read_outputs(output)
    if (path := find_only_path(source)) is None:
        title = "a mount, or several files, are read: where should the result go?"
        raise UsageError(Diagnostic("RK609", title, help=("name a file with -o OUT",)))
    return read_outputs(default_output(path, f".{to_format or 'safetensors'}"))


def find_single_file(source: SourceLike) -> Path:
    """Return the path of a source that is one file under no prefix; raises `UsageError` (RK609) for any other."""
    if (path := find_only_path(source)) is not None:
        return path
    title = "--in-place renames inside one file, without a prefix; the source is a mount, or several files"
    raise UsageError(Diagnostic("RK609", title, help=("leave out --in-place, and name an output: -o OUT",)))


def name_source(source: SourceLike, reader: Reader) -> str:
    """Return the names of the files that were read, each with its prefix, for the metadata of what is made of it."""
    if not isinstance(reader, JoinedReader):
        return list_parts(source)[0].first.name
    names = ((member.prefix, member.reader.path.name) for member in reader.members)
    return ", ".join(f"{prefix}={name}" if prefix else name for prefix, name in names)
