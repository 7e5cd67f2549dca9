"""Another library as a second opinion on which patterns meet, for what both understand."""

from __future__ import annotations

import re

import pytest
from rule_maker import seeded

from remapkit.diagnostics.source import Text
from remapkit.patterns.pattern import Pattern, split_into_parts
from remapkit.patterns.regex import parse_regex
from remapkit.proofs.budget import Budget
from remapkit.proofs.checks import Questions
from remapkit.proofs.keymap import KeyMap

interegular = pytest.importorskip("interegular")


def drop(text: str) -> KeyMap:
    written = Text.of(text)
    return KeyMap(
        text,
        "drop",
        written.span,
        Pattern("match", written, written.span, split_into_parts(parse_regex(written))),
        None,
    )


def meet(one: str, other: str) -> tuple[bool, str]:
    answers = Questions([drop(one), drop(other)], Budget(1_000_000)).run()
    assert not answers.undecided
    return bool(answers.witnesses), answers.witnesses[0].keys[0] if answers.witnesses else ""


def test_the_same_pairs_of_patterns_meet() -> None:
    """Where the two disagree, `re` decides: with our witness, or with every word that the other one gives."""
    agreed = met = 0
    for seed in range(250):
        maker = seeded(900_000 + seed)
        one, other = (maker.expression(3) for _ in range(2))
        if one == other:
            continue
        ours, witness = meet(one, other)
        if ours:
            assert re.fullmatch(one, witness) and re.fullmatch(other, witness)
            met += 1
        left, right = (interegular.parse_pattern(text).to_fsm() for text in (one, other))
        theirs = not left.isdisjoint(right)
        if ours != theirs and not ours:
            words = [next(iter(left & right), None)]
            assert not any(
                word is not None and re.fullmatch(one, "".join(word)) and re.fullmatch(other, "".join(word))
                for word in words
            )
        agreed += ours == theirs
    assert met > 40
    assert agreed > 200
