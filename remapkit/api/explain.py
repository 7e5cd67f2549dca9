"""`remapkit.explain`: which rule matches a key, and where every other rule stops matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from remapkit.adapters.explain import AdapterKey, explain_adapter_key, may_be_of_adapter
from remapkit.api.ruleset import Config, RuleSet, RulesLike, checked, resolve_rules_of_one_file
from remapkit.companions.names import list_owners
from remapkit.formats.options import ReadOptions
from remapkit.patterns.stopping import Stop
from remapkit.plans.make import make_plan
from remapkit.rules.model import Match, Rule
from remapkit.sources.declared import read_declared_source
from remapkit.sources.open import complete_strip
from remapkit.tensors.roots import list_roots


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result of rules for one key.

    `matches` are the rules that match it, with captures and targets; `stops` has for every other rule the number of
    characters that it matched, and what it expected next. `unmatched` is the treatment of a key without a matching
    rule: `error`, `keep` or `drop`. `name` is the key as the rules see it, below `root` and without the segments that
    are taken out. `owners` are the matches of the weight that a key without a rule follows as its scale, if a
    checkpoint has that weight in 8-bit or packed numbers.
    """

    key: str
    matches: tuple[Match, ...]
    stops: tuple[tuple[Rule, Stop], ...]
    unmatched: str
    params: Mapping[str, int | tuple[int, ...] | None] = field(default_factory=dict, hash=False)
    """The params that keys depend on, with the values that these results are for."""
    root: str = ""
    name: str = ""
    owner: str = ""
    owners: tuple[Match, ...] = ()
    adapter: AdapterKey | None = None
    """What a tensor of an adapter (LoRA) of the model is, and what becomes of it, if no rule matches its name."""

    def __str__(self) -> str:
        if self.adapter is not None:
            return "\n".join([self.key, *(f"  {line}" for line in self.adapter.describe())])
        found = [f"{self.key} -> {match.target} ({match.rule.id})" for match in self.matches]
        return "\n".join(found) or f"{self.key}: no rule matches (unmatched: {self.unmatched})"

    @property
    def ok(self) -> bool:
        """Whether exactly one rule matches, or none does and that is not an error; of an adapter: it can follow."""
        if self.adapter is not None:
            return self.adapter.ok
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

    A key is read as `apply` would read it: below a root that the rules declare, else below the only one under which a
    rule matches, and without the segments that are taken out. A tensor of an adapter (LoRA) of the model whose
    manifest the rules declare is explained by the rules that take the weight of its module.

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
    rule_set = resolve_rules_of_one_file(rules, params, config)
    found = [_explain_key(rule_set, fqn) for fqn in ([keys] if isinstance(keys, str) else keys)]
    of_adapters = {each.key for each in found if not each.matches and may_be_of_adapter(each.key)}
    base = read_declared_source(rule_set.file) if of_adapters else None
    if base is None:
        return tuple(found)
    plan = make_plan(rule_set, base)
    return tuple(
        replace(each, adapter=explain_adapter_key(rule_set, plan, each.key)) if each.key in of_adapters else each
        for each in found
    )


def _explain_key(rules: RuleSet, fqn: str) -> Explanation:
    root, name = _find_name(rules, fqn)
    matches = tuple(rules.match(name))
    weights = () if matches or rules.unmatched == "drop" else list_owners(name)
    owner = next((each for each in weights if rules.match(each)), "")
    return Explanation(
        fqn,
        matches,
        tuple((rule, stop) for rule in rules.everything if (stop := rule.find_stop(name)) is not None),
        rules.unmatched,
        {param: rules.params[param] for param in rules.key_params},
        root,
        name,
        owner,
        tuple(rules.match(owner)) if owner else (),
    )


def _find_name(rules: RuleSet, fqn: str) -> tuple[str, str]:
    """Return the root of a key, and the key as the rules see it: a declared root, else the only one that helps."""
    strip = complete_strip(ReadOptions(), rules.file, ()).strip
    name = ".".join(segment for segment in fqn.split(".") if segment not in strip) or fqn
    declared = [text.value for text in rules.file.source_root]
    for root in declared:
        if name.startswith(f"{root}."):
            return root, name[len(root) + 1 :]
    if rules.match(name) or declared:
        return "", name
    if any(rules.match(each) for each in list_owners(name)):
        return "", name
    roots = [root.path for root in list_roots([name])]
    found = [root for root in roots if _is_read(rules, name[len(root) + 1 :])]
    return (found[0], name[len(found[0]) + 1 :]) if len(found) == 1 else ("", name)


def _is_read(rules: RuleSet, name: str) -> bool:
    """Return whether a rule matches a key, or the weight that it may belong to."""
    found = rules.match(name) or [match for each in list_owners(name) for match in rules.match(each)]
    return any(match.rule.kind == "rule" for match in found)


def dump_adapter_key(found: AdapterKey) -> dict[str, object]:
    """Return what a tensor of an adapter is as JSON data."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}
