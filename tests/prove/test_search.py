"""The best-first search and its budget: the cheapest way, paid for move by move."""

from __future__ import annotations

import pytest

from remapkit.patterns.charset import singleton
from remapkit.patterns.tree import Chars, Repeat
from remapkit.proofs.automata import LetterClasses, Pieces
from remapkit.proofs.budget import QUESTION, Budget, Exhausted
from remapkit.proofs.search import MOVE, Move, find_cheapest

Moves = dict[str, list[Move[str]]]


def search(moves: Moves, budget: int = 10_000) -> tuple[int, str, list[str]] | None:
    return find_cheapest([(0, "begin", "")], lambda state: moves.get(state, []), "end".__eq__, Budget(budget))


@pytest.mark.parametrize(
    ("moves", "found"),
    [
        pytest.param({"begin": [(5, "end", "x"), (1, "on", "y")], "on": [(1, "end", "z")]}, (2, "yz"), id="later"),
        pytest.param(
            {"begin": [(4, "on", "x"), (1, "by", "y")], "by": [(1, "on", "z")], "on": [(1, "end", "!")]},
            (3, "yz!"),
            id="a cheaper way to a state",
        ),
        pytest.param({"begin": [(1, "end", "x"), (1, "end", "y")]}, (1, "x"), id="the first of equal ones"),
        pytest.param({"begin": [(1, "on", "x")], "on": [(1, "begin", "y")]}, None, id="none"),
    ],
)
def test_the_cheapest_way_is_found(moves: Moves, found: tuple[int, str] | None) -> None:
    answer = search(moves)
    assert (answer[:2] if answer is not None else None) == found


def test_every_move_is_paid() -> None:
    line: Moves = {"begin": [(1, "0", "x")], **{str(n): [(1, str(n + 1), "x")] for n in range(50)}}
    assert search(line, 100 * MOVE) is None
    with pytest.raises(Exhausted):
        search(line, 40 * MOVE)


def test_one_question_leaves_the_others_their_share() -> None:
    budget = Budget(100 * QUESTION)
    budget.ask()
    budget.spend(10 * QUESTION)
    with pytest.raises(Exhausted):
        budget.spend(1)
    budget.ask()
    budget.spend(QUESTION)
    assert budget.left == 89 * QUESTION - 1


def test_the_positions_and_edges_of_a_piece_are_paid() -> None:
    sign = singleton("a")
    budget = Budget(10_000)
    piece = Pieces(LetterClasses([sign]), budget).of(Repeat(Repeat(Chars(sign), 1, 30), 0, None))
    assert len(piece.masks) == 30
    assert budget.spent >= 30 + sum(map(len, piece.follow))
