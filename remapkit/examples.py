"""Rule files derived from examples: two checkpoints that hold the same weights, or pairs of keys that somebody wrote.

The derived file is compiled and tried on every key of the source before anybody sees it: what it says of the examples
is what the examples say, to the key. What it says of other keys (deeper models) is the author's to read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remapkit.diagnostic import Diagnostic, UsageError
from remapkit.families import families, is_integer
from remapkit.generalise import Copied, Example, Fixed, Item, Looked, generalise
from remapkit.learn import bound, braces, capture_names, check_name_and_source, comment, escaped_regex, flow, head
from remapkit.learn import quoted as scalar
from remapkit.pairing import Pairing
from remapkit.rulefile import read_text
from remapkit.rules import RuleSet, compile_rules
from remapkit.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Learned:
    """A derived rule file, the pairs that it says, and what no example decided.

    `by_module` are those pairs whose values several keys share, and that were settled because everything else of
    their module went to one module. `undecided` are keys of A that nothing settles; `only_a` and `only_b` are keys
    that the other side has no equal of.
    """

    text: str
    pairs: Mapping[str, str]
    by_module: Mapping[str, str]
    undecided: Mapping[str, tuple[str, ...]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def learn(
    name: str,
    source: StateDictSpec,
    target: StateDictSpec,
    pairing: Pairing,
    source_ref: str | None = None,
    target_ref: str | None = None,
) -> Learned:
    """The rule file that says a pairing, and settles by its rules what values alone could not.

    Raises `UsageError`: RK623 for a name that is none, RK625 where there is no pair at all.

    >>> from remapkit.spec import StateDictSpec, TensorSpec
    >>> pairs = {f"layers.{n}.{p}.w": f"h.{n}.{p}_proj.w" for n in range(3) for p in "qk"}
    >>> one, other = (StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (8,)))) for keys in (pairs, pairs.values()))
    >>> print("\\n".join(learn("mine", one, other, Pairing(pairs, {}, (), ())).text.splitlines()[9:16]))
    tables:
      part: {q: q_proj, k: k_proj}
    <BLANKLINE>
    rules:
      # 6 keys
      - id: layers.w
        path: 'layers.{layer:int}.{part:part}.w'
    """
    check_name_and_source(name, source)
    # The language has no word for the empty key.
    pairs = {fqn: other for fqn, other in pairing.pairs.items() if fqn and other}
    if not pairs:
        raise UsageError(_no_pairs(source, target))
    alike, by_module = {fqn: others for fqn, others in pairing.alike.items() if fqn}, dict[str, str]()
    while True:
        text = _fitting_text(name, source, target, pairs, source_ref, target_ref)
        settled = _settled(_by_rules(compile_rules(read_text(text, name)), alike), pairs, alike)
        if not settled:
            settled = _settled(_by_module(pairs, alike), pairs, alike)
            by_module |= settled
        if not settled:
            break
        pairs = {fqn: (pairs | settled)[fqn] for fqn in source if fqn in pairs or fqn in settled}
        alike = {fqn: others for fqn, others in alike.items() if fqn not in settled}
    reached = set(pairs.values())
    undecided = {fqn: tuple(other for other in others if other not in reached) for fqn, others in alike.items()}
    left = "\n".join(_left(source, target, undecided, pairing))
    whole = f"{text}{left}\n" if left else text
    return Learned(whole, pairs, by_module, undecided, pairing.only_a, pairing.only_b)


def _no_pairs(source: StateDictSpec, target: StateDictSpec) -> Diagnostic:
    return Diagnostic(
        "RK625",
        f"no tensor of {source.name} has the dtype, shape and bytes of one of {target.name} alone",
        help=(
            "give two checkpoints that hold the same weights: convert one by the means that you have now",
            "or write the pairs that you know into a JSON object, source key to target key: --pairs FILE",
        ),
    )


def _settled(
    proposed: Mapping[str, str], pairs: Mapping[str, str], alike: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Those of the proposed pairs whose values are equal, and whose target is free and proposed once."""
    reached = set(pairs.values())
    found = {fqn: other for fqn, other in proposed.items() if other in alike[fqn] and other not in reached}
    twice = {other for other, count in Counter(found.values()).items() if count > 1}
    return {fqn: other for fqn, other in found.items() if other not in twice}


def _by_rules(rules: RuleSet, alike: Iterable[str]) -> dict[str, str]:
    """Where the rules so far lead keys that share their values with others."""
    found: dict[str, str] = {}
    for fqn in alike:
        targets = [match.target for match in rules.match(fqn)]
        if len(targets) == 1 and targets[0] is not None:
            found[fqn] = targets[0]
    return found


def _by_module(pairs: Mapping[str, str], alike: Iterable[str]) -> dict[str, str]:
    """Where the rest of the module went, leaf by leaf under the same name: its bias goes there too."""
    homes: defaultdict[str, set[str | None]] = defaultdict(set)
    for fqn, other in pairs.items():
        (module, _, leaf), (home, _, other_leaf) = fqn.rpartition("."), other.rpartition(".")
        homes[module].add(home if leaf == other_leaf else None)
    found: dict[str, str] = {}
    for fqn in alike:
        module, _, leaf = fqn.rpartition(".")
        known = [home for home in homes[module] if home is not None]
        if len(known) == len(homes[module]) == 1:
            found[fqn] = f"{known[0]}.{leaf}"
    return found


# ------------------------------------------------------------------------------------------------ a text that fits


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule as it will be written; `example` is the number of the example it stands for."""

    id: str
    example: int
    pattern: str
    to: str | None
    surface: str = "path"
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    count: int = 1
    first: tuple[str, str] = ("", "")


def _fitting_text(
    name: str,
    source: StateDictSpec,
    target: StateDictSpec,
    pairs: Mapping[str, str],
    source_ref: str | None,
    target_ref: str | None,
) -> str:
    """The most general text that says the pairs and nothing wrong: an index is free where that does no harm."""
    examples = generalise(pairs)
    tight: frozenset[int] = frozenset()
    while True:
        written, tables = _written(examples, tight)
        lines = [*head(name, source, source_ref, target, target_ref), *_lines(written, tables)]
        text = "\n".join(lines) + "\n"
        wrong = _wrong(compile_rules(read_text(text, name)), source, target, pairs)
        harmful = {rule.example for rule in written if rule.id in wrong}
        if harmful <= tight:
            if wrong:
                raise AssertionError(f"the derived rules do not say the examples: {sorted(wrong)}")
            return text
        tight |= harmful


def _wrong(rules: RuleSet, source: StateDictSpec, target: StateDictSpec, pairs: Mapping[str, str]) -> set[str]:
    """The ids of rules that take a key of another's, or lead one to where no example and no target leads."""
    found: set[str] = set()
    for fqn in source:
        matches = rules.match(fqn)
        for match in matches:
            wanted = pairs.get(fqn)
            is_wrong = match.target != wanted if wanted is not None else match.target not in target
            if is_wrong or len(matches) > 1:
                found.add(match.rule.id)
    return found


def _written(
    examples: Sequence[Example], tight: frozenset[int]
) -> tuple[list[_Rule], Mapping[str, tuple[tuple[str, str], ...]]]:
    tables: dict[str, tuple[tuple[str, str], ...]] = {}
    ids: set[str] = set()
    written: list[_Rule] = []
    keeps = 0
    for number, example in enumerate(examples):
        if any("" in words for words in example.words):
            # A path has no empty segments: such a key is written out, as a regular expression.
            written += [_literal(pair, number, ids) for pair in example.pairs]
            continue
        rule = _rule(example, number, number in tight, ids, tables)
        if example.is_identity:
            rule = replace(rule, id=f"keep[{keeps}]", to=None)
            keeps += 1
        written.append(rule)
    return written, tables


def _literal(pair: tuple[str, str], number: int, ids: set[str]) -> _Rule:
    id = _unique(pair[0], ids)
    return _Rule(id, number, escaped_regex(pair[0]), braces(pair[1]), surface="match", first=pair)


def _rule(
    example: Example, number: int, tight: bool, ids: set[str], tables: dict[str, tuple[tuple[str, str], ...]]
) -> _Rule:
    names = [name for name, _ in capture_names(example.words)]
    bounded = example.computed_places
    of_place = {
        item.place: _table(names[item.place], item.entries, tables)
        for item in reversed(example.items)
        if isinstance(item, Looked)
    }
    segments, where = [], {}
    for place, (name, words) in enumerate(zip(names, example.words, strict=True)):
        kind = _kind(words, free=place not in bounded and not tight)
        if not name:
            segments.append(braces(words[0]))
        elif place in of_place:
            segments.append(f"{{{name}:{of_place[place]}}}")
        elif kind is not None:
            segments.append(f"{{{name}:{kind}}}")
        else:
            segments.append(f"{{{name}}}")
            where[name] = words
    to = ".".join(_target_segment(item, names, tables) for item in example.items)
    shared = [each[0] for each in example.words if len(each) == 1 and not is_integer(each[0])]
    id = _unique(".".join(shared) or "all", ids)
    return _Rule(id, number, ".".join(segments), to, "path", where, len(example.pairs), example.pairs[0])


def _kind(words: Sequence[str], *, free: bool) -> str | None:
    return "int" if free and all(map(is_integer, words)) else bound(words)


def _target_segment(item: Item, names: Sequence[str], tables: dict[str, tuple[tuple[str, str], ...]]) -> str:
    if isinstance(item, Fixed):
        return braces(item.word)
    if isinstance(item, Copied):
        return f"{{{names[item.place]}}}"
    if isinstance(item, Looked):
        return f"{{{names[item.place]}|{_table(names[item.place], item.entries, tables)}}}"
    return "{" + item.written.format(*(names[place] for place in item.places)) + "}"


def _table(name: str, entries: tuple[tuple[str, str], ...], tables: dict[str, tuple[tuple[str, str], ...]]) -> str:
    """The name of the table with these entries, made where there is none yet."""
    known = next((each for each, found in tables.items() if sorted(found) == sorted(entries)), None)
    if known is not None:
        return known
    base = name.rstrip("0123456789")
    number, unique = 2, base
    while unique in tables:
        number, unique = number + 1, f"{base}{number}"
    tables[unique] = entries
    return unique


def _unique(name: str, ids: set[str]) -> str:
    number, unique = 2, name
    while unique in ids:
        number, unique = number + 1, f"{name}-{number}"
    ids.add(unique)
    return unique


# ------------------------------------------------------------------------------------------------ YAML


def _lines(written: Sequence[_Rule], tables: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[str]:
    if tables:
        yield "tables:"
        for name, entries in tables.items():
            inner = ", ".join(f"{scalar(key)}: {scalar(value)}" for key, value in entries)
            lossy = len({value for _, value in entries}) < len(entries)
            yield f"  {name}: {{lossy: true, entries: {{{inner}}}}}" if lossy else f"  {name}: {{{inner}}}"
        yield ""
    rules = [rule for rule in written if rule.to is not None]
    if rules:
        yield "rules:"
        for rule in rules:
            yield f"  # {rule.count} key{'s' * (rule.count > 1)}"
            yield f"  - id: {scalar(rule.id)}"
            yield f"    {rule.surface}: {scalar(rule.pattern, always=True)}"
            if rule.where:
                yield f"    where: {flow(rule.where)}"
            yield f"    to: {scalar(rule.to or '', always=True)}"
            yield ""
    keeps = [rule for rule in written if rule.to is None]
    if keeps:
        yield "keep:"
        for rule in keeps:
            pattern = scalar(rule.pattern, always=True)
            yield f"  - {{path: {pattern}, where: {flow(rule.where)}}}" if rule.where else f"  - {pattern}"
        yield ""
    yield "tests:"
    for rule in written:
        source, target = map(scalar, rule.first)
        yield f"  {source}: {target}" if len(source) < 1000 else f"  ? {source}\n  : {target}"


def _left(
    source: StateDictSpec, target: StateDictSpec, undecided: Mapping[str, Sequence[str]], pairing: Pairing
) -> Iterator[str]:
    """What the author has to decide, as comments."""
    if undecided:
        yield ""
        yield "# The values of these occur under several keys (zeros, ones), and nothing settles which is which:"
        yield from _families(source, tuple(undecided))
        yield "# They are these, in some order:"
        yield from _families(target, tuple(dict.fromkeys(other for others in undecided.values() for other in others)))
    for fqns, header, what in ((pairing.only_a, source, "source"), (pairing.only_b, target, "target")):
        if fqns:
            yield ""
            count = f"{len(fqns)} of {len(header)} keys"
            yield f"# In the {what} only, or computed on the way (fused, transposed, cast): {count}."
            yield from _families(header, fqns)


def _families(header: StateDictSpec, fqns: Sequence[str]) -> Iterator[str]:
    some = StateDictSpec({fqn: header[fqn] for fqn in fqns}, name=header.name)
    yield from (f"#   {comment(family.pattern)}  # {len(family.fqns)}" for family in families(some))
