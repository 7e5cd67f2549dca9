"""`remapkit explain`: which rule took a key, and where every other rule stopped matching."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from remapkit.api.ruleset import load
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.rules.near_miss import list_stops

if TYPE_CHECKING:
    from remapkit.api.ruleset import RuleSet
    from remapkit.patterns.stopping import Stop
    from remapkit.rules.model import Match, Rule


def run(args: Namespace) -> CommandOutcome:
    """What every rule made of a key."""
    rules = load(args.rules)
    text: list[str | TextTable] = []
    data = []
    for fqn in args.keys:
        found = rules.match(fqn)
        stops = list_stops(rules.everything, fqn)
        text += _explain_key(rules, fqn, found, stops)
        data.append(
            {
                "key": fqn,
                "matches": [
                    {
                        "rule": each.rule.id,
                        "target": each.target,
                        "targets": list(each.targets),
                        "captures": dict(each.captures),
                    }
                    for each in found
                ],
                "stopped": [
                    {"rule": rule.id, "offset": stop.offset, "expected": stop.expected} for rule, stop in stops
                ],
            }
        )
    failed = any(len(each["matches"]) != 1 for each in data) and rules.unmatched == "error"
    failed = failed or any(len(each["matches"]) > 1 for each in data)
    return CommandOutcome(data={"keys": data}, text=tuple(text), failed=failed)


def _explain_key(
    rules: RuleSet, fqn: str, found: Sequence[Match], stops: Sequence[tuple[Rule, Stop]]
) -> Iterator[str | TextTable]:
    yield fqn
    if not found:
        words = {
            "error": "matched by no rule",
            "keep": "kept by `unmatched: keep`",
            "drop": "dropped by `unmatched: drop`",
        }
        yield f"  {words[rules.unmatched]}"
    for each in found:
        captures = ", ".join(f"{name} = {value!r}" for name, value in each.captures.items())
        first, *more = each.targets or ("(dropped)",)
        yield f"  {each.rule.id} -> {first}"
        # A rule that writes several targets: each below the first.
        yield from (f"{' ' * len(each.rule.id)}  and {target}" for target in more)
        yield f"    where {captures}" if captures else "    no captures"
    if len(found) > 1:
        yield f"  fails: {len(found)} rules match one key; rule order is never used as a tie-breaker"
    rows = tuple(
        (rule.id, f"{fqn[: stop.offset]}^", stop.expected)
        for rule, stop in sorted(stops, key=lambda pair: -pair[1].offset)
    )
    if rows:
        yield TextTable(("other rules", "read up to", "expected there"), rows)
