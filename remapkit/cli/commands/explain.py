"""`remapkit explain`: shows which rule matches a key, and where every other rule stops matching."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from remapkit.api.explain import Explanation, dump_adapter_key, explain
from remapkit.cli.arguments import get_param_options
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun, join_words

SHOWN = 50
"""The most other rules that the text shows: those that read the most of the key."""
UNMATCHED = {
    "error": "matched by no rule",
    "keep": "kept by `unmatched: keep`",
    "drop": "dropped by `unmatched: drop`",
}


def run(args: Namespace) -> CommandOutcome:
    """Show the result of every rule for a key."""
    found = explain(args.rules, args.keys, **get_param_options(args))
    return CommandOutcome(
        data={"keys": list(map(_dump_explanation, found))},
        text=tuple(part for explanation in found for part in _describe_explanation(explanation)),
        failed=not all(explanation.ok for explanation in found),
    )


def _dump_explanation(explanation: Explanation) -> dict[str, Any]:
    owners = [match.rule.id for match in explanation.owners]
    return {
        "key": explanation.key,
        **({"read_as": explanation.name, "root": explanation.root} if explanation.name != explanation.key else {}),
        **({"adapter": dump_adapter_key(explanation.adapter)} if explanation.adapter is not None else {}),
        **({"params": dict(explanation.params)} if explanation.params else {}),
        **({"follows": {"weight": explanation.owner, "rules": owners}} if owners else {}),
        "matches": [
            {
                "rule": match.rule.id,
                "target": match.target,
                "targets": list(match.targets),
                "captures": dict(match.captures),
            }
            for match in explanation.matches
        ],
        "stopped": [
            {"rule": rule.id, "offset": stop.offset, "expected": stop.expected} for rule, stop in explanation.stops
        ],
    }


def _describe_explanation(explanation: Explanation) -> Iterator[str | TextTable]:
    fqn, matches = explanation.key, explanation.matches
    yield fqn
    if explanation.adapter is not None:
        yield from (f"  {line}" for line in explanation.adapter.describe())
        return
    if explanation.name != fqn:
        where = f" below the root {explanation.root!r}" if explanation.root else " without the names of wrappers"
        yield f"  read as {explanation.name}{where}"
    fqn = explanation.name
    if explanation.params:
        plain = {
            name: list(value) if isinstance(value, tuple) else value for name, value in explanation.params.items()
        }
        values = (f"{name} = {value}" for name, value in plain.items())
        yield f"  with {', '.join(values)}"
    if not matches:
        yield f"  {UNMATCHED[explanation.unmatched]}"
    for match in explanation.owners:
        first, *more = match.targets or ("(dropped)",)
        yield f"  follows {explanation.owner} if that has 8-bit or packed numbers"
        yield f"    {match.rule.id} -> {first}{f' and {len(more)} more' if more else ''}"
    for match in matches:
        captures = ", ".join(f"{name} = {value!r}" for name, value in match.captures.items())
        first, *more = match.targets or ("(dropped)",)
        yield f"  {match.rule.id} -> {first}"
        # A rule with several targets: the others below the first.
        yield from (f"{' ' * len(match.rule.id)}  and {target}" for target in more)
        yield f"    where {captures}" if captures else "    no captures"
        pipeline = match.rule.pipeline
        for axis in (pipeline.family, pipeline.stack) if pipeline is not None else ():
            if axis is not None:
                yield f"    {axis.word} joins the keys that differ only in {join_words(axis.by)}"
    if len(matches) > 1:
        yield f"  fails: {len(matches)} rules match one key; rule order is never used as a tie-breaker"
    rows = tuple(
        (rule.id, f"{fqn[: stop.offset]}^", stop.expected)
        for rule, stop in sorted(explanation.stops, key=lambda pair: -pair[1].offset)[:SHOWN]
    )
    if rows:
        yield TextTable(("other rules", "read up to", "expected there"), rows)
    if len(explanation.stops) > SHOWN:
        further = count_noun(len(explanation.stops) - SHOWN, "other rule")
        yield f"  and {further}, which stopped no later; --format json lists all"
