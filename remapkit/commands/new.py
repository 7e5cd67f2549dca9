"""`remapkit new`: a rule file started from a real header."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from remapkit.checkpoint.atomic import NewFile, check_targets
from remapkit.checkpoint.copying import write_all
from remapkit.checkpoint.faults import cannot_write
from remapkit.checkpoint.manifest import manifest_json
from remapkit.checkpoint.sharded import is_index
from remapkit.commands.common import open_source
from remapkit.diagnostic import Diagnostic, UnwritableOutput, UsageError
from remapkit.learn import new_rule_file
from remapkit.report import Outcome
from remapkit.spec import StateDictSpec
from remapkit.targets import TargetRef, parse_model_args, target_header


def run(args: Namespace) -> Outcome:
    """A rule file started from a real header."""
    output = None if args.output == "-" else Path(args.output or f"{args.name}.yaml")
    with open_source(Path(args.source), args) as reader:
        source, notes = reader.header(), reader.notes
    model = args.target if args.target is not None and _is_model(args.target) else None
    target = _target(args, model)
    source = source.with_recorded(target or ())
    manifest = _manifest(args, output)
    text = new_rule_file(args.name, source, _relative(manifest, output) if manifest else None, target, model)
    if output is None:
        return Outcome(data={"text": text}, raw=text)
    # The manifest first: a rule file never names one that is not there.
    beside = {Path(manifest): manifest_json(source)} if manifest and manifest != args.source else {}
    write_texts({**beside, output: text}, args.force)
    said = (f"wrote {manifest}: the keys, dtypes and shapes of {source.name}",) if manifest != args.source else ()
    return Outcome(
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


def _target(args: Namespace, model: str | None) -> StateDictSpec | None:
    if model is None and (args.model_arg or args.model_config):
        raise UsageError(Diagnostic("RK609", "--model-arg and --model-config need a model: --to plugin.module:Class"))
    if args.target is None:
        return None
    if model is None:
        return target_header(TargetRef(keys=Path(args.target)))
    config = Path(args.model_config) if args.model_config else None
    return target_header(TargetRef(model, parse_model_args(args.model_arg), config))


def _manifest(args: Namespace, output: Path | None) -> str | None:
    """The manifest that the rule file declares: the source itself where it is one, else a new one in `keys/`."""
    if args.source.endswith(".json") and not is_index(args.source) and not _is_outside(args.source, output):
        return str(args.source)
    return None if output is None else str(output.parent / "keys" / f"{args.name}.json")


def _is_outside(path: str, output: Path | None) -> bool:
    """Whether a rule file at `output` could not name the path: it names what is below it."""
    folder = os.path.realpath(output.parent if output else ".")
    return not Path(os.path.realpath(path)).is_relative_to(folder)


def write_texts(files: Mapping[Path, str], force: bool) -> None:
    """Write some files, each whole or not at all; none where one of them exists and `force` is not set."""
    taken = [path for path in files if path.exists()]
    if taken and not force:
        raise UnwritableOutput([Diagnostic("RK500", f"{path} exists (use --force)") for path in taken])
    for folder in dict.fromkeys(path.parent for path in files if path.parent.name != "keys"):
        if not folder.is_dir():
            raise UnwritableOutput(Diagnostic("RK503", f"there is no directory {folder}", help=("make it first",)))
    for path, content in files.items():
        _write_text(path, content, force)


def _write_text(path: Path, text: str, force: bool) -> None:
    try:
        if path.parent.name == "keys" and path.parent.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
        (real,) = check_targets([path], (), force)
        with NewFile(real, force=force) as new:
            write_all(new.fd, text.encode("utf-8"), 0)
            new.commit()
    except OSError as error:
        raise cannot_write(path, error) from error


def _relative(path: str, output: Path | None) -> str:
    """A path as a rule file at `output` would name it."""
    return os.path.relpath(path, output.parent if output else Path())
