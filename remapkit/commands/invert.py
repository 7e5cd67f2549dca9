"""`remapkit invert`: the inverse rule file, or the reason why there is none."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from remapkit.commands.common import files_read, known_source, rules_read
from remapkit.files.text import write_texts
from remapkit.invert import invert
from remapkit.library import load
from remapkit.report import Outcome


def run(args: Namespace) -> Outcome:
    """The text of the inverse, to a file or as the result itself."""
    rules = load(args.rules)
    output = Path(args.output) if args.output not in (None, "-") else None
    beside = output.parent if output is not None else Path()
    text = invert(rules, header=known_source(rules), beside=beside)
    if output is None:
        return Outcome(data={}, raw=text)
    sources = [*files_read(args, but=("output",)), *rules_read(rules)]
    write_texts({output: text}, force=args.force, sources=sources)
    return Outcome(
        data={"output": str(output), "rules": rules.name},
        text=(f"wrote {output}: the inverse of {rules.name}, proven for all keys",),
    )
