"""An inverse is written like its rules: its proof takes about as many steps as theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_proofs import rules

from remapkit.api.ruleset import compile_rules
from remapkit.authoring.invert import invert
from remapkit.authoring.invert_rule import InverseCapture
from remapkit.authoring.write_inverse import InverseWriter
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.proofs.budget import Budget
from remapkit.proofs.model import Level
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.model import CompiledRules

MOST = 4
"""The proof of an inverse takes at most this many times the steps of the proof of its rules."""


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Count the steps that all budgets spend."""
    spent: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        spend = Budget.spend

        def count(self: Budget, steps: int) -> None:
            spent.append(steps)
            spend(self, steps)

        patch.setattr(Budget, "spend", count)
        yield spent


def count_steps(given: CompiledRules) -> int:
    with counted_steps() as spent:
        assert prove(given).level is Level.ALL
    return sum(spent)


@dataclass(frozen=True)
class Kind:
    """A capture: its regular expression or its type in a path, its guard, words that it matches, its use in `to`."""

    regex: str | None
    typed: str | None
    words: tuple[str, ...]
    where: object = None
    use: str = ""


TABLES = {
    "few": {"q": "query", "k": "key", "v": "value"},
    "many": {f"layer{number}": f"block{number}" for number in range(60)},
}
KINDS = (
    Kind(r"\d{3}", None, ("000", "012", "999")),
    Kind(r"\w{2}", None, ("a_", "Z9", "00")),
    Kind(r"\d+", "int", ("0", "7", "999"), "0..999"),
    Kind(r"\d+", "int", ("3", "12"), "3..12", "+1"),
    Kind(r"[0-9a-f]{2}", None, ("00", "ff", "1a")),
    Kind(r"[0-9a-f]{1,2}", None, ("0", "ff")),
    Kind(r"a|b|abc", "a|b|abc", ("a", "b", "abc")),
    Kind(r"(?:up|down)_\d", None, ("up_0", "down_9")),
    Kind(r"x[yz]?|longer word[0-9]{2}", None, ("x", "xz", "longer word42")),
    Kind(r"\w+", "", ("conv1", "conv19"), [f"conv{number}" for number in range(1, 20)]),
    Kind(r"q|k|v", "few", ("q", "v"), None, "|few"),
    Kind(r"\w+", "many", ("layer0", "layer59"), "many", "|many"),
    Kind(r"[^.]+", "", ("a", "any thing")),
    Kind(r"0|[1-9][0-9]*", "int", ("0", "10", "123456")),
)
assert {kind.use for kind in KINDS} == {"", "+1", "|few", "|many"}


def write_rule(number: int, kinds: tuple[Kind, ...], order: tuple[int, ...], *, path: bool) -> str:
    pieces, where = [], {}
    for place, kind in enumerate(kinds):
        name = f"c{place}"
        if path:
            pieces.append(f"{{{name}:{kind.typed}}}" if kind.typed else f"{{{name}}}")
        else:
            pieces.append(f"(?P<{name}>{kind.regex})")
        if kind.where is not None and (not path or kind.where != kind.typed):
            where[name] = kind.where
    dot = "." if path else r"\."
    rule: dict[str, object] = {"id": f"r{number}", "path" if path else "match": dot.join([f"a{number}", *pieces])}
    if where:
        rule["where"] = where
    rule["to"] = ".".join([f"b{number}", *(f"{{c{place}{kinds[place].use}}}" for place in order)])
    return emit_flow(rule)


Made = tuple[str, list[str]]


@st.composite
def rule_files(draw: st.DrawFn) -> Made:
    """Draw the text of a rule file, and keys that it matches."""
    lines, keys, used = [], [], set[str]()
    for number in range(draw(st.integers(1, 3))):
        path = draw(st.booleans())
        possible = [kind for kind in KINDS if not path or kind.typed is not None]
        kinds = tuple(
            draw(
                st.lists(
                    st.sampled_from(possible),
                    min_size=1,
                    max_size=3,
                )
            )
        )
        order = tuple(draw(st.permutations(range(len(kinds)))))
        lines.append(f"  - {write_rule(number, kinds, order, path=path)}")
        keys.append(".".join([f"a{number}", *(draw(st.sampled_from(kind.words)) for kind in kinds)]))
        used |= {kind.use.removeprefix("|") for kind in kinds if kind.use.startswith("|")}
    tables = "".join(f"  {name}: {emit_flow(TABLES[name])}\n" for name in sorted(used))
    return f"remapkit: 1\nname: t\n{'tables:' if tables else ''}\n{tables}rules:\n" + "\n".join(lines) + "\n", keys


@settings(max_examples=150, deadline=None)
@given(rule_files())
def test_an_inverse_is_proven_like_its_rules_and_leads_back(made: Made) -> None:
    text, keys = made
    given = compile_rules(read_text(text))
    steps = count_steps(given)
    inverse = compile_rules(read_text(invert(given)))
    assert count_steps(inverse) <= MOST * steps, text
    for key in keys:
        (there,) = given.match(key)
        assert there.target is not None
        assert [match.target for match in inverse.match(there.target)] == [key], text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.regex))
def test_each_kind_alone(kind: Kind) -> None:
    used = kind.use.removeprefix("|")
    tables = f"tables: {{{used}: {emit_flow(TABLES[used])}}}\n" if kind.use.startswith("|") else ""
    given = compile_rules(
        read_text(f"remapkit: 1\nname: t\n{tables}rules:\n  - {write_rule(0, (kind,), (0,), path=False)}\n")
    )
    text = invert(given)
    assert count_steps(compile_rules(read_text(text))) <= MOST * count_steps(given), text
    assert len(text) < 2000


def test_expressions_and_ranges_stay_what_they_are() -> None:
    text = invert(
        rules(
            r"match: 'a\.(?P<x>\d{3})_(?P<y>[0-9a-f]{2}|z)', to: 'b.{y}.{x}'",
            r"match: 'c\.(?P<x>\d+)', where: {x: '0..999'}, to: 'd.{x}'",
        )
    )
    assert r"match: 'b\.(?P<y>[0-9a-f]{2}|z)\.(?P<x>\d{3})'" in text
    assert r"match: 'd\.(?P<x>\d+)'" in text and "where: {x: 0..999}" in text


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=lambda kind: str(kind.regex))
def test_listing_the_words_would_be_noticed(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the words of a capture are written out, as an alternation."""

    def list_words(self: InverseWriter, each: str | InverseCapture, where: object) -> str:
        if isinstance(each, str):
            return unparse(literal(each))
        return f"(?P<{each.name}>{'|'.join(unparse(literal(word)) for word in each.words or ())})"

    monkeypatch.setattr(InverseWriter, "write_regex", list_words)
    rule = write_rule(0, (kind,), (0,), path=False)
    given = compile_rules(read_text(f"remapkit: 1\nname: t\nrules:\n  - {rule}\n"))
    text = invert(given)
    assert count_steps(compile_rules(read_text(text))) > MOST * count_steps(given) or len(text) > 2000
