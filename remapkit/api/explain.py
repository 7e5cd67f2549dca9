"""`remapkit.explain`: which rule matches a key, and where every other rule stops matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.api.ruleset import Config, RulesLike, checked, resolve_rules
from remapkit.patterns.stopping import Stop
from remapkit.rules.model import Match, Rule


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result of rules for one key.

    `matches` are the rules that match it, with captures and targets; `stops` has for every other rule the number of
    characters that it matched, and what it expected next. `unmatched` is the treatment of a key without a matching
    rule: `error`, `keep` or `drop`.
    """

    key: str
    matches: tuple[Match, ...]
    stops: tuple[tuple[Rule, Stop], ...]
    unmatched: str
    params: Mapping[str, int | tuple[int, ...] | None] = field(default_factory=dict, hash=False)
    """The params that keys depend on, with the values that these results are for."""

    def __str__(self) -> str:
        found = [f"{self.key} -> {match.target} ({match.rule.id})" for match in self.matches]
        return "\n".join(found) or f"{self.key}: no rule matches (unmatched: {self.unmatched})"

    @property
    def ok(self) -> bool:
        """Whether exactly one rule matches, or none does and that is not an error."""
        return len(self.matches) == 1 or (not self.matches and self.unmatched != "error")


@checked
def explain(
    rules: RulesLike,
    keys: str | Sequence[str],
    *,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
) -> tuple[Explanation, ...]:
    """Explain for each source key which rule matches it, and where every other rule stops matching.

    Args:
        rules: A `RuleSet`, the name of an installed pack, or the path of a rule file.
        keys: A source key, or several.
        params, config: Values for the params of the rules; see `load`.

    Returns:
        One `Explanation` for each key.

    Raises:
        UsageError, InvalidRules: Rules that do not exist or cannot be compiled.

    >>> (found,) = explain("wan22_pth", "encoder.downsamples.0.downsamples.2.resample.1.bias")
    >>> found.ok, found.matches[0].target
    (True, 'encoder.downsamples.0.downsampler.resample.1.bias')
    """
    rule_set = resolve_rules(rules, params, config)
    return tuple(
        Explanation(
            fqn,
            tuple(rule_set.match(fqn)),
            tuple((rule, stop) for rule in rule_set.everything if (stop := rule.find_stop(fqn)) is not None),
            rule_set.unmatched,
            {name: rule_set.params[name] for name in rule_set.key_params},
        )
        for fqn in ([keys] if isinstance(keys, str) else keys)
    )
