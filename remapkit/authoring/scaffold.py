"""Rule files begun from real headers.

`new_rule_file` writes a file that is valid from its first line on: every key family passes through under `keep:`, and
for each there is a candidate rule in comments, to take out, edit, and delete the `keep` for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun, escape_line
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.literals import choice_text, literal_text
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.names import choose_name
from remapkit.rulefile.schema.text import SCHEMA_FILE
from remapkit.rulefile.yaml.emit import emit_entry, emit_flow, emit_scalar, quote_text
from remapkit.tensors.families import Family, find_families, is_canonical_integer
from remapkit.tensors.spec import StateDictSpec

MAX_TESTS = 100
"""How many tests are drawn from real keys, one a family."""


def new_rule_file(
    name: str,
    source: StateDictSpec,
    source_ref: str | None = None,
    target: StateDictSpec | None = None,
    target_ref: str | None = None,
) -> str:
    """The text of a rule file for a source header, and for a target's where it is known.

    `source_ref` is the manifest that the file declares as its source, relative to the file; `target_ref` names the
    target: a model (`plugin.module:Class`), or a manifest where it ends in `.json`. The text compiles without errors
    and maps every source key onto itself.

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
    # A source key and the target key that it must become (null: it must be dropped), for `remapkit test`.
    tests:
      layers.0.attn.q.weight: layers.0.attn.q.weight
    <BLANKLINE>
    """
    check_name_and_source(name, source)
    known = set(target or ())
    same = _select_keys(source, [fqn for fqn in source if fqn in known])
    other = _select_keys(source, [fqn for fqn in source if fqn not in known])
    found = _make_candidates(other, same)
    free = (
        find_families(_select_keys(target, [fqn for fqn in target if fqn not in source]))
        if target is not None
        else ()
    )
    lines = [
        *write_head(name, source, source_ref, target, target_ref),
        *_write_rules(found, free, target),
        *_write_keeps(found, target),
        *_write_tests(found),
        *write_lacking_keys(free, target),
    ]
    return "\n".join(lines) + "\n"


def check_name_and_source(name: str, source: StateDictSpec) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        help = ("a name has letters, digits, _, - and ., and does not begin with - or .",)
        raise UsageError(Diagnostic("RK623", f"{name!r} is no name for a pack", help=help))
    if not source:
        help = ("a rule file is begun from the keys of a checkpoint that has some",)
        raise UsageError(Diagnostic("RK624", f"{source.name} holds no tensors", help=help))


def _select_keys(spec: StateDictSpec, fqns: Iterable[str]) -> StateDictSpec:
    return StateDictSpec({fqn: spec[fqn] for fqn in fqns}, name=spec.name)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A family with its pattern in the rule language, a template that changes nothing, and a name."""

    family: Family
    id: str
    surface: str
    pattern: str
    where: Mapping[str, Sequence[str]]
    to: str
    renamed: bool

    @property
    def count(self) -> str:
        return count_noun(len(self.family.fqns), "key")


def _make_candidates(other: StateDictSpec, same: StateDictSpec) -> tuple[_Candidate, ...]:
    ids: set[str] = set()
    pairs = [(family, True) for family in find_families(other)] + [(family, False) for family in find_families(same)]
    return tuple(_make_candidate(family, renamed, ids) for family, renamed in pairs)


# ------------------------------------------------------------------------------------------------ patterns


def _make_candidate(family: Family, renamed: bool, ids: set[str]) -> _Candidate:
    names = name_captures(family.segments)
    to = ".".join(f"{{{name}}}" if name else literal_text(words[0]) for name, words in names)
    id = _make_id(family, ids)
    if any("" in words for words in family.segments):
        # A path has no empty segments, a regular expression can say them.
        segments = (f"(?P<{name}>[^.]*)" if name else unparse(literal(words[0])) for name, words in names)
        where = {name: list_guards(words) for name, words in names if name}
        return _Candidate(family, id, "match", r"\.".join(segments), where, to, renamed)
    path = ".".join(write_segment(name, words) for name, words in names)
    where = {name: list_guards(words) for name, words in names if name and write_bound(words) is None}
    return _Candidate(family, id, "path", path, where, to, renamed)


def write_segment(name: str, words: Sequence[str]) -> str:
    if not name:
        return literal_text(words[0])
    kind = write_bound(words)
    return f"{{{name}:{kind}}}" if kind else f"{{{name}}}"


def list_guards(words: Iterable[str]) -> list[str]:
    """What bounds a capture to these words, under `where:`."""
    return [literal_text(word) for word in words]


def write_bound(words: Sequence[str]) -> str | None:
    """What bounds a capture to these words, within its braces; None where only a list can."""
    if len(words) > MAX_WORDS or any(choice_text(word) != word for word in words):
        return None
    if is_canonical_integer(words[0]):
        numbers = [int(word) for word in words]
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{numbers[0]}..{numbers[-1]}"
    return "|".join(words)


def name_captures(segments: Sequence[tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A name for each segment that is not the same word in all keys, and '' for one that is."""
    taken: set[str] = set()
    return tuple(
        ("" if len(words) == 1 and words[0] else _name_capture(segments, place, taken), words)
        for place, words in enumerate(segments)
    )


def _name_capture(segments: Sequence[Sequence[str]], place: int, taken: set[str]) -> str:
    """An index is called after what it counts, `layers.{layer:0..31}`, the last segment `leaf`, all else `part`."""
    before = segments[place - 1] if place else ()
    name = "leaf" if place == len(segments) - 1 else "part"
    if is_canonical_integer(segments[place][0]):
        name = "index"
        if len(before) == 1 and re.fullmatch(r"[A-Za-z_]\w*", before[0], re.ASCII):
            name = before[0].removesuffix("s") or "index"
    return choose_name(name, taken)


def _make_id(family: Family, ids: set[str]) -> str:
    """The words that all keys share, `encoder.downsamples.residual`; numbered where two families share them."""
    words = [words[0] for words in family.segments if len(words) == 1 and not is_canonical_integer(words[0])]
    return choose_name(".".join(filter(None, words)) or "all", ids, "-")


# ------------------------------------------------------------------------------------------------ YAML


def write_head(
    name: str,
    source: StateDictSpec,
    source_ref: str | None,
    target: StateDictSpec | None,
    target_ref: str | None,
    *,
    all_taken: bool = True,
    all_reached: bool = True,
) -> Iterator[str]:
    """The lines before the rules. A manifest that the rules do not cover yet stands in a comment."""
    leads = f" -> {escape_line(target_ref or target.name)}" if target is not None else ""
    yield f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}"
    yield "remapkit: 1"
    yield f"name: {emit_scalar(name)}"
    yield f"summary: {emit_scalar(f'{escape_line(Path(source.name).name)}{leads}')}"
    yield ""
    if source_ref is not None and not all_taken:
        yield "# No rule takes some of these keys. Declare them when all have one: `remapkit test` then tries all."
        yield f"# source: {{keys: {emit_scalar(source_ref)}}}"
    elif source_ref is not None:
        yield f"source: {{keys: {emit_scalar(source_ref)}}}"
    else:
        yield "# A manifest (`remapkit inspect CKPT --manifest keys.json`) lets `remapkit test` try all keys:"
        yield "# source: {keys: keys.json}"
    if target_ref is not None:
        kind = "keys" if target_ref.endswith(".json") else "model"
        if not all_reached:
            yield "# No rule leads to some of these keys. Declare them when all are brought."
        yield f"{'' if all_reached else '# '}target: {{{kind}: {emit_scalar(target_ref)}}}"
    else:
        yield '# target: {model: "plugin.module:Class"}'
    yield ""


def _write_rules(found: Sequence[_Candidate], free: Sequence[Family], target: StateDictSpec | None) -> Iterator[str]:
    alike = _group_by_shapes(free)
    yield "# One candidate for each key family. To rename one: take its lines out of comments, edit `to:`, and delete"
    yield "# its line under `keep:`. `{part:a|b}` reads one of the words, `{n:0..3}` a number, `{rest:**}` the rest."
    yield "rules:"
    for candidate in found:
        if target is not None and not candidate.renamed:
            continue
        yield f"  # {candidate.count} · {_describe_family(candidate.family)}"
        yield f"  # - id: {emit_scalar(candidate.id)}"
        yield f"  #   {candidate.surface}: {quote_text(candidate.pattern)}"
        if candidate.where:
            yield f"  #   where: {emit_flow(candidate.where)}"
        yield f"  #   to: {quote_text(candidate.to)}"
        for family in alike.get(_collect_shapes(candidate.family), ())[:2]:
            yield f"  #   # the target has as many keys of these shapes under {escape_line(family.pattern)}"
        yield ""


def _group_by_shapes(free: Sequence[Family]) -> Mapping[object, Sequence[Family]]:
    found: defaultdict[object, list[Family]] = defaultdict(list)
    for family in free:
        found[_collect_shapes(family)].append(family)
    return found


def _collect_shapes(family: Family) -> object:
    """What stays the same when keys are renamed: the shapes, each with how often it occurs."""
    return tuple(sorted(spec.shape for spec in family.specs))


def _write_keeps(found: Sequence[_Candidate], target: StateDictSpec | None) -> Iterator[str]:
    yield "# Passed through unchanged. Delete a line when a rule above takes its keys."
    yield "keep:"
    for candidate in found:
        note = candidate.count
        if target is not None:
            note += ", not in the target under this name" if candidate.renamed else ", in the target too"
        guarded = {candidate.surface: candidate.pattern, "where": candidate.where}
        yield f"  - {emit_flow(guarded) if candidate.where else quote_text(candidate.pattern)}  # {note}"
    yield ""


def _write_tests(found: Sequence[_Candidate]) -> Iterator[str]:
    yield "# A source key and the target key that it must become (null: it must be dropped), for `remapkit test`."
    yield "tests:"
    for candidate in found[:MAX_TESTS]:
        fqn = candidate.family.fqns[0]
        yield emit_entry(fqn, fqn)
    yield ""


def write_lacking_keys(free: Sequence[Family], target: StateDictSpec | None) -> Iterator[str]:
    if not free or target is None:
        return
    count = sum(len(family.fqns) for family in free)
    yield f"# In the target, but under no name of the source: {count} of {len(target)} keys for rules to lead to."
    for family in free:
        yield f"#   {escape_line(family.pattern)}  # {len(family.fqns)} · {_describe_family(family)}"
    yield ""


def _describe_family(family: Family) -> str:
    return f"{family.dtypes_text} {family.shapes_text}"
