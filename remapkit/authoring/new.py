"""`remapkit new`: a rule file started from a real header.

The file is valid as written: a key family whose names differ from those of the target only by a prefix or a segment
has a rule; every other one passes through under `keep:`, and has a commented candidate rule. The author uncomments a
candidate, edits its `to:`, and deletes the line under `keep:`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.authoring.find_prefix import Change, find_changes
from remapkit.authoring.write_rules import (
    PatternText,
    check_name_and_source,
    write_head,
    write_rule,
    write_test,
)
from remapkit.diagnostics.wording import count_noun, escape_line
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.literals import choice_text, literal_text
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.names import choose_name
from remapkit.tensors.families import Family, find_families, is_canonical_integer, join_key
from remapkit.tensors.spec import StateDictSpec

CANDIDATES_HELP = (
    "# One candidate rule per key family. To rename a family, uncomment its rule, edit `to:`, and delete its",
    "# line under `keep:`. `{part:a|b}` matches one of the words, `{n:0..3}` a number, `{rest:**}` the rest.",
)

MAX_TESTS = 100
"""The maximum number of tests: one per family, for its first key."""


def new_rule_file(
    name: str,
    source: StateDictSpec,
    source_ref: str | None = None,
    target: StateDictSpec | None = None,
    target_ref: str | None = None,
    *,
    target_args: Mapping[str, object] | None = None,
    target_config: str | None = None,
) -> str:
    """Return the text of a rule file for a source header and, if given, a target header.

    `source_ref` is the manifest that the file declares as its source, relative to the file; `target_ref` names the
    target: a model (`plugin.module:Class`), or a manifest if it ends in `.json`; `target_args` and `target_config`
    are those of the model. The text compiles without errors and maps every source key to itself, or to the target key
    that differs from it only by a prefix or a segment.

    Raises `UsageError`: RK623 for an invalid name, RK624 for an empty source.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> keys = [f"layers.{n}.attn.q.weight" for n in range(4)]
    >>> source = StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (8, 8))), name="a.pth")
    >>> print("\\n".join(new_rule_file("mine", source).splitlines()[-14:]))
    rules:
      # 4 keys · F32 [8, 8]
      # - id: layers.attn.q.weight
      #   path: 'layers.{layer:0..3}.attn.q.weight'
      #   to: 'layers.{layer}.attn.q.weight'
    <BLANKLINE>
    # Passed through unchanged. Delete a line when a rule above takes its keys.
    keep:
      - 'layers.{layer:0..3}.attn.q.weight'  # 4 keys
    <BLANKLINE>
    # For `remapkit test`: a source key and the target key that it must become (null: it must be dropped).
    tests:
      layers.0.attn.q.weight: layers.0.attn.q.weight
    <BLANKLINE>
    """
    check_name_and_source(name, source)
    target_keys = set(target or ())
    same = _select_keys(source, [fqn for fqn in source if fqn in target_keys])
    renamed = _select_keys(source, [fqn for fqn in source if fqn not in target_keys])
    lacking = _select_keys(target or source, [fqn for fqn in target or () if fqn not in source])
    candidates = _make_candidates(renamed, same, lacking)
    made = {fqn for candidate in candidates for fqn in candidate.targets}
    missing = find_families(
        _select_keys(lacking, [fqn for fqn in target or () if fqn in lacking and fqn not in made])
    )
    lines = [
        *write_head(
            name, source, source_ref, target, target_ref, target_args=target_args, target_config=target_config
        ),
        *_write_rules(candidates, missing, target),
        *_write_keeps(candidates, target),
        *_write_tests(candidates),
        *_write_missing(missing, target),
    ]
    return "\n".join(lines) + "\n"


def _select_keys(spec: StateDictSpec, fqns: Iterable[str]) -> StateDictSpec:
    return StateDictSpec({fqn: spec[fqn] for fqn in fqns}, name=spec.name)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A key family as a rule; `renamed` if the target has no such keys, `change` if it has them under other names."""

    family: Family
    id: str
    pattern: PatternText
    to: str
    renamed: bool
    change: Change | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The target keys that its rule produces; none if it only passes through."""
        return tuple(self.change.apply(fqn) or "" for fqn in self.family.fqns) if self.change is not None else ()

    @property
    def count(self) -> str:
        return count_noun(len(self.family.fqns), "key")


def _make_candidates(renamed: StateDictSpec, same: StateDictSpec, lacking: StateDictSpec) -> tuple[_Candidate, ...]:
    ids: set[str] = set()
    families = find_families(renamed)
    changes = find_changes(families, lacking) if lacking else {}
    return (
        *(_make_candidate(family, True, ids, changes.get(family)) for family in families),
        *(_make_candidate(family, False, ids) for family in find_families(same)),
    )


# ------------------------------------------------------------------------------------------------ patterns


def _make_candidate(family: Family, renamed: bool, ids: set[str], change: Change | None = None) -> _Candidate:
    names = name_captures(family.words, family.separators)
    parts = family.list_segments([f"{{{name}}}" if name else literal_text(words[0]) for name, words in names])
    if change is not None:
        parts = [*map(literal_text, change.added), *change.keep(family.fqns[0].split("."), parts)]
    to = ".".join(parts)
    if any("" in words for words in family.words):
        # A path has no empty segments; a regular expression can match them. Such keys are cut at dots only.
        segments = (f"(?P<{name}>[^.]*)" if name else unparse(literal(words[0])) for name, words in names)
        pattern = PatternText(r"\.".join(segments), "match", {name: words for name, words in names if name})
    else:
        path = join_key(family.separators, (_write_segment(name, words) for name, words in names))
        guards = {name: words for name, words in names if name and write_bound(words) is None}
        pattern = PatternText(path, where=guards)
    return _Candidate(family, _make_id(family, ids), pattern, to, renamed, change)


def _write_segment(name: str, words: Sequence[str]) -> str:
    if not name:
        return literal_text(words[0])
    kind = write_bound(words)
    return f"{{{name}:{kind}}}" if kind else f"{{{name}}}"


def write_bound(words: Sequence[str]) -> str | None:
    """Return the text in braces that bounds a capture to these words; None if only a `where:` list can."""
    if len(words) > MAX_WORDS or any(choice_text(word) != word for word in words):
        return None
    if is_canonical_integer(words[0]):
        numbers = [int(word) for word in words]
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{numbers[0]}..{numbers[-1]}"
    return "|".join(words)


def name_captures(
    words: Sequence[tuple[str, ...]], separators: str | None = None
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return a capture name for each place that varies or is empty, and '' for one that is constant.

    `separators` are the signs between the places; without them, places are segments.
    """
    taken: set[str] = set()
    signs = "." * len(words) if separators is None else f".{separators}"
    return tuple(
        ("" if len(own) == 1 and own[0] else _name_capture(words, signs, place, taken), own)
        for place, own in enumerate(words)
    )


def _name_capture(words: Sequence[Sequence[str]], signs: str, place: int, taken: set[str]) -> str:
    """Name an index after the word before it (`layers.{layer:0..31}`), the last place `leaf`, others `part`."""
    before = words[place - 1] if place else ()
    name = "leaf" if place == len(words) - 1 else "part"
    if is_canonical_integer(words[place][0]):
        name = "index"
        if len(before) == 1:
            word = before[0].rpartition("_")[2] if signs[place] == "_" else before[0]
            if re.fullmatch(r"[A-Za-z_]\w*", word, re.ASCII):
                name = word.removesuffix("s") or "index"
    return choose_name(name, taken)


def _make_id(family: Family, ids: set[str]) -> str:
    """Return the words that all keys share, `encoder.downsamples.residual`; numbered if two families share them."""
    words = [words[0] for words in family.words if len(words) == 1 and not is_canonical_integer(words[0])]
    return choose_name(".".join(filter(None, words)) or "all", ids, "-")


# ------------------------------------------------------------------------------------------------ lines


def _write_rules(
    candidates: Sequence[_Candidate], missing: Sequence[Family], target: StateDictSpec | None
) -> Iterator[str]:
    alike = _group_by_shapes(missing)
    found = [candidate for candidate in candidates if candidate.change is not None]
    others = [
        candidate for candidate in candidates if candidate.change is None and (target is None or candidate.renamed)
    ]
    if found:
        yield "# The names that differ from those of the target only by a prefix or a segment have a rule."
    if others or not found:
        yield from CANDIDATES_HELP
    yield "rules:"
    for candidate in found:
        yield f"  # {candidate.count} · {_describe_family(candidate.family)}"
        yield from (f"  {line}" for line in write_rule(candidate.id, candidate.pattern, candidate.to))
    if found:
        yield ""
    for candidate in others:
        yield f"  # {candidate.count} · {_describe_family(candidate.family)}"
        yield from (f"  # {line}" for line in write_rule(candidate.id, candidate.pattern, candidate.to))
        for family in alike.get(_collect_shapes(candidate.family), ())[:2]:
            yield f"  #   # as many target keys have these shapes: {escape_line(family.pattern)}"
        yield ""
    if not found and not others:
        yield ""


def _group_by_shapes(families: Sequence[Family]) -> Mapping[object, Sequence[Family]]:
    groups: defaultdict[object, list[Family]] = defaultdict(list)
    for family in families:
        groups[_collect_shapes(family)].append(family)
    return groups


def _collect_shapes(family: Family) -> object:
    """Return what renaming keys does not change: the multiset of shapes."""
    return tuple(sorted(spec.shape for spec in family.specs))


def _write_keeps(candidates: Sequence[_Candidate], target: StateDictSpec | None) -> Iterator[str]:
    kept = [candidate for candidate in candidates if candidate.change is None]
    if not kept:
        return
    yield "# Passed through unchanged. Delete a line when a rule above takes its keys."
    yield "keep:"
    for candidate in kept:
        note = candidate.count
        if target is not None:
            note += ", not in the target under this name" if candidate.renamed else ", in the target too"
        yield f"  - {candidate.pattern.inline()}  # {note}"
    yield ""


def _write_tests(candidates: Sequence[_Candidate]) -> Iterator[str]:
    yield "# For `remapkit test`: a source key and the target key that it must become (null: it must be dropped)."
    yield "tests:"
    for candidate in candidates[:MAX_TESTS]:
        fqn = candidate.family.fqns[0]
        yield from write_test(fqn, candidate.targets[:1] or [fqn])
    yield ""


def _write_missing(missing: Sequence[Family], target: StateDictSpec | None) -> Iterator[str]:
    if not missing or target is None:
        return
    count = sum(len(family.fqns) for family in missing)
    yield f"# Target keys that the source does not contain, which rules must produce: {count} of {len(target)}."
    for family in missing:
        yield f"#   {escape_line(family.pattern)}  # {len(family.fqns)} · {_describe_family(family)}"
    yield ""


def _describe_family(family: Family) -> str:
    return f"{family.dtypes_text} {family.shapes_text}"
