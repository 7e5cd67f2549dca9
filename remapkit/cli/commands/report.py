"""`remapkit report`: writes a page that shows rules, source and target side by side."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from remapkit.api.report import report
from remapkit.cli.arguments import get_adapter_options, get_param_options, get_reading_options, get_target_options
from remapkit.cli.render import CommandOutcome
from remapkit.diagnostics.wording import count_noun


def run(args: Namespace) -> CommandOutcome:
    """Write the page, or return its text as the result; fails as `check` does."""
    output = None if args.output == "-" else args.output
    made = report(
        args.rules,
        args.ckpt,
        output,
        keys=args.keys,
        allow_undecided=args.allow_undecided,
        **get_target_options(args),
        **get_param_options(args),
        root=args.root,
        **get_reading_options(args),
        **get_adapter_options(args),
        force=args.force,
    )
    data: dict[str, Any] = {
        "output": None if made.output is None else str(made.output),
        "rules": made.rules,
        "ok": made.ok,
    }
    data["counts"] = dict(made.counts)
    if made.output is None:
        data["text"] = made.html
        return CommandOutcome(
            data=data, raw=made.html, failed=not made.ok, diagnostics=made.diagnostics, findings=True
        )
    return CommandOutcome(
        data=data,
        text=(f"wrote {made.output}: {made.rules}, {count_noun(made.counts['pairs'], 'pair')}",),
        diagnostics=made.diagnostics,
        failed=not made.ok,
        findings=True,
    )
