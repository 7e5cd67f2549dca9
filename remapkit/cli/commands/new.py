"""`remapkit new`: a rule file started from a real header."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.new import NewRules, new
from remapkit.cli.arguments import get_model_options, get_reading_options
from remapkit.cli.render import CommandOutcome


def run(args: Namespace) -> CommandOutcome:
    """Start a rule file from a real header."""
    made = new(
        args.name,
        args.source,
        args.target,
        None if args.output == "-" else args.output or f"{args.name}.yaml",
        **get_model_options(args),
        force=args.force,
        root=args.root,
        **get_reading_options(args),
    )
    if made.output is None:
        return CommandOutcome(data={"text": made.text}, raw=made.text)
    manifest = f"wrote {made.manifest}: the keys, dtypes and shapes of {made.source.name}"
    return CommandOutcome(
        data={"output": str(made.output), "manifest": made.manifest},
        text=(
            f"wrote {made.output}: a rule, or a commented candidate, for each key family of {made.source.name}",
            *([manifest] if [made.manifest] != args.source else []),
            f"next: edit it, then run `remapkit lint {made.output}` and `{_write_check(made, args.target)}`",
        ),
        diagnostics=made.diagnostics,
    )


def _write_check(made: NewRules, target: str | None) -> str:
    """Return the command that checks the rules against their intended target."""
    option = f"--target-keys {target}" if target and not made.model else f"--model {made.model or 'M'}"
    return f"remapkit check {made.output} {option}"
