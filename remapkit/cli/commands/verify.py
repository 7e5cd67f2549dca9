"""`remapkit verify`: checks rules by value, by running both models or by an oracle."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from remapkit.api.verify import verify
from remapkit.cli.arguments import get_param_options, parse_model_args
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun

if TYPE_CHECKING:
    from remapkit.verification import Verdict


def run(args: Namespace) -> CommandOutcome:
    """Run both models on the same input, or rules and oracle on the same state dict."""
    report = verify(
        args.rules,
        source=args.source,
        source_args=parse_model_args(args.source_arg),
        source_config=args.source_config,
        target=args.target,
        target_args=parse_model_args(args.target_arg),
        target_config=args.target_config,
        forward=args.forward or "forward",
        input=args.input,
        oracle=args.oracle,
        keys=args.keys,
        root=args.root,
        strip=args.strip,
        seed=args.seed,
        tolerance=args.tolerance,
        write=args.write,
        **get_param_options(args),
        allow_undecided=args.allow_undecided,
    )
    text = [_describe_verdict(report.rules, verdict) for verdict in report.verdicts]
    if report.witness is not None:
        text.append(f"wrote {report.witness}")
    rows = tuple(map(_make_row, report.verdicts))
    return CommandOutcome(
        data={
            "rules": report.rules,
            "ok": report.ok,
            "verified": [verdict.to_json() for verdict in report.verdicts],
        },
        text=(TextTable(("by", "against", ">tensors", ">apart", "verdict"), rows), *text),
        diagnostics=report.diagnostics,
        failed=not report.ok,
        findings=True,
    )


def _make_row(verdict: Verdict) -> tuple[str, ...]:
    apart = f"{verdict.apart:.1e}" if verdict.input else "0" if verdict.ok else ""
    count = f"{len(verdict.tensors)} of {verdict.total}" if verdict.total else str(len(verdict.tensors))
    return verdict.by, verdict.other, count, apart, "verified by value" if verdict.ok else "fails"


def _describe_verdict(rules: str, verdict: Verdict) -> str:
    if not verdict.ok:
        return f"{rules} is not verified by {verdict.by}"
    if not verdict.total:
        same = f"{count_noun(len(verdict.tensors), 'tensor')} equal those of {verdict.other}, bit for bit"
        return f"{rules}: verified by value: {same}"
    rest = verdict.total - len(verdict.tensors)
    left = f"; {count_noun(rest, 'tensor')} not compared" if rest else ""
    if kept := len(verdict.constants):
        made = f"as the constructor makes {'it' if kept == 1 else 'them'}"
        left += f"; {count_noun(kept, 'dropped buffer')} assumed to be {made}"
    return f"{rules}: verified by value: {verdict.other} gives the same result{left}"
