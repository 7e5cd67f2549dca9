"""`remapkit new`: a rule file started from a real header."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from remapkit.authoring.new import new_rule_file
from remapkit.cli.arguments import parse_model_args
from remapkit.cli.commands.common import list_files_read, open_source
from remapkit.cli.render import CommandOutcome
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.files.index_names import is_index
from remapkit.files.text import write_texts
from remapkit.formats.manifest import manifest_json
from remapkit.models.target import TargetRef, read_target_header
from remapkit.tensors.spec import StateDictSpec


def run(args: Namespace) -> CommandOutcome:
    """A rule file started from a real header."""
    output = None if args.output == "-" else Path(args.output or f"{args.name}.yaml")
    with open_source(Path(args.source), args) as reader:
        source, notes = reader.header(), reader.notes
        read = list_files_read(args, reader, but=("output",))
    model = args.target if args.target is not None and _is_model(args.target) else None
    target = _read_target(args, model)
    source = source.with_recorded(target or ())
    manifest = _choose_manifest(args, output)
    text = new_rule_file(args.name, source, _make_relative(manifest, output) if manifest else None, target, model)
    if output is None:
        return CommandOutcome(data={"text": text}, raw=text)
    # The manifest first: a rule file never names one that is not there.
    beside = {Path(manifest): manifest_json(source)} if manifest and manifest != args.source else {}
    keys = [Path(manifest).parent] if beside and manifest else []
    write_texts({**beside, output: text}, force=args.force, sources=read, folders=keys)
    said = (f"wrote {manifest}: the keys, dtypes and shapes of {source.name}",) if manifest != args.source else ()
    return CommandOutcome(
        data={"output": str(output), "manifest": manifest},
        text=(
            f"wrote {output}: one commented candidate rule for each key family of {source.name}",
            *said,
            f"next: edit it, then `remapkit lint {output}` and `remapkit check {output}"
            + (f" --model {model}`" if model else f" --target-keys {args.target}`" if args.target else " --model M`"),
        ),
        diagnostics=notes,
    )


def _is_model(target: str) -> bool:
    """Whether `--to` names a model (`plugin.module:Class`), and not a file."""
    return ":" in target and not Path(target).exists()


def _read_target(args: Namespace, model: str | None) -> StateDictSpec | None:
    if model is None and (args.model_arg or args.model_config):
        raise UsageError(Diagnostic("RK609", "--model-arg and --model-config need a model: --to plugin.module:Class"))
    if args.target is None:
        return None
    if model is None:
        return read_target_header(TargetRef(keys=Path(args.target)))
    config = Path(args.model_config) if args.model_config else None
    return read_target_header(TargetRef(model, parse_model_args(args.model_arg), config))


def _choose_manifest(args: Namespace, output: Path | None) -> str | None:
    """The manifest that the rule file declares: the source itself where it is one, else a new one in `keys/`."""
    if args.source.endswith(".json") and not is_index(args.source) and not _is_outside(args.source, output):
        return str(args.source)
    return None if output is None else str(output.parent / "keys" / f"{args.name}.json")


def _is_outside(path: str, output: Path | None) -> bool:
    """Whether a rule file at `output` could not name the path: it names what is below it."""
    folder = os.path.realpath(output.parent if output else ".")
    return not Path(os.path.realpath(path)).is_relative_to(folder)


def _make_relative(path: str, output: Path | None) -> str:
    """A path as a rule file at `output` would name it."""
    return os.path.relpath(path, output.parent if output else Path())
