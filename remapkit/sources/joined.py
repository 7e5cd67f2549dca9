"""Several checkpoints read as one: the keys of each under its prefix, their metadata merged, no key twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, UnreadableCheckpoint
from remapkit.diagnostics.wording import count_noun, join_words, list_names, quote_excerpt, show_key
from remapkit.files.errors import FileFault, make_note
from remapkit.files.source_file import CHUNK, Extent
from remapkit.formats.name_map import NameMap
from remapkit.formats.quoted_names import merge_entries, rewrite_quoted
from remapkit.formats.reader import FileReader, Reader
from remapkit.formats.renamed import RenamedReader
from remapkit.tensors.spec import StateDictSpec, TensorSpec, find_name_problem, find_recorded_names

PROVENANCE = ("remapkit.rules", "remapkit.digest", "remapkit.source", "remapkit.version")
"""Entries about an earlier run, which `apply` replaces by its own: files of several runs may differ in them."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of the joined checkpoints: the prefix of its keys, and what messages call it."""

    prefix: str
    label: str
    reader: Reader


@dataclass(frozen=True, slots=True)
class Contradiction:
    """An entry of the metadata with several values: each value with the file that has it."""

    name: str
    values: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        said = (f"{quote_excerpt(value, 40)} in {label}" for label, value in self.values)
        return f"{show_key(self.name)}: {join_words(said, 4)}"


class JoinedReader(FileReader):
    """A reader of several checkpoints; it closes them.

    No byte is copied: extents and chunks are those of the members. `contradictions` are the entries of the metadata
    that were left out because the files have different values.

    Raises `FileFault` (RK430) if a key is in two of them.
    """

    def __init__(self, members: Sequence[Member], chosen: Member | None = None) -> None:
        readers = [member.reader for member in members]
        super().__init__(_find_place(readers), [source for reader in readers for source in reader.sources])
        self.members = members
        self.shards = {member.label: member.reader for member in members}
        kinds = dict.fromkeys(reader.format.removeprefix("sharded ") for reader in readers)
        self.format = "manifest" if "manifest" in kinds else f"joined {join_words(kinds)}"
        roots = {reader.root for reader in readers}
        self.root = roots.pop() if len(roots) == 1 else ""
        self._home = _find_homes(members)
        metadata, self.contradictions = merge_metadata(members, chosen)
        self._header = self._build_header(metadata)
        self.notes = (*_list_notes(self), *_merge_notes(self.path, readers))

    def _build_header(self, metadata: Mapping[str, str]) -> StateDictSpec:
        tensors: dict[str, TensorSpec] = {}
        tied: list[tuple[str, ...]] = []
        for member in self.members:
            prefix, header = member.prefix, member.reader.header()
            tensors.update({prefix + fqn: spec for fqn, spec in header.items()} if prefix else header.tensors)
            tied += [tuple(prefix + fqn for fqn in group) for group in header.tied]
        recorded = find_recorded_names(tensors, metadata)
        for other, kept in recorded.items():
            self._home.setdefault(other, self._home[kept])
        name = join_words((member.label for member in self.members), 3)
        prefixes = tuple(dict.fromkeys(member.prefix for member in self.members))
        return StateDictSpec(tensors, tuple(tied), metadata, name, recorded, prefixes)

    def header(self) -> StateDictSpec:
        """Return names, dtypes and shapes of all members, in their order."""
        return self._header

    def find_member(self, fqn: str) -> tuple[Member, str]:
        """Return the member that has a tensor, and the tensor's name there."""
        member = self._home[fqn]
        name = self._header.recorded.get(fqn, fqn)
        return member, name[len(member.prefix) :]

    def extent(self, fqn: str) -> Extent | None:
        """Return the location of the tensor's bytes in its file."""
        member, name = self.find_member(fqn)
        return member.reader.extent(name)

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes from its file."""
        member, name = self.find_member(fqn)
        return member.reader.chunks(name, size)

    def crc32(self, fqn: str) -> int | None:
        """Return the tensor's checksum from its file."""
        member, name = self.find_member(fqn)
        return member.reader.crc32(name)

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) if a file was written to since it was opened."""
        for member in self.members:
            member.reader.check_unchanged()

    def check_sums(self) -> None:
        """Compare the checksums of every member."""
        for member in self.members:
            member.reader.check_sums()

    def close(self) -> None:
        """Close every member."""
        for member in self.members:
            member.reader.close()


def _find_place(readers: Sequence[Reader]) -> Path:
    """Return the path that messages name: the only file, else the folder of the first one."""
    return readers[0].path if len(readers) == 1 else readers[0].path.parent


def _find_homes(members: Sequence[Member]) -> dict[str, Member]:
    """Return the member of every tensor; raises `FileFault` (RK430) with all that are in two, or RK406."""
    homes: dict[str, Member] = {}
    twice: list[str] = []
    for member in members:
        prefix, header = member.prefix, member.reader.header()
        names = [prefix + fqn for fqn in header]
        longest = max(names, key=len, default="")
        if prefix and (problem := find_name_problem(longest)):
            raise FileFault("RK406", f"under the prefix of {show_key(member.label)} a key {problem}", key=longest)
        if not homes.keys().isdisjoint(names):
            twice += [
                f"{show_key(name)} is in {_place_key(homes[name], name)} and in {_place_key(member, name)}"
                for name in names
                if name in homes
            ]
        homes.update(dict.fromkeys(names, member))
    if twice:
        raise _make_twice_fault(twice, members)
    return homes


def _place_key(member: Member, name: str) -> str:
    """Return the file of a key, with its name there if a root or a strip changed it."""
    reader = member.reader
    old = name[len(member.prefix) :]
    if isinstance(reader, RenamedReader):
        (old,) = reader.list_old_names([old])
    return member.label if member.prefix + old == name else f"{member.label} (as {show_key(old)})"


def _make_twice_fault(twice: Sequence[str], members: Sequence[Member]) -> FileFault:
    title = twice[0] if len(twice) == 1 else f"{len(twice)} keys are in two files: {twice[0]}"
    notes = (list_names(twice[1:]),) if len(twice) > 1 else ()
    paths = [member.reader.path for member in members]
    if len(set(paths)) < len(paths):
        return FileFault("RK430", title, notes=notes, help=("name each file once",))
    help = f"give each file a prefix of its own, such as 'a.={paths[0].name}' 'b.={paths[-1].name}'"
    return FileFault("RK430", title, notes=notes, help=(help,))


def label_files(paths: Sequence[Path]) -> list[str]:
    """Return what messages call files: their names, or their paths if two have one name.

    >>> label_files([Path("a/m.pt"), Path("b/n.pt")]), label_files([Path("a/m.pt"), Path("b/m.pt")])
    (['m.pt', 'n.pt'], ['a/m.pt', 'b/m.pt'])
    """
    names = [path.name or str(path) for path in paths]
    return [str(path) for path in paths] if len(set(names)) < len(set(paths)) else names


# ------------------------------------------------------------------------------------------------------- metadata


def merge_metadata(
    members: Sequence[Member], chosen: Member | None = None
) -> tuple[dict[str, str], tuple[Contradiction, ...]]:
    """Return the metadata of all members, and the entries that contradict each other, which are left out.

    Names in entries have the prefix of their member. Entries that can be one are merged; any other entry with several
    values is that of `chosen`.
    """
    said: dict[str, dict[str, str]] = {}
    for member in members:
        for name, value in _prefix_metadata(member).items():
            said.setdefault(name, {}).setdefault(value, member.label)
    own = {} if chosen is None else _prefix_metadata(chosen)
    merged: dict[str, str] = {}
    contradictions = []
    for name, values in said.items():
        if (one := _merge_values(name, list(values))) is not None:
            merged[name] = one
        elif chosen is not None:
            merged.update({name: own[name]} if name in own else {})
        elif name not in PROVENANCE:
            contradictions.append(Contradiction(name, tuple((label, value) for value, label in values.items())))
    return merged, tuple(contradictions)


def _merge_values(name: str, values: Sequence[str]) -> str | None:
    """Return the one entry that says what all of these say, or None."""
    merged: str | None = values[0]
    for value in values[1:]:
        merged = merge_entries(name, merged, value) if merged is not None else None
    return merged


def _prefix_metadata(member: Member) -> dict[str, str]:
    """Return the metadata of a member with the names that its tensors have below its prefix."""
    header = member.reader.header()
    if not member.prefix:
        return dict(header.metadata)
    recorded = header.recorded
    prefixed = {
        member.prefix + name if name in recorded else name: member.prefix + value if name in recorded else value
        for name, value in header.metadata.items()
    }
    rewrite_quoted(prefixed, _map_names(member), member.label)
    return prefixed


def _map_names(member: Member) -> NameMap:
    return NameMap({fqn: (member.prefix + fqn,) for fqn in member.reader.header()})


def _list_notes(reader: JoinedReader) -> Iterator[Diagnostic]:
    if len(reader.members) > 1:
        title = f"{count_noun(len(reader.members), 'file')} were read as one checkpoint"
        lines = [f"{member.prefix}={member.label}" if member.prefix else member.label for member in reader.members]
        yield replace(make_note("RK433", title, reader.path), notes=(list_names(lines, 8),))
    for member in reader.members:
        if member.prefix:
            yield from rewrite_quoted(dict(member.reader.header().metadata), _map_names(member), member.label)
    if reader.contradictions:
        title = (
            f"{count_noun(len(reader.contradictions), 'entry', 'entries')} of the metadata left out: the files differ"
        )
        help = ("`remapkit apply` needs to be told whose entries are kept: --metadata-from FILE",)
        note = make_note("RK431", title, reader.path, help=help)
        yield replace(note, notes=(list_names([str(each) for each in reader.contradictions]),))


def _merge_notes(folder: Path, readers: Sequence[Reader]) -> Iterator[Diagnostic]:
    """Yield the notes of all members; what is said of several is said once."""
    groups: dict[Diagnostic, list[Diagnostic]] = {}
    for reader in readers:
        for note in reader.notes:
            groups.setdefault(replace(note, place=None), []).append(note)
    for same in groups.values():
        first = same[0]
        more = f"said of {len(same)} files"
        yield first if len(same) == 1 else replace(first, place=str(folder), notes=(*first.notes, more))


def refuse_contradictions(reader: Reader) -> None:
    """Raise `FailedCheck` (RK431) if the metadata of joined files contradict each other."""
    found = reader.contradictions if isinstance(reader, JoinedReader) else ()
    if found:
        title = f"the files contradict each other in {count_noun(len(found), 'entry', 'entries')} of their metadata"
        notes = (list_names([str(each) for each in found]),)
        help = ("choose the file whose entries are kept: --metadata-from FILE",)
        raise FailedCheck(Diagnostic("RK431", title, notes=notes, help=help, place=str(reader.path)))


def show_with_file(reader: Reader, fqn: str) -> str:
    """Return a key as messages name it, with its file if the reader joins several."""
    inner, name = reader, fqn
    while isinstance(inner, RenamedReader):
        (name,) = inner.list_old_names([name])
        inner = inner.reader
    return f"{fqn} ({inner.find_member(name)[0].label})" if isinstance(inner, JoinedReader) else fqn


def join_readers(members: Sequence[Member], chosen: Member | None = None) -> JoinedReader:
    """Return one reader of several; raises `UnreadableCheckpoint` (RK430), and closes them then."""
    try:
        return JoinedReader(members, chosen)
    except BaseException as error:
        for member in members:
            member.reader.close()
        if isinstance(error, FileFault):
            raise error.at(_find_place([member.reader for member in members])) from None
        raise


def name_roots(members: Sequence[Member]) -> UnreadableCheckpoint | None:
    """Return the error (RK432) for files of one mount whose state dicts are under different roots."""
    roots = {member.reader.root: member.label for member in members}
    if len(roots) < 2:
        return None
    (first, one), (other, two) = list(roots.items())[:2]
    places = [f"under {root!r}" if root else "at the top level" for root in (first, other)]
    title = f"the state dict is {places[0]} in {one}, but {places[1]} in {two}"
    fault = FileFault("RK432", title, help=("choose a root that all files of the mount have: --root A.B",))
    return fault.at(members[0].reader.path.parent)
