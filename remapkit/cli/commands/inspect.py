"""`remapkit inspect`: a header as key families, with dtypes and sizes."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path

from remapkit.cli.commands.common import list_files_read, open_source
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun, format_bytes, show_key
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.tensors.families import find_families


def run(args: Namespace) -> CommandOutcome:
    """A header as key families."""
    with open_source(Path(args.checkpoint), args) as reader:
        header = reader.header()
        notes, format, root = reader.notes, reader.format, reader.root
        read = list_files_read(args, reader, but=("manifest",))
    if args.manifest is not None:
        write_texts({Path(args.manifest): manifest_json(header)}, force=args.force, sources=read)
    dtypes = Counter(spec.dtype for spec in header.values())
    numel = sum(spec.numel for spec in header.values())
    if args.all:
        table = TextTable(
            ("key", "dtype", "shape", ">bytes"),
            tuple((fqn, spec.dtype, str(list(spec.shape)), f"{spec.nbytes:,}") for fqn, spec in header.items()),
        )
    else:
        table = TextTable(
            (">keys", "family", "dtype", "shape", ">size"),
            tuple(
                (str(len(each.fqns)), each.pattern, each.dtypes_text, each.shapes_text, format_bytes(each.nbytes))
                for each in find_families(header)
            ),
        )
    what = f"{header.name}: {format}{f', state dict under {root!r}' if root else ''}"
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    total = f"{count_noun(len(header), 'tensor')} ({kinds}), {numel:,} elements, {format_bytes(header.nbytes)}"
    tied = tuple(f"tied: {' = '.join(group)}" for group in header.tied)
    tied += tuple(
        f"recorded as tied: {show_key(other)} = {show_key(kept)}" for other, kept in header.recorded.items()
    )
    metadata = tuple(f"metadata: {show_key(key)} = {show_key(value, 2000)}" for key, value in header.metadata.items())
    manifest = {fqn: {"dtype": spec.dtype, "shape": list(spec.shape)} for fqn, spec in header.items()}
    return CommandOutcome(
        data={
            "format": format,
            "root": root,
            "tensors": manifest,
            "tied": [list(group) for group in header.tied],
            "recorded": dict(header.recorded),
            "metadata": dict(header.metadata),
            "bytes": header.nbytes,
        },
        text=(what, table, total, *tied, *metadata),
        diagnostics=notes,
    )
