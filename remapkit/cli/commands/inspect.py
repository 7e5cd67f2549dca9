"""`remapkit inspect`: a header as key families, with dtypes and sizes."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

from remapkit.api.identify import describe_layout, dump_identification, identify_header
from remapkit.api.inspect import Inspection, dump_adapter, inspect
from remapkit.cli.arguments import get_reading_options
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun, format_bytes, show_key


def run(args: Namespace) -> CommandOutcome:
    """Show a header as key families, or key by key."""
    found = inspect(
        args.checkpoint, manifest=args.manifest, force=args.force, root=args.root, **get_reading_options(args)
    )
    header = found.header
    identified = identify_header(header)
    layout = tuple(describe_layout(identified)) if identified.layouts or identified.adapters else ()
    what = f"{header.name}: {found.format}{f', state dict under {found.root!r}' if found.root else ''}"
    kinds = ", ".join(
        f"{count} {dtype}" for dtype, count in Counter(spec.dtype for spec in header.values()).most_common()
    )
    numel = sum(spec.numel for spec in header.values())
    total = f"{count_noun(len(header), 'tensor')} ({kinds}), {numel:,} elements, {format_bytes(header.nbytes)}"
    tied = tuple(f"tied: {' = '.join(group)}" for group in header.tied)
    tied += tuple(
        f"recorded as tied: {show_key(other)} = {show_key(kept)}" for other, kept in header.recorded.items()
    )
    metadata = tuple(f"metadata: {show_key(key)} = {show_key(value, 2000)}" for key, value in header.metadata.items())
    return CommandOutcome(
        data={
            "format": found.format,
            "root": found.root,
            "tensors": {fqn: {"dtype": spec.dtype, "shape": list(spec.shape)} for fqn, spec in header.items()},
            "tied": [list(group) for group in header.tied],
            "recorded": dict(header.recorded),
            "metadata": dict(header.metadata),
            "bytes": header.nbytes,
            "layout": dump_identification(identified),
            **({"adapters": [dump_adapter(each) for each in found.adapters]} if found.adapters else {}),
        },
        text=(
            what,
            _make_key_table(found) if args.all else _make_family_table(found),
            total,
            *(f"adapter: {part}" for part in found.adapters),
            *(f"layout: {line.removeprefix(f'{header.name}: ')}" for line in layout[:1]),
            *layout[1:],
            *tied,
            *metadata,
        ),
        diagnostics=(*found.diagnostics, *identified.diagnostics),
    )


def _make_key_table(found: Inspection) -> TextTable:
    return TextTable(
        ("key", "dtype", "shape", ">bytes"),
        tuple((fqn, spec.dtype, str(list(spec.shape)), f"{spec.nbytes:,}") for fqn, spec in found.header.items()),
    )


def _make_family_table(found: Inspection) -> TextTable:
    return TextTable(
        (">keys", "family", "dtype", "shape", ">size"),
        tuple(
            (
                str(len(family.fqns)),
                family.pattern,
                family.dtypes_text,
                family.shapes_text,
                format_bytes(family.nbytes),
            )
            for family in found.families
        ),
    )
