"""Find the part of a checkpoint that rules are about: the root under which its keys match.

A root is a prefix of whole segments; under it, keys are shown without it. It is taken without a word from the user
only if the rules leave no doubt (`find_roots`); otherwise the candidates are listed with what matches under each.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from remapkit.companions.names import is_marker, list_owners
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.formats.reader import Reader
from remapkit.formats.renamed import rename_reader
from remapkit.plans.model import ResolvedPlan
from remapkit.rules.model import CompiledRules, Rule
from remapkit.sources.declared import read_declared_source
from remapkit.tensors.roots import list_roots, split_prefixes
from remapkit.tensors.spec import StateDictSpec

Source = TypeVar("Source")
Rules = TypeVar("Rules", bound=CompiledRules)

MAX_NEAR = 3
"""The most roots that a message lists."""

MAX_STRIPPED = 8
"""The most segments, those in most keys first, that are tried as names of wrappers."""

MAX_COUNTED = 40
"""The most roots, those with the most keys first, under which all matches are counted."""


@dataclass(frozen=True, slots=True)
class RootFit:
    """How well rules fit the keys under a root: keys, how many of them match, and how many keys are outside."""

    root: str
    keys: int
    matched: int
    outside: int

    @property
    def is_whole(self) -> bool:
        """Whether every key under it is matched."""
        return self.matched == self.keys

    def __str__(self) -> str:
        if self.keys == 1:
            return f"the only key under root {self.root!r} matches"
        every = "all" if self.is_whole else f"{self.matched} of"
        return f"{every} {count_noun(self.keys, 'key')} match under root {self.root!r}"


def group_by_root(fqns: Collection[str]) -> dict[str, list[str]]:
    """Return the keys under every root that they may have, without it, in their order; see `list_roots`.

    The root of a header's keys lies behind the prefix that their file is mounted under, which stays.

    >>> group_by_root(["net.a.w", "net.b", "step"])
    {'net': ['a.w', 'b'], 'net.a': ['w']}
    """
    groups: dict[str, list[str]] = {root.path: [] for root in list_roots(fqns)}
    for mount, fqn in split_prefixes(fqns):
        end = fqn.find(".")
        while end >= 0 and (inside := groups.get(fqn[:end])) is not None:
            inside.append(mount + fqn[end + 1 :])
            end = fqn.find(".", end + 1)
    return groups


def fits_whole(rules: CompiledRules, fqns: Collection[str], required: Collection[str] = ()) -> bool:
    """Return whether rules fit all of some keys: each is matched, most by `rules:`, and no required one is missing.

    A `keep:`, a `drop:` or `unmatched:` that takes anything is no evidence. The companions of a weight that is
    matched need no rule, and are none either.
    """
    names: set[str] = set()
    by_rule = followed = 0
    for fqn in fqns:
        found = rules.match(fqn)
        if not found and rules.unmatched == "error":
            names = names or set(fqns)
            if not _is_followed(rules, fqn, names):
                return False
            followed += 1
        by_rule += any(match.rule.kind == "rule" for match in found)
    return 2 * by_rule > len(fqns) - followed and set(required).issubset(fqns)


def _is_followed(rules: CompiledRules, fqn: str, names: Collection[str]) -> bool:
    """Return whether a key that no rule matches may belong to a weight that one does."""
    return is_marker(fqn) or any(each in names and rules.match(each) for each in list_owners(fqn))


def find_roots(rules: CompiledRules, fqns: Collection[str], required: Collection[str] = ()) -> tuple[RootFit, ...]:
    """Return every root under which rules fit all keys: "" alone if all keys fit as they are.

    `required` are keys that must be there. Each key is matched at most once for each of its prefixes, and a root is
    given up at its first key without a match.

    >>> import remapkit
    >>> rules = remapkit.loads("remapkit: 1\\nname: t\\nrules: [{id: r, path: 'layers.{i:int}.w', to: 'h.{i}.w'}]")
    >>> find_roots(rules, ["model.net.layers.0.w", "model.net.layers.1.w", "model.head.b"])
    (RootFit(root='model.net', keys=2, matched=2, outside=1),)
    >>> find_roots(rules, ["layers.0.w"])
    (RootFit(root='', keys=1, matched=1, outside=0),)
    """
    if fits_whole(rules, fqns, required):
        return (RootFit("", len(fqns), len(fqns), 0),)
    return tuple(
        RootFit(root, len(inside), len(inside), len(fqns) - len(inside))
        for root, inside in group_by_root(fqns).items()
        if fits_whole(rules, inside, required)
    )


def list_near_roots(rules: CompiledRules, fqns: Collection[str]) -> list[RootFit]:
    """Return the roots under which the most keys match, best first, none without a match by one of `rules:`."""
    groups = sorted(group_by_root(fqns).items(), key=lambda group: -len(group[1]))[:MAX_COUNTED]
    found = []
    for root, inside in groups:
        matches = [rules.match(fqn) for fqn in inside]
        if any(match.rule.kind == "rule" for each in matches for match in each):
            names = set(inside)
            pairs = zip(inside, matches, strict=True)
            matched = sum(bool(each) or _is_followed(rules, fqn, names) for fqn, each in pairs)
            found.append(RootFit(root, len(inside), matched, len(fqns) - len(inside)))
    return sorted(found, key=lambda fit: (not fit.is_whole, -fit.matched, fit.root))


def find_strip(rules: CompiledRules, unmatched: Sequence[str]) -> tuple[str, ...] | None:
    """Return the segments, at most two, without which all unmatched keys match, wherever they stand in them.

    No two keys may become one. Only the `MAX_STRIPPED` segments that most keys have are tried, each choice up
    to the first key that it fails.

    >>> import remapkit
    >>> rules = remapkit.loads("remapkit: 1\\nname: t\\nkeep: ['layers.{i:int}.w']")
    >>> find_strip(rules, ["module.layers.0.w", "module.layers.1.default.w"])
    ('module', 'default')
    """
    segments = (segment for fqn in unmatched for segment in dict.fromkeys(fqn.split(".")))
    counts = Counter(segment for segment in segments if not segment.isdecimal())
    common = [segment for segment, _ in counts.most_common(MAX_STRIPPED)]
    choices = (choice for number in (1, 2) for choice in itertools.combinations(common, number))
    return next((choice for choice in choices if _match_without(rules, unmatched, choice)), None)


def _match_without(rules: CompiledRules, fqns: Sequence[str], segments: Collection[str]) -> bool:
    """Return whether all keys match without some segments, and stay different; ends at the first that does not."""
    seen: set[str] = set()
    for fqn in fqns:
        short = strip_segments(fqn, segments)
        if short in seen or not rules.match(short):
            return False
        seen.add(short)
    return True


def strip_segments(fqn: str, segments: Collection[str]) -> str:
    """Return a key without some segments, wherever they stand.

    >>> strip_segments("module.layers.0.module.w", ["module"])
    'layers.0.w'
    """
    return ".".join(each for each in fqn.split(".") if each not in segments)


def find_lost_prefix(rules: CompiledRules, fqns: Collection[str], unmatched: Sequence[str]) -> str | None:
    """Return the shortest prefix that all unmatched keys lack: with it in front, each matches, one of them `rules:`.

    A `drop:` that takes them is no evidence. Only prefixes that rules are written with are tried, at most
    `MAX_COUNTED`, each up to its first failure.

    >>> import remapkit
    >>> rules = remapkit.loads("remapkit: 1\\nname: t\\nrules: [{id: r, path: 'model.h.{i:int}.w', to: 'h.{i}.w'}]")
    >>> find_lost_prefix(rules, ["h.0.w", "h.1.w"], ["h.0.w", "h.1.w"])
    'model.'
    """
    heads = ("".join(_list_leading_words(rule)) for rule in rules.rules)
    prefixes = {head[: place + 1] for head in heads for place, sign in enumerate(head) if sign == "."}

    def fits(prefix: str) -> bool:
        by_rule = False
        for fqn in unmatched:
            kinds = {found.rule.kind for found in rules.match(f"{prefix}{fqn}")}
            if f"{prefix}{fqn}" in fqns or not kinds & {"rule", "keep"}:
                return False
            by_rule = by_rule or "rule" in kinds
        return by_rule

    return next(filter(fits, sorted(prefixes, key=lambda prefix: (len(prefix), prefix))[:MAX_COUNTED]), None)


def _list_leading_words(rule: Rule) -> Iterator[str]:
    for part in rule.pattern.parts:
        if part.values is None or len(part.values) != 1:
            return
        yield part.values[0]


def _advise_lost_prefix(rules: CompiledRules, fqns: Collection[str], unmatched: Sequence[str]) -> list[str]:
    """Return what to do about keys without a prefix that rules expect: a mount adds it to all keys of a file."""
    if not unmatched or (prefix := find_lost_prefix(rules, set(fqns), unmatched)) is None:
        return []
    one, number = len(unmatched) == 1, len(unmatched)
    if number < len(fqns):
        those = "that key matches" if one else f"those {number} keys match"
        return [f"with {prefix!r} in front {those}, but the others have it: add a rule for keys without it"]
    every = "the only key matches" if one else f"all {number} keys match"
    return [f"with {prefix!r} in front {every}: put it before the name of the file, {prefix}=FILE"]


def _advise_outer_root(rules: CompiledRules, fqns: Collection[str], root: str) -> list[str]:
    """Return the innermost root outside the given one under which all keys match: the root took too much."""
    segments = root.split(".")
    names = split_prefixes(fqns)
    for taken in range(1, min(len(segments), MAX_STRIPPED) + 1):
        tail = ".".join(segments[-taken:])
        if fits_whole(rules, [f"{mount}{tail}.{name}" for mount, name in names]):
            outer = ".".join(segments[:-taken]) or "."
            every = "the only key matches" if len(names) == 1 else f"all {len(names)} keys match"
            return [f"{every} under root {outer!r}: --root {outer}"]
    return []


def advise_roots(rules: CompiledRules, fqns: Collection[str], unmatched: Sequence[str], root: str = "") -> list[str]:
    """Return what to do about keys that do not match because of what stands around them; nothing if that is no help.

    `fqns` are all keys, and `root` is where they were found.
    """
    near = [fit for fit in list_near_roots(rules, fqns) if fit.is_whole or 2 * fit.matched > fit.keys][:MAX_NEAR]
    advice = [f"{fit}: --root {'.'.join(filter(None, (root, fit.root)))}" for fit in near]
    all_below = any(fit.is_whole and not fit.outside for fit in near)
    if not all_below and (segments := find_strip(rules, unmatched)) is not None:
        options = " ".join(f"--strip {segment}" for segment in segments)
        named = f"segment{'s' if len(segments) > 1 else ''} {join_words(map(repr, segments))}"
        advice.insert(0, f"without the {named} all of them match: {options}")
    return advice or (_advise_outer_root(rules, fqns, root) if root else _advise_lost_prefix(rules, fqns, unmatched))


def find_target_prefix(produced: Collection[str], wanted: Collection[str]) -> tuple[str, str] | None:
    """Return the prefixes to remove from and to add to all produced keys so that each is wanted, or None.

    At least one of the two is empty: only a prefix on one side is looked for, among at most `MAX_COUNTED`.

    >>> find_target_prefix(["encoder.x", "encoder.y"], ["model.encoder.x", "model.encoder.y"])
    ('', 'model.')
    >>> find_target_prefix(["net.x"], ["x"])
    ('net.', '')
    """
    names = set(wanted)
    first = next(iter(produced), None)
    if first is None:
        return None
    if names.issuperset(produced):
        return "", ""
    added = dict.fromkeys(fqn.removesuffix(first) for fqn in names if fqn.endswith(f".{first}"))
    for prefix in sorted(added, key=lambda prefix: (len(prefix), prefix))[:MAX_COUNTED]:
        if all(f"{prefix}{fqn}" in names for fqn in produced):
            return "", prefix
    for end in [place + 1 for place, sign in enumerate(first) if sign == "."][:MAX_COUNTED]:
        if all(fqn.startswith(first[:end]) and fqn[end:] in names for fqn in produced):
            return first[:end], ""
    return None


def list_required(known: Mapping[str, object], rules: CompiledRules) -> tuple[str, ...]:
    """Return the known source keys that must be there: those that the rules do not drop."""
    return tuple(fqn for fqn in known if not _is_dropped(rules, fqn))


def _is_dropped(rules: CompiledRules, fqn: str) -> bool:
    found = rules.match(fqn)
    if not found:
        return rules.unmatched == "drop"
    return all(match.rule.kind == "drop" for match in found)


def settle_root(
    root: str | None,
    rules: CompiledRules,
    source: Source,
    header: StateDictSpec,
    plan: Callable[[Source], tuple[Rules, ResolvedPlan]],
    take: Callable[[Source, RootFit], Source],
    *,
    partial: bool = False,
) -> tuple[Source, tuple[Rules, ResolvedPlan] | None]:
    """Return a source under the root that the rules leave no doubt about, and its plan if it had to be made for that.

    The source stays as it is if the user named a `root`. `header` is that of the source; `plan` makes its plan, and
    returns the rules too, which may count params in it; `take` returns it under a root.
    """
    if root is not None:
        return source, None
    if (fit := probe_root(rules, header, partial=partial)) is not None:
        return take(source, fit), None
    planned = plan(source)
    if (fit := choose_root(*planned, partial=partial)) is not None:
        return take(source, fit), None
    return source, planned


def choose_root(rules: CompiledRules, plan: ResolvedPlan, *, partial: bool = False) -> RootFit | None:
    """Return the root to take without a word from the user, None to leave the keys as they are.

    It is the only one under which all keys fit. The plan of the keys as they are says whether one is needed at all:
    if each key matched, and one of them a rule, nothing is searched. With `partial`, declared keys may be missing.
    """
    ids = {rule.id for rule in rules.rules}
    needed = any(problem.code == "RK301" for problem in plan.problems) or (
        bool(ids) and not any(move.rule.id in ids for move in plan.moves)
    )
    return _find_only_root(rules, plan.source, partial=partial) if needed else None


def probe_root(rules: CompiledRules, header: StateDictSpec, *, partial: bool = False) -> RootFit | None:
    """Return the root that `choose_root` would take, where this is known without a plan of the keys as they are.

    That no rule matches the first key is known from the key alone, and says that a root is needed: then only the plan
    under the root has to be made. None says nothing.
    """
    first = next(iter(header), None)
    if first is None or rules.counted or rules.unmatched != "error" or rules.match(first):
        return None
    return _find_only_root(rules, header, partial=partial)


def _find_only_root(rules: CompiledRules, header: StateDictSpec, *, partial: bool) -> RootFit | None:
    if rules.file.source_root:
        return None
    known = None if partial else read_declared_source(rules.file)
    fits = find_roots(rules, header, list_required(known, rules) if known is not None else ())
    return fits[0] if len(fits) == 1 and fits[0].root else None


def take_root(reader: Reader, fit: RootFit) -> Reader:
    """Return the reader under a root that was chosen, with a note that says so."""
    found = rename_reader(reader, fit.root)
    found.notes += (describe_choice(fit, str(reader.path)),)
    return found


def describe_choice(fit: RootFit, place: str) -> Diagnostic:
    """Return the note about a root that was chosen."""
    title = f"{fit}, and none under another root fits: it was taken"
    help = ("for the keys as they are: --root .",)
    return Diagnostic("RK414", title, help=help, severity=Severity.NOTE, place=place)
