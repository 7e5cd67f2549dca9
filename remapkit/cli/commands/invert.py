"""`remapkit invert`: writes the inverse rule file, or reports why there is none."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.invert import invert
from remapkit.cli.arguments import get_param_options
from remapkit.cli.render import CommandOutcome
from remapkit.diagnostics.wording import join_words


def run(args: Namespace) -> CommandOutcome:
    """Write the inverse to a file, or return its text as the result."""
    output = None if args.output == "-" else args.output
    inverse = invert(args.rules, output, partial=args.partial, force=args.force, **get_param_options(args))
    if inverse.output is None:
        return CommandOutcome(data={"text": inverse.text, "lost": list(inverse.lost)}, raw=inverse.text)
    manifests = [str(path) for path in inverse.manifests]
    copied = f", with {join_words(manifests)} copied beside it" if manifests else ""
    return CommandOutcome(
        data={
            "output": str(inverse.output),
            "rules": inverse.rules,
            "manifests": manifests,
            "lost": list(inverse.lost),
        },
        text=(
            f"wrote {inverse.output}: the inverse of {inverse.rules}, proven for all keys{copied}",
            *(f"not restored, because {inverse.rules} drops it: {each}" for each in inverse.lost),
        ),
    )
