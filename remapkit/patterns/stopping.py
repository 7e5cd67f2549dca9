r"""Find where a pattern stopped matching a key, and what it expected there.

The instructions of the pattern are walked breadth first, one offset at a time (K. Thompson, "Regular expression
search algorithm", 1968). That takes at most (number of instructions x length of the key) steps, whereas an automaton
without empty transitions can have quadratically many edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from remapkit.patterns.charset import DIGITS, NOT_DOT, NOT_NEWLINE, WORD, Ranges, contains
from remapkit.patterns.matcher import CHARS, JUMP, MATCH, SPLIT, Program
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.unparse import unparse_chars

SHOWN = 4
"""The most alternatives that a message names."""
WORD_SHOWN = 80
"""The most characters of an expected word that a message shows."""
_NAMES: Mapping[Ranges, str] = {
    DIGITS: "a digit",
    ((49, 57),): "a digit from 1 to 9",
    WORD: "a letter, a digit or _",
    NOT_DOT: "a character other than '.'",
    NOT_NEWLINE: "a character",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a rule stopped matching a key: after `offset` characters, and what it expected there."""

    offset: int
    expected: str
    reason: str


def find_stop(pattern: Pattern, fqn: str) -> Stop | None:
    """Return where a pattern stopped matching a key, or None if it matches.

    >>> from remapkit.patterns.pattern import CANONICAL, Part

    >>> from remapkit.patterns.tree import literal
    >>> from remapkit.diagnostics.source import Text
    >>> text = Text.of("...")
    >>> pattern = Pattern("match", text, text.span, (Part(None, literal("h.")), Part("n", CANONICAL)))
    >>> find_stop(pattern, "h.x").reason, find_stop(pattern, "h.10")
    ("expected '0' or a digit from 1 to 9, found 'x'", None)
    """
    program = Program(pattern)
    places, ends = _reach_places(program, [0])
    offset = 0
    for character in fqn:
        following, also = _reach_places(program, _read_character(program, places, character))
        if not following and not also:
            break
        places, ends, offset = following, also, offset + 1
    if ends and offset == len(fqn):
        return _check_leaf(pattern, fqn)
    expected = _list_expected(program, places, ends)
    rest = fqn[offset:]
    found = f"found {rest[:1]!r}" if rest else "but the key ended"
    return Stop(offset, expected, f"expected {expected}, {found}")


def _list_expected(program: Program, places: Iterable[int], ends: bool) -> str:
    found: dict[str, None] = {}
    for place in places:
        found[_describe_expected(program, place)] = None
        if len(found) > SHOWN:
            break
    else:
        found.update({"the end of the key": None} if ends else {})
    return " or ".join([*found][:SHOWN]) + (" or ..." if len(found) > SHOWN else "")


def _check_leaf(pattern: Pattern, fqn: str) -> Stop | None:
    leaf = fqn.rpartition(".")[2]
    if pattern.leaf is None or leaf in pattern.leaf:
        return None
    listed = ", ".join(pattern.leaf)
    return Stop(len(fqn) - len(leaf), f"a leaf of {listed}", f"leaf {leaf!r} is not one of {listed}")


def _read_character(program: Program, places: Iterable[int], character: str) -> list[int]:
    """Return the instructions after those that read a character; the test is cached per set of characters."""
    known: dict[Ranges, bool] = {}
    found = []
    for place in places:
        chars: Ranges = program.code[place][1]
        reads = known.get(chars)
        if reads is None:
            reads = known[chars] = contains(chars, character)
        if reads:
            found.append(place + 1)
    return found


def _reach_places(program: Program, starts: Iterable[int], most: int | None = None) -> tuple[list[int], bool]:
    """Return the instructions that read the next character, by priority, and whether the key may end.

    Stops after finding more than `most` of them.
    """
    found: list[int] = []
    ends = False
    seen: set[int] = set()
    pending = list(starts)[::-1]
    while pending and (most is None or len(found) <= most):
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        kind, argument, other = program.code[place]
        if kind == CHARS:
            found.append(place)
        elif kind == MATCH:
            ends = True
        elif kind == SPLIT:
            pending += (other, argument)
        else:
            pending.append(argument if kind == JUMP else place + 1)
    return found, ends


def _describe_expected(program: Program, place: int) -> str:
    """Describe what an instruction expects: the whole word from there, if there is only one."""
    word = ""
    here: int | None = place
    while here is not None and program.part[here] == program.part[place] and _is_single(program.code[here][1]):
        word += chr(program.code[here][1][0][0])
        following, may_end = _reach_places(program, [here + 1], 1)
        here = following[0] if len(following) == 1 and not may_end and len(word) < WORD_SHOWN else None
    if word:
        return repr(word)
    wanted = program.code[place][1]
    return _NAMES.get(wanted) or f"one of {unparse_chars(wanted)}"


def _is_single(chars: Ranges) -> bool:
    return chars[0][0] == chars[-1][1]
