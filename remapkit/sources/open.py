"""Opens a checkpoint as rules see it: per file the root and the segments that wrappers leave, then all files joined.

A step is named by the caller, else by the rule file under `source:`. torch's private names go by themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.arguments import check_arguments
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint, UsageError
from remapkit.diagnostics.wording import escape_line, join_words
from remapkit.files.errors import FileFault
from remapkit.formats.detect import open_with_options
from remapkit.formats.options import ReadOptions
from remapkit.formats.reader import Reader
from remapkit.formats.renamed import RenamedReader, rename_keys, rename_reader
from remapkit.sources.joined import Member, join_readers, label_files, name_roots
from remapkit.sources.mounts import SourceLike
from remapkit.sources.parts import Part, list_parts
from remapkit.tensors.roots import list_roots

if TYPE_CHECKING:
    from remapkit.rulefile.syntax import RuleFile, WrittenPattern

PRIVATE_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The names under which torch's wrappers keep the wrapped module: of torch.compile, FSDP and checkpointing."""


@check_arguments(SourceLike="str | Path | Sequence | Mapping")
def open_checkpoint(
    source: SourceLike,
    *,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> Reader:
    """Open a checkpoint: safetensors, torch.save's zip or legacy format, or a manifest (which has no data).

    Shards are opened through their index, or all together without one; a folder is opened if it holds exactly one
    checkpoint. Several files are read as one: a list of paths, or a mount, `PREFIX=FILE`, that shows the keys of a
    file under a prefix. `tp{t}.=consolidated.{t}.pth` opens every file that fits. A mapping has a path for each
    prefix.

    `root` names the state dict in a checkpoint that holds more: a mapping in a pickle (`state_dict`), a prefix of the
    keys of any file (`model.diffusion_model`), or both in one path; `.` is the top level. `strip` names segments that
    are taken out of every key, wherever they are: `("module",)`. Both apply to each file, before its prefix.
    `strict_pickle` refuses pickles that name anything that a state dict does not need; `allow_expand` accepts tensors
    that repeat a small storage into much more data. `follow_links` accepts shards that are links to any place;
    without it a link must stay in the checkpoint's folder, or in the download cache that contains it.

    Raises `UnreadableCheckpoint` for anything else. Nothing that a file names is run or imported, and sizes in the
    file are checked before memory is allocated.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "keys.json")
    >>> _ = path.write_text('{"w": {"dtype": "F32", "shape": [2, 3]}}')
    >>> with open_checkpoint(path) as reader:
    ...     print(reader.format, reader.header()["w"])
    manifest F32 [2, 3]
    >>> with open_checkpoint({"vae.": path, "unet.": path}) as reader:
    ...     print(list(reader.header()))
    ['vae.w', 'unet.w']
    """
    options = ReadOptions(root, strict_pickle, allow_expand, follow_links, tuple(strip))
    return _open_parts(list_parts(source), options, joined=False)


def open_source(
    source: SourceLike,
    options: ReadOptions | None = None,
    *,
    rules: RuleFile | None = None,
    spoken: Iterable[str] = (),
    metadata_from: str | Path | None = None,
) -> Reader:
    """Open a checkpoint under the root and without the segments that the options or the rule file name.

    Of several roots in a rule file the first that the checkpoint has is taken, and none if it has none of them; files
    of one mount have the same root. torch's private names are taken out of the keys, unless the rules or the names in
    `spoken` contain them. The first shard of several without an index opens all of them. `metadata_from` is the file
    whose metadata are kept where those of several contradict each other.

    Raises `UnreadableCheckpoint`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "keys.json")
    >>> spec = '{"dtype": "F32", "shape": [2]}'
    >>> _ = path.write_text(f'{{"net.h._orig_mod.w": {spec}, "ema.h.w": {spec}}}')
    >>> with open_source(path, ReadOptions("net")) as reader:
    ...     print(list(reader.header()), [note.code for note in reader.notes])
    ['h.w'] ['RK413', 'RK418']
    """
    options = complete_strip(options or ReadOptions(), rules, spoken)
    roots = [root.value for root in rules.source_root] if rules is not None and options.root is None else []
    try:
        return _open_parts(list_parts(source, rules), options, roots, metadata_from)
    except UnreadableCheckpoint as error:
        raise _name_declared_files(error, rules) from None


def _name_declared_files(error: UnreadableCheckpoint, rules: RuleFile | None) -> UnreadableCheckpoint:
    """Return the error for a key in two files with the prefixes that the rules expect, not any prefixes."""
    if rules is None or not rules.source_files or error.diagnostics[0].code != "RK430":
        return error
    mounts = join_words([repr(text.value) for text in rules.source_files])
    help = f"these rules read files under prefixes, {mounts}: name their folder, or that mount with its path"
    return UnreadableCheckpoint([replace(each, help=(escape_line(help),)) for each in error.diagnostics])


def _open_parts(
    parts: Sequence[Part],
    options: ReadOptions,
    roots: Sequence[str] = (),
    metadata_from: str | Path | None = None,
    *,
    joined: bool = True,
) -> Reader:
    """Open the parts of a source, joined if they are several or under a prefix."""
    chosen = _find_chosen(parts, metadata_from)
    if len(parts) == 1 and not parts[0].prefix:
        return _open_group(parts, options, roots, joined=joined)[0]
    labels = label_files([part.first for part in parts])
    members: list[Member] = []
    try:
        for _, group in itertools.groupby(zip(parts, labels, strict=True), key=lambda pair: pair[0].mount or pair[1]):
            some, names = zip(*group, strict=True)
            readers = _open_group(some, options, roots, joined=joined, many=len(parts) > MAX_LASTING)
            opened = [
                Member(part.prefix, name, reader) for part, name, reader in zip(some, names, readers, strict=True)
            ]
            members += opened
            if some[0].mount is not None and (error := name_roots(opened)):
                raise error
    except UnreadableCheckpoint as error:
        _close_members(members)
        raise _add_where_the_root_is(error, parts, options) from None
    except BaseException:
        _close_members(members)
        raise
    return join_readers(members, members[chosen] if chosen is not None else None)


def _close_members(members: Iterable[Member]) -> None:
    for member in members:
        member.reader.close()


def _find_chosen(parts: Sequence[Part], metadata_from: str | Path | None) -> int | None:
    """Return the place of the file whose metadata are kept; raises `UsageError` (RK609) if it is no part."""
    if metadata_from is None:
        return None
    wanted = os.path.realpath(metadata_from)
    for number, part in enumerate(parts):
        if os.path.realpath(part.first) == wanted:
            return number
    title = f"--metadata-from {metadata_from} is none of the files that are read"
    names = join_words((str(part.first) for part in parts), 4)
    raise UsageError(Diagnostic("RK609", escape_line(title), help=(f"name one of them: {escape_line(names)}",)))


def _open_group(
    parts: Sequence[Part], options: ReadOptions, roots: Sequence[str], *, joined: bool, many: bool = False
) -> list[Reader]:
    """Open the files of one mount, or a single file, all under one root: the first of `roots` that is there, if any.

    State dicts that are nested to different depths are read from where all of them begin.
    """

    def open_all(root: str | None) -> list[Reader]:
        readers: list[Reader] = []
        try:
            for part in parts:
                here = replace(options, root=root)
                alone = joined and part.mount is None
                readers.append(open_with_options(part.path, here, joined=alone, lasting=not many))
        except BaseException:
            for reader in readers:
                reader.close()
            raise
        return readers

    for root in roots:
        try:
            return open_all(root)
        except UnreadableCheckpoint as error:
            if any(problem.code != "RK416" for problem in error.diagnostics):
                raise
    readers = open_all(options.root)
    found = [reader.root.split(".") for reader in readers]
    if options.root is None and len(set(map(tuple, found))) > 1:
        together = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*found, strict=False))
        common = ".".join(segments[0] for segments in together)
        if common:
            for reader in readers:
                reader.close()
            return open_all(common)
    return readers


def _add_where_the_root_is(
    error: UnreadableCheckpoint, parts: Sequence[Part], options: ReadOptions
) -> UnreadableCheckpoint:
    """Return the error of one file of several; a root that it lacks may be there in others."""
    if len(parts) == 1 or options.root is None or error.diagnostics[0].code != "RK416":
        return error
    there = []
    for part, label in zip(parts, label_files([part.first for part in parts]), strict=True):
        with contextlib.suppress(UnreadableCheckpoint), open_with_options(part.path, options, lasting=False):
            there.append(label)
    note = f"the root is looked for in each of the {len(parts)} files"
    note += f"; it is in {join_words(there, 3)} only" if there else ", and is in none of them"
    return type(error)([replace(each, notes=(*each.notes, note)) for each in error.diagnostics])


MAX_LASTING = 64
"""The most files of one source that stay open all the time."""


def read_under_roots(reader: Reader) -> Iterator[Reader]:
    """Yield an open checkpoint under each prefix of its keys that may be a root, those with most keys first.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "keys.json")
    >>> _ = path.write_text('{"net.h.w": {"dtype": "F32", "shape": [2]}, "step": {"dtype": "I64", "shape": []}}')
    >>> with open_source(path) as reader:
    ...     print([(found.root, list(found.header())) for found in read_under_roots(reader)])
    [('net', ['h.w']), ('net.h', ['w'])]
    """
    for root in list_roots(reader.header()):
        yield rename_reader(reader, root.path)


def complete_strip(options: ReadOptions, rules: RuleFile | None, spoken: Iterable[str]) -> ReadOptions:
    """Return the options with all segments to strip: those named, else declared, and torch's private names.

    A private name that the rules or the names in `spoken` contain is not taken out.
    """
    said = "\n".join((*spoken, *(_list_patterns(rules) if rules is not None else ())))
    private = [name for name in PRIVATE_NAMES if name not in said]
    declared = rules.source_strip if rules is not None and not options.strip else ()
    strip = (*options.strip, *(text.value for text in declared), *private)
    return replace(options, strip=tuple(dict.fromkeys(strip)))


def _list_patterns(rules: RuleFile) -> Iterator[str]:
    """Yield the texts of all patterns of a rule file, and of their guards."""
    for pattern in _collect_patterns(rules):
        yield pattern.text.value
        yield from (value.value for guard in pattern.where for value in guard.values or ())


def _collect_patterns(rules: RuleFile) -> Iterator[WrittenPattern]:
    for rule in rules.rules:
        yield rule.pattern
        if rule.pipeline is not None:
            yield from (source.pattern for source in rule.pipeline.sources)
    yield from (*rules.keep, *rules.drop, *rules.source_domain)


def show_below(
    reader: Reader, options: ReadOptions, *, rules: RuleFile | None = None, spoken: Iterable[str] = ()
) -> Reader:
    """Return an open checkpoint under a root and without segments, as `open_source` would; it stays the caller's.

    A root that the reader was opened under already is none below it. Raises `UnreadableCheckpoint` (RK416, RK417).
    """
    options = complete_strip(options, rules, spoken)
    declared = [text.value for text in rules.source_root] if rules is not None else []
    roots = declared if options.root is None else [options.root]
    names = reader.header()
    there = [root for root in roots if any(fqn.startswith(f"{root}.") for fqn in names)]
    root = there[0] if there else "" if options.root in (None, "", reader.root) else options.root
    try:
        renaming = rename_keys(names, root or "", options.strip)
    except FileFault as fault:
        raise fault.at(reader.path) from None
    return RenamedReader(reader, root or "", renaming) if root or renaming.stripped else reader
