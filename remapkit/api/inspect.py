"""`remapkit.inspect`: the content of a checkpoint, from its header alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.summary import AdapterPart, summarize_adapter
from remapkit.api.adapter import find_config, make_number_reader
from remapkit.api.inputs import list_files_read
from remapkit.api.ruleset import checked
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, format_bytes
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.formats.options import make_read_options
from remapkit.formats.reader import Reader
from remapkit.registry.fit_adapters import is_adapter
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.families import Family, find_families
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint's header, its format, and the wrapper (`root`, a dotted name) that its state dict was found in.

    `adapters` says what an adapter (LoRA) has for each model: format, modules, LoRA ranks, alphas.
    """

    header: StateDictSpec
    format: str
    root: str
    diagnostics: tuple[Diagnostic, ...] = ()
    adapters: tuple[AdapterPart, ...] = ()

    def __str__(self) -> str:
        size = format_bytes(self.header.nbytes)
        return f"{self.header.name}: {self.format}, {count_noun(len(self.header), 'tensor')}, {size}"

    @property
    def families(self) -> tuple[Family, ...]:
        """The keys as key families: groups of keys that differ only in their numbers, or in a few words."""
        return find_families(self.header)


@checked
def inspect(
    checkpoint: SourceLike,
    *,
    manifest: str | Path | None = None,
    force: bool = False,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> Inspection:
    """Read a checkpoint's header: names, dtypes, shapes, ties, metadata; of an adapter also the alphas.

    Args:
        checkpoint: A `.pth`, `.safetensors`, an index of shards, a manifest, or a folder that holds one; or several
            files.
        manifest: Also write the header to this file, as a manifest.
        force: Replace that file if it exists.
        root, strip, strict_pickle, allow_expand, follow_links: How it is read; see `open_checkpoint`.

    Returns:
        `Inspection`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UnreadableCheckpoint: A checkpoint that cannot be read.
        UnwritableOutput: A manifest that cannot be written, or exists (`OutputExists`).

    >>> import pathlib, tempfile, torch
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.pth")
    >>> torch.save({f"layers.{n}.weight": torch.zeros(4) for n in range(3)}, path)
    >>> found = inspect(path)
    >>> found.format, [family.pattern for family in found.families]
    ('pth', ['layers.{0..2}.weight'])
    """
    arguments = dict(locals())
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    with open_source(checkpoint, options) as reader:
        adapters, notes = _summarize(reader)
        found = Inspection(reader.header(), reader.format, reader.root, (*reader.notes, *notes), adapters)
        sources = list_files_read(arguments, reader, but=("manifest",))
    if manifest is not None:
        write_texts({Path(manifest): manifest_json(found.header)}, force=force, sources=sources)
    log_diagnostics(found.diagnostics)
    return found


def _summarize(reader: Reader) -> tuple[tuple[AdapterPart, ...], tuple[Diagnostic, ...]]:
    """Return what an adapter is, with a warning if its config cannot be used; nothing for other checkpoints."""
    header = reader.header()
    if not is_adapter(header):
        return (), ()
    config: PeftConfig | None = None
    notes: tuple[Diagnostic, ...] = ()
    try:
        if (path := find_config(reader)) is not None:
            config = PeftConfig.read(path)
    except UsageError as error:
        notes = tuple(replace(each, severity=Severity.WARNING) for each in error.diagnostics)
    return summarize_adapter(header, config, make_number_reader(reader)), notes


def dump_adapter(part: AdapterPart) -> dict[str, object]:
    """Return a part of an adapter as JSON data; ranks and alphas with the number of modules of each."""
    counts: dict[str, Mapping[Any, int]] = {"ranks": part.ranks, "alphas": part.alphas}
    return {
        "format": part.format,
        "prefix": part.prefix,
        "modules": part.modules,
        "kinds": dict(part.kinds),
        **{name: [{"value": each, "modules": count} for each, count in own.items()] for name, own in counts.items()},
        "alpha_in": part.alpha_in,
    }
