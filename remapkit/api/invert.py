"""`remapkit.invert`: the inverse of a rule file, as a rule file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.api.inputs import list_files_read, list_rule_files
from remapkit.api.ruleset import Config, RuleSet, RulesLike, checked, resolve_rules_of_one_file
from remapkit.authoring.invert import invert as write_inverse
from remapkit.authoring.invert import list_lost
from remapkit.authoring.write_inverse import relocate_path
from remapkit.diagnostics.errors import InvalidRules
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.sources.declared import read_declared, read_declared_source, resolve_declared_path


@dataclass(frozen=True, slots=True)
class Inverse:
    """The inverse of the rules named `rules`: the `text` of a rule file, and the files that were written.

    `manifests` are the copies of declared manifests that the file at `output` needs in its folder. `lost` names what
    the rules drop, so that the inverse does not restore it.
    """

    rules: str
    text: str
    output: Path | None = None
    manifests: tuple[Path, ...] = ()
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@checked
def invert(
    rules: RulesLike,
    output: str | Path | None = None,
    *,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
    partial: bool = False,
    force: bool = False,
) -> Inverse:
    """Write the inverse of a rule file, proven for all keys.

    Args:
        rules: A `RuleSet`, the name of an installed pack, or the path of a rule file.
        output: The file to write; without it only the text is returned. Declared manifests that the file could not
            name are copied to its folder.
        params, config: Values for the params of the rules; see `load`. Names that depend on them are inverted for
            these values.
        partial: If the rules drop keys, write the inverse of the rest; `lost` names them.
        force: Replace the files if they exist.

    Returns:
        `Inverse`. `RuleSet.inverse()` returns the same rules compiled.

    Raises:
        InvalidRules: Rules that have no inverse; the message names the rule and the reason.
        UsageError: Rules that do not exist.
        UnwritableOutput: A file that cannot be written, or exists (`OutputExists`). Nothing was changed.

    >>> import remapkit
    >>> inverse = remapkit.loads(invert("wan22_pth").text)
    >>> inverse.match("encoder.downsamples.0.downsampler.resample.1.bias")[0].target
    'encoder.downsamples.0.downsamples.2.resample.1.bias'
    """
    arguments = dict(locals())
    rule_set = resolve_rules_of_one_file(rules, params, config)
    folder = None if output is None else Path(output).parent
    known = read_declared_source(rule_set.file)
    try:
        text = write_inverse(rule_set, header=known, beside=folder, partial=partial)
    except InvalidRules as error:
        from remapkit.api.adapter import name_way_back

        raise name_way_back(error, rule_set) from None
    lost = tuple(map(str, list_lost(rule_set, known or ())))
    if output is None or folder is None:
        return Inverse(rule_set.name, text, lost=lost)
    manifests = _list_manifest_copies(rule_set, folder)
    sources = [*list_files_read(arguments, but=("output",)), *list_rule_files(rule_set)]
    folders = list(dict.fromkeys(path.parent for path in manifests))
    write_texts({**manifests, Path(output): text}, force=force, sources=sources, folders=folders)
    return Inverse(rule_set.name, text, Path(output), tuple(manifests), lost)


def _list_manifest_copies(rules: RuleSet, folder: Path) -> dict[Path, str]:
    """Return the target path and the text of each declared manifest outside the folder of the inverse."""
    file = rules.file
    named = [file.source_keys, file.target.keys if file.target is not None else None]
    copies: dict[Path, str] = {}
    for written in filter(None, named):
        source = resolve_declared_path(file, written)
        copy = folder / relocate_path(rules, written.value, folder)
        content = manifest_json(read_declared(source))
        if not _has_content(copy, source, content):
            copies[copy] = content
    return copies


def _has_content(copy: Path, source: Path, content: str) -> bool:
    """Whether a file is the manifest already, or has the same bytes; False if it cannot be read."""
    try:
        return copy.samefile(source) or copy.read_bytes() == content.encode("utf-8")
    except OSError:
        return False
