"""A reader that shows the tensors of another one under other names: those below a root, without some segments."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.wording import count_noun, join_words, list_names, show_key
from remapkit.files.errors import FileFault, make_note
from remapkit.files.source_file import CHUNK, Extent
from remapkit.formats.name_map import NameMap
from remapkit.formats.quoted_names import rewrite_quoted
from remapkit.formats.reader import FileReader, Reader
from remapkit.tensors.roots import Root, list_roots, split_prefixes, suggest_roots
from remapkit.tensors.spec import OPAQUE, StateDictSpec, find_recorded_names


@dataclass(frozen=True, slots=True)
class Renaming:
    """The names below a root without some segments: `names` maps each new name to the old one, in the old order.

    `outside` counts the keys that are not below the root by their first segment, `stripped` the keys that each
    segment was taken out of.
    """

    names: Mapping[str, str]
    outside: Mapping[str, int] = field(default_factory=dict)
    stripped: Mapping[str, int] = field(default_factory=dict)


def rename_keys(fqns: Iterable[str], root: str = "", strip: Collection[str] = ()) -> Renaming:
    """Return the names below `root`, without the segments in `strip`.

    Raises `FileFault`: RK416 if there is no name below the root, RK417 if two names become one or nothing is left of
    a name.

    >>> found = rename_keys(["net.module.w", "net.b", "ema.w", "step"], "net", ["module"])
    >>> found.names, dict(found.outside), found.stripped
    ({'w': 'net.module.w', 'b': 'net.b'}, {'ema': 1, 'step': 1}, {'module': 1})
    """
    names = fqns if isinstance(fqns, StateDictSpec) else list(fqns)
    fqns = list(names)
    below = new = fqns
    outside: Counter[str] = Counter()
    if root:
        below, new = _cut_root(names, f"{root}.")
        if not below:
            raise make_missing_root(root, list_roots(names))
        if len(below) < len(fqns):
            inside = set(below)
            outside.update(
                name.partition(".")[0] for mount, name in split_prefixes(names) if mount + name not in inside
            )
    new, stripped = _strip_segments(new, strip)
    found = dict(zip(new, below, strict=True))
    if found.get(""):  # a file may have a tensor whose name is empty; that is another matter
        title = "nothing is left of this key without its segments " + join_words(map(repr, sorted(stripped)), 5)
        raise FileFault("RK417", title, key=found[""], help=("strip less",))
    if len(found) < len(below):
        raise _make_clash_fault(new, below, stripped)
    return Renaming(found, outside, stripped)


def _cut_root(names: Collection[str], prefix: str) -> tuple[list[str], list[str]]:
    """Return the names below a root, and the same without it; it lies behind the prefix of a mount, which stays."""
    if not isinstance(names, StateDictSpec) or names.prefixes == ("",):
        below = [name for name in names if name.startswith(prefix)]
        return below, [name[len(prefix) :] for name in below]
    inside = [(mount, name) for mount, name in split_prefixes(names) if name.startswith(prefix)]
    return [mount + name for mount, name in inside], [mount + name[len(prefix) :] for mount, name in inside]


def _strip_segments(names: list[str], strip: Collection[str]) -> tuple[list[str], dict[str, int]]:
    """Return the names without some segments, and the number of names that each segment was taken out of.

    One regular expression goes over all names at once: 50,000 names one by one would cost several times as much.
    """
    text = "\n".join(names) if strip else ""
    wanted = [segment for segment in dict.fromkeys(strip) if segment in text]
    framed = f".{text.replace(chr(10), '..')}."
    wanted = [segment for segment in wanted if f".{segment}." in framed]
    if not wanted:
        return names, {}
    words, ends = "|".join(map(re.escape, wanted)), tuple(wanted)
    found = re.sub(rf"(?:(?<=[.\n])|\A)(?:{words})(?:\.|(?=\n)|\Z)", "", text).split("\n")
    if len(found) != len(names) or any(name.endswith(ends) for name in names):
        # A name that ends with the segment also loses the dot before it.
        split = (name.split(".") for name in names)
        found = [".".join(segment for segment in segments if segment not in wanted) for segments in split]
    if len(wanted) == 1:
        return found, {wanted[0]: sum(map(operator.ne, names, found))}
    return found, {segment: sum(f".{segment}." in f".{name}." for name in names) for segment in wanted}


def _make_clash_fault(new: Sequence[str], old: Sequence[str], stripped: Collection[str]) -> FileFault:
    pairs = []
    first: dict[str, str] = {}
    for name, fqn in zip(new, old, strict=True):
        if first.setdefault(name, fqn) is not fqn:
            pairs.append(f"{show_key(first[name])} and {show_key(fqn)}")
    title = f"{pairs[0]} become one key without {join_words(map(repr, stripped), 5)}"
    help = ("strip less, or choose one of the two with --root",)
    return FileFault("RK417", title, help=help, notes=(list_names(pairs[1:]),) if pairs[1:] else ())


def make_missing_root(root: str, roots: Sequence[Root], notes: tuple[str, ...] = ()) -> FileFault:
    """Return the error (RK416) for a root that a checkpoint does not have, with those that it has."""
    near = suggest_roots(roots, root)
    if near:
        help = (f"did you mean {' or '.join(f'--root {show_key(path)}' for path in near)}?",)
    elif roots:
        help = (f"roots with most keys: {join_words((show_key(root.path) for root in roots), 6)}",)
    else:
        help = ("its keys have no prefixes: leave out --root",)
    return FileFault("RK416", f"no tensors at --root {show_key(root)}", help=help, notes=notes)


def describe_outside(root: str, outside: Mapping[str, int]) -> str:
    """Say how many keys lie outside a root, and under which first segments.

    >>> describe_outside("model", {"ema": 12, "step": 1})
    "13 tensors outside 'model' were left out (ema: 12 and step: 1)"
    """
    total = sum(outside.values())
    ordered = sorted(outside.items(), key=lambda item: -item[1])
    where = join_words((f"{show_key(segment, 60)}: {count}" for segment, count in ordered), 5)
    was = "was" if total == 1 else "were"
    return f"{count_noun(total, 'tensor')} outside {show_key(root)!r} {was} left out ({where})"


def rename_reader(reader: Reader, root: str = "", strip: Collection[str] = ()) -> Reader:
    """Return a reader of the tensors below a root, without some segments; the reader itself if that is the same.

    Raises `UnreadableCheckpoint` (RK416, RK417), and closes the reader.
    """
    try:
        renaming = rename_keys(reader.header(), root, strip)
    except FileFault as fault:
        reader.close()
        raise fault.at(reader.path) from None
    if not root and not renaming.stripped:
        return reader
    return RenamedReader(reader, root, renaming)


class RenamedReader(FileReader):
    """A reader that shows the tensors of another one under other names; it closes the other one too.

    No byte is copied: extents and chunks are those of the other reader. Names that the metadata record as tied are
    renamed with their tensors, also in the metadata, and so are the names that other entries quote.
    """

    def __init__(self, reader: Reader, root: str, renaming: Renaming) -> None:
        super().__init__(reader.path, reader.sources)
        self.format = reader.format
        self.root = ".".join(filter(None, (reader.root, root)))
        self.shards = reader.shards
        self.notes = (*reader.notes, *_list_notes(reader.path, self.root, renaming))
        self.reader = reader
        self._names = dict(renaming.names)
        self._header = self._build_header(reader.header(), root, renaming)

    def _build_header(self, header: StateDictSpec, root: str, renaming: Renaming) -> StateDictSpec:
        tensors = {name: header.tensors[fqn] for name, fqn in renaming.names.items()}
        new = {fqn: name for name, fqn in renaming.names.items()}
        groups = (tuple(new[fqn] for fqn in group if fqn in new) for group in header.tied)
        tied = tuple(group for group in groups if len(group) > 1)
        metadata = dict(header.metadata)
        first = {
            mount + name: (mount, name)
            for mount, name in split_prefixes(replace(header, tensors=dict.fromkeys(header.recorded, OPAQUE)))
        }
        for other, kept in header.recorded.items():
            mount, rest = first.get(other, ("", other))
            name = _rename_one(rest, root, renaming.stripped)
            name = mount + name if name else ""
            if kept in new and name and name not in tensors:
                del metadata[other]
                metadata[name] = new[kept]
                self._names[name] = other
        names = NameMap({fqn: [new[fqn]] if fqn in new else [] for fqn in header})
        self.notes = (*self.notes, *rewrite_quoted(metadata, names, str(self.path)))
        recorded = find_recorded_names(tensors, metadata)
        return StateDictSpec(
            tensors,
            tied,
            metadata,
            header.name,
            {n: k for n, k in recorded.items() if n in self._names},
            header.prefixes,
        )

    def list_old_names(self, fqns: Iterable[str]) -> tuple[str, ...]:
        """Return the names that the other reader has for these names."""
        return tuple(self._names[fqn] for fqn in fqns)

    def header(self) -> StateDictSpec:
        """Return the tensors' new names, in the order of the file."""
        return self._header

    def extent(self, fqn: str) -> Extent | None:
        """Return the location of the tensor's bytes."""
        return self.reader.extent(self._names[fqn])

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes."""
        return self.reader.chunks(self._names[fqn], size)

    def crc32(self, fqn: str) -> int | None:
        """Return the checksum of the tensor's bytes if the file contains it."""
        return self.reader.crc32(self._names[fqn])

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) if a file was written to since it was opened."""
        self.reader.check_unchanged()

    def check_sums(self) -> None:
        """Compare all checksums of the other reader."""
        self.reader.check_sums()

    def close(self) -> None:
        """Close the other reader."""
        self.reader.close()


def _rename_one(fqn: str, root: str, stripped: Collection[str]) -> str:
    """Return the new name of a recorded name; empty if it is outside the root."""
    if root and not fqn.startswith(f"{root}."):
        return ""
    name = fqn[len(root) + 1 :] if root else fqn
    return ".".join(segment for segment in name.split(".") if segment not in stripped)


def _list_notes(path: Path, root: str, renaming: Renaming) -> Iterator[Diagnostic]:
    if renaming.outside:
        yield make_note("RK413", describe_outside(root, renaming.outside), path)
    if renaming.stripped:
        parts = (f"{show_key(segment)!r} out of {count_noun(n, 'key')}" for segment, n in renaming.stripped.items())
        yield make_note("RK418", f"names of wrappers were taken out: {join_words(parts, 5)}", path)
