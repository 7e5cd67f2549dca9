"""`remapkit invert`: the inverse rule file, or the reason why there is none."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from remapkit.commands.common import known_source
from remapkit.diagnostic import Diagnostic, UnwritableOutput
from remapkit.invert import invert
from remapkit.library import load
from remapkit.report import Outcome


def run(args: Namespace) -> Outcome:
    """The text of the inverse, to a file or as the result itself."""
    rules = load(args.rules)
    output = Path(args.output) if args.output else None
    beside = output.parent if output is not None else Path()
    text = invert(rules, header=known_source(rules), beside=beside)
    if output is None:
        return Outcome(data={}, raw=text)
    _write(output, text, force=args.force)
    return Outcome(
        data={"output": str(output), "rules": rules.name},
        text=(f"wrote {output}: the inverse of {rules.name}, proven for all keys",),
    )


def _write(output: Path, text: str, *, force: bool) -> None:
    """The whole file, or none: written beside it first."""
    if output.exists() and not force:
        raise UnwritableOutput(Diagnostic("RK500", f"{output} exists (use --force)"))
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UnwritableOutput(Diagnostic("RK503", f"cannot write {output}: {error.strerror}")) from None
