"""What loose joins cost, in steps: about linear in the keys of a layout, and never much more than the budget."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest

from remapkit.authoring import generalize as generalize_module
from remapkit.authoring.join_loosely import PASSES, Budget, join_loosely


def count_steps(pairs: Mapping[str, str], allowed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    budget = Budget(allowed)
    with monkeypatch.context() as patch:
        patch.setattr(generalize_module, "join_loosely", lambda *given: join_loosely(*given, budget))
        generalize_module.generalize(pairs, loosely=True)
    return allowed - budget.left


def make_word(number: int) -> str:
    return "".join(chr(ord("a") + number // 26**place % 26) for place in range(3))


def make_layout(number: int) -> dict[str, str]:
    """Modules, each without one of six leaves."""
    leaves = ("conv1.weight", "conv1.bias", "norm1.gamma", "conv2.weight", "conv2.bias", "norm2.gamma")
    names = [f"{make_word(n // 5)}.{leaves[(n + n // 5) % 6]}" for n in range(number)]
    return {f"net.{name}": f"h.{name.replace('gamma', 'g')}" for name in names}


def make_noise(number: int) -> dict[str, str]:
    """Words that go with one another in no order: hundreds of groups, of which any two may fit."""
    rng = random.Random(0)
    words = list(map(make_word, range(40)))
    pairs: dict[str, str] = {}
    while len(pairs) < number:
        one, other, last = (rng.choice(words) for _ in range(3))
        pairs[f"{one}.{other}.{last}"] = f"{one[::-1]}.{other}.{rng.choice((last, f'u.{last}q'))}"
    return pairs


def test_the_steps_grow_with_the_keys_of_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [count_steps(make_layout(number), 10**9, monkeypatch) for number in (600, 1200, 2400)]
    assert steps[0] > 600
    assert all(more < 2.2 * fewer for fewer, more in itertools.pairwise(steps)), steps


@pytest.mark.parametrize("number", [600, 1200, 2400])
def test_a_budget_that_is_spent_ends_the_search(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = PASSES * number + 100_000
    # Only the pair that is being compared goes beyond it: a few passes over its keys.
    assert allowed < count_steps(make_noise(number), allowed, monkeypatch) < allowed + 10 * number
