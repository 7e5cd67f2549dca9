"""`remapkit invert`: the inverse rule file, or the reason why there is none."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from remapkit.api.ruleset import RuleSet, load
from remapkit.authoring.invert import invert
from remapkit.authoring.write_inverse import relocate_path
from remapkit.cli.commands.common import list_files_read, list_rule_files, read_known_source
from remapkit.cli.render import CommandOutcome
from remapkit.diagnostics.wording import join_words
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.sources.declared import read_declared, resolve_declared_path


def run(args: Namespace) -> CommandOutcome:
    """The text of the inverse, to a file or as the result itself."""
    rules = load(args.rules)
    output = Path(args.output) if args.output not in (None, "-") else None
    text = invert(rules, header=read_known_source(rules), beside=None if output is None else output.parent)
    if output is None:
        return CommandOutcome(data={}, raw=text)
    manifests = _list_manifest_copies(rules, output.parent)
    sources = [*list_files_read(args, but=("output",)), *list_rule_files(rules)]
    folders = list(dict.fromkeys(path.parent for path in manifests))
    write_texts({**manifests, output: text}, force=args.force, sources=sources, folders=folders)
    copied = f", with {join_words([str(path) for path in manifests])} copied beside it" if manifests else ""
    return CommandOutcome(
        data={"output": str(output), "rules": rules.name, "manifests": [str(path) for path in manifests]},
        text=(f"wrote {output}: the inverse of {rules.name}, proven for all keys{copied}",),
    )


def _list_manifest_copies(rules: RuleSet, folder: Path) -> dict[Path, str]:
    """The declared manifests that lie outside the folder of the inverse: where each is copied to, and its text."""
    file = rules.file
    named = [file.source_keys, file.target.keys if file.target is not None else None]
    copies: dict[Path, str] = {}
    for written in filter(None, named):
        source, copy = (
            resolve_declared_path(rules.file, written),
            folder / relocate_path(rules, written.value, folder),
        )
        content = manifest_json(read_declared(source))
        if not _has_content(copy, source, content):
            copies[copy] = content
    return copies


def _has_content(copy: Path, source: Path, content: str) -> bool:
    """Whether a file is the manifest already, or has its bytes; what cannot be read has not."""
    try:
        return copy.samefile(source) or copy.read_bytes() == content.encode("utf-8")
    except OSError:
        return False
