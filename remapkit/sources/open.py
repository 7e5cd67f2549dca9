"""Opens a checkpoint as rules see it: its files, then the root, then the segments that wrappers leave in keys.

A step is named by the caller, else by the rule file under `source:`. torch's private names go by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.files.errors import FileFault
from remapkit.formats.detect import open_with_options
from remapkit.formats.options import ReadOptions
from remapkit.formats.reader import Reader
from remapkit.formats.renamed import RenamedReader, rename_keys, rename_reader
from remapkit.rulefile.syntax import RuleFile, WrittenPattern
from remapkit.tensors.roots import list_roots

PRIVATE_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The names under which torch's wrappers keep the wrapped module: of torch.compile, FSDP and checkpointing."""


def open_source(
    path: str | Path,
    options: ReadOptions | None = None,
    *,
    rules: RuleFile | None = None,
    spoken: Iterable[str] = (),
) -> Reader:
    """Open a checkpoint under the root and without the segments that the options or the rule file name.

    Of several roots in a rule file the first that the checkpoint has is taken, and none if it has none of them.
    torch's private names are taken out of the keys, unless the rules or the names in `spoken` contain them. The first
    shard of several without an index opens all of them.

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
    if options.root is None and rules is not None:
        for root in rules.source_root:
            try:
                return open_with_options(Path(path), replace(options, root=root.value), joined=True)
            except UnreadableCheckpoint as error:
                if any(problem.code != "RK416" for problem in error.diagnostics):
                    raise
    return open_with_options(Path(path), options, joined=True)


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
