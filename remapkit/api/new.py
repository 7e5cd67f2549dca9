"""`remapkit.new`: a rule file started from a real header."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remapkit.api.inputs import list_files_read
from remapkit.api.ruleset import Config, checked
from remapkit.authoring.new import new_rule_file
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import escape_line, join_words
from remapkit.files.index_names import is_index
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.formats.options import make_read_options
from remapkit.models.target import TargetRef, read_target_header
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.sources.parts import find_only_path
from remapkit.tensors.roots import list_roots
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class NewRules:
    """The rule file that `new` made: its text, the manifest that it declares, and the file that was written.

    `source` is the header it starts from, `model` the reference of the target if that is a model.
    """

    text: str
    source: StateDictSpec
    manifest: str | None = None
    model: str | None = None
    output: Path | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        return self.text


@checked
def new(
    name: str,
    source: SourceLike,
    target: str | Path | None = None,
    output: str | Path | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    model_config: Config | None = None,
    force: bool = False,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> NewRules:
    """Start a rule file from a real checkpoint: one commented candidate rule for each key family.

    Families whose names differ from those of `target` only by a prefix or a segment have a rule.

    Args:
        name: The name of the pack.
        source: The checkpoint, one or several files, or its manifest.
        target: A model (`plugin.module:Class` or `py:package.module:Class`), a checkpoint or a manifest.
        output: The file to write, with the manifest of the source in `keys/` next to it; without it only the text is
            returned.
        model_args, model_config: Arguments and config of the model that `target` names.
        force: Replace the files if they exist.
        root, strip, strict_pickle, allow_expand, follow_links: How `source` is read; see `open_checkpoint`.

    Returns:
        `NewRules`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UsageError: A name that is not valid, a checkpoint without tensors, a model that cannot be built.
        UnreadableCheckpoint: A source or a target that cannot be read.
        UnwritableOutput: A file that cannot be written, or exists (`OutputExists`). Nothing was changed.

    >>> import pathlib, tempfile, torch
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.pth")
    >>> torch.save({f"layers.{n}.weight": torch.zeros(4) for n in range(3)}, path)
    >>> "#   path: 'layers.{layer:0..2}.weight'" in new("mine", path).text
    True
    """
    arguments = dict(locals())
    output = None if output is None else Path(output)
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    with open_source(source, options) as reader:
        header, notes = reader.header(), tuple(reader.notes)
        sources = list_files_read(arguments, reader, but=("output",))
    notes += tuple(_note_roots(header, root))
    model = str(target) if target is not None and _is_model(str(target)) else None
    wanted = _read_target(target, model, model_args, model_config)
    header = header.with_recorded(wanted or ())
    only = find_only_path(source)
    manifest = _choose_manifest(name, "" if only is None else str(only), output)
    declared = None if manifest is None else os.path.relpath(manifest, Path() if output is None else output.parent)
    text = new_rule_file(
        name,
        header,
        declared,
        wanted,
        model,
        target_args=model_args,
        target_config=_name_config(model_config, output),
    )
    if output is not None:
        # The manifest first: a rule file never names one that does not exist.
        beside = {Path(manifest): manifest_json(header)} if manifest and manifest != str(only) else {}
        folders = [path.parent for path in beside]
        write_texts({**beside, output: text}, force=force, sources=sources, folders=folders)
    log_diagnostics(notes)
    return NewRules(text, header, manifest, model, output, notes)


def _note_roots(header: StateDictSpec, root: str | None) -> Iterator[Diagnostic]:
    """Yield a note on the roots of all keys; without rules none of them is taken."""
    roots = [each.path for each in list_roots(header) if each.keys == len(header)]
    if root is None and roots and len(header) > 1:
        title = f"all {len(header)} keys are under root {join_words(map(repr, roots), 3)}"
        help = (f"to write rules for names without it: --root {roots[0]}",)
        yield Diagnostic("RK318", escape_line(title), help=help, severity=Severity.NOTE, place=header.name)


def _is_model(target: str) -> bool:
    """Whether a target is a model (`plugin.module:Class`), and not a file."""
    return ":" in target and not Path(target).exists()


def _read_target(
    target: str | Path | None, model: str | None, model_args: Mapping[str, Any] | None, model_config: Config | None
) -> StateDictSpec | None:
    if model is None and (model_args or model_config is not None):
        raise UsageError(Diagnostic("RK609", "--model-arg and --model-config need a model: --to plugin.module:Class"))
    if target is None:
        return None
    if model is None:
        return read_target_header(TargetRef(keys=Path(target)))
    return read_target_header(TargetRef(model, model_args or {}, model_config))


def _choose_manifest(name: str, source: str, output: Path | None) -> str | None:
    """Return the manifest that the rule file declares: the source if it is a manifest, else a new one in `keys/`."""
    if source.endswith(".json") and not is_index(source) and not _is_outside(source, output):
        return source
    return None if output is None else str(output.parent / "keys" / f"{name}.json")


def _name_config(config: Config | None, output: Path | None) -> str | None:
    """Return the path of a config as the rule file can name it; None if it is no file below its folder."""
    if config is None or isinstance(config, Mapping) or _is_outside(str(config), output):
        return None
    return os.path.relpath(config, Path() if output is None else output.parent)


def _is_outside(path: str, output: Path | None) -> bool:
    """Whether a rule file at `output` could not name the path: it can only name files below its folder."""
    folder = os.path.realpath(output.parent if output else ".")
    return not Path(os.path.realpath(path)).is_relative_to(folder)
