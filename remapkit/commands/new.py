"""`remapkit new`: a rule file started from a real header."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from remapkit.commands.common import open_source
from remapkit.diagnostic import Diagnostic, UnwritableOutput
from remapkit.learn import new_rule_file
from remapkit.report import Outcome
from remapkit.targets import TargetRef, target_header


def run(args: Namespace) -> Outcome:
    """A rule file started from a real header."""
    output = None if args.output == "-" else Path(args.output or f"{args.name}.yaml")
    with open_source(Path(args.source), args) as reader:
        source, notes = reader.header(), reader.notes
    is_file = args.target is not None and Path(args.target).exists()
    model = None if args.target is None or is_file else args.target
    target_keys = args.target if is_file else None
    target = target_header(TargetRef(model=model, keys=target_keys)) if args.target else None
    text = new_rule_file(
        args.name,
        source,
        _relative(args.source, output) if args.source.endswith(".json") else None,
        target,
        model,
    )
    if output is None:
        return Outcome(data={}, raw=text)
    _write_text(output, text, args.force)
    return Outcome(
        data={"output": str(output)},
        text=(
            f"wrote {output}: one commented candidate rule for each key family of {source.name}",
            f"next: edit it, then `remapkit lint {output}` and `remapkit check {output} --ckpt {args.source}"
            + (f" --model {model}`" if model else "`"),
        ),
        diagnostics=notes,
    )


def _relative(path: str, output: Path | None) -> str:
    """A path as a rule file at `output` would name it."""
    return os.path.relpath(path, output.parent if output else Path())


def _write_text(output: Path, text: str, force: bool) -> None:
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UnwritableOutput(Diagnostic("RK500", f"{output} exists (use --force)")) from None
    except OSError as error:
        raise UnwritableOutput(Diagnostic("RK503", f"cannot write {output}: {error.strerror}")) from None
