r"""Parse the `match` surface syntax, a regular expression, into the trees of `tree.py`.

The dialect is the regular part of Python's `re` with `re.ASCII`, matched against the whole key: literals, escapes,
`.`, classes, groups, named captures, alternation, greedy quantifiers. Accepted expressions mean the same as in
`re.fullmatch`; everything else is an error at its column, with a suggested replacement.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.patterns.charset import (
    DIGITS,
    LAST,
    NOT_NEWLINE,
    SPACE,
    WORD,
    Ranges,
    complement,
    merge_ranges,
    singleton,
)
from remapkit.patterns.empty_match import find_repeat_of_nothing, write_nothing_last
from remapkit.patterns.finite import join_alternatives
from remapkit.patterns.tree import EMPTY, MAX_POSITIONS, Alt, Chars, Group, PatternNode, Repeat, Seq, count_positions
from remapkit.patterns.unparse import unparse

MAX_REPEAT = 1000
"""The highest bound of a counted repeat."""
MAX_DEPTH = 100
"""The deepest nesting of groups."""
MAX_SHOWN = 60
"""The longest repeat for which the message writes another one."""
MANY = 32
"""An alternation of this many plain words is written with shared prefixes."""

_CLASSES: dict[str, Ranges] = {
    "d": DIGITS,
    "w": WORD,
    "s": SPACE,
    "D": complement(DIGITS),
    "W": complement(WORD),
    "S": complement(SPACE),
}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
_ANCHORS = {"A": "the start", "Z": "the end", "z": "the end", "b": "a word boundary", "B": "no word boundary"}
_HEX = frozenset("0123456789abcdefABCDEF")

_EXTENSIONS: tuple[tuple[str, str, str, str], ...] = (
    # the text after "(?", code, name, what to write instead
    ("P=", "RK111", "a back-reference", "a regular pattern cannot repeat what it captured; list the values instead"),
    ("P>", "RK113", "a recursive call", "a regular pattern cannot call itself"),
    (
        "<=",
        "RK112",
        "a look-behind",
        "write the text before it as part of the pattern; it always matches the whole key",
    ),
    ("<!", "RK112", "a look-behind", "list what is allowed there, with a class, an alternation or `where:`"),
    (
        "=",
        "RK112",
        "a look-ahead",
        "write the text after it as part of the pattern; it always matches the whole key",
    ),
    ("!", "RK112", "a look-ahead", "list what is allowed there, with a class, an alternation, `where:` or `leaf:`"),
    (">", "RK113", "an atomic group", "write (?:...); matching takes linear time without it"),
    ("#", "RK113", "a comment", "write it as a YAML comment, after #"),
    ("(", "RK113", "a conditional", "write an alternation, or two rules"),
    ("|", "RK113", "a branch reset", "write (?:...)"),
)


class RefusedPattern(Exception):
    """A pattern cannot be compiled; has the diagnostic."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.title)
        self.diagnostic = diagnostic


def parse_regex(text: Text) -> PatternNode:
    r"""Parse a regular expression into a tree; raises `InvalidRules` at the column of anything unsupported.

    >>> from remapkit.patterns.unparse import unparse
    >>> unparse(parse_regex(Text.of(r"layers\.(?P<n>\d+)\.(q|k)")))
    'layers\\.(?P<n>[0-9]+)\\.(?:q|k)'
    """
    try:
        return _Parser(text).parse_pattern()
    except RefusedPattern as refused:
        raise InvalidRules(refused.diagnostic) from None


class _Parser:
    """A recursive-descent parser of one pattern; `here` is the next character."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.value = text.value
        self.here = 0
        self.depth = 0
        self.names: dict[str, tuple[int, int]] = {}

    def refuse(self, code: str, title: str, start: int, end: int, *help: str, label: str = "") -> RefusedPattern:
        return RefusedPattern(Diagnostic(code, title, (Label(self.text.at(start, end), label),), help))

    def peek(self, count: int = 1) -> str:
        return self.value[self.here : self.here + count]

    def parse_pattern(self) -> PatternNode:
        node = self.parse_alternation()
        if self.here < len(self.value):
            help = r"write \) for the character itself, or remove it"
            raise self.refuse("RK116", "unmatched ')'", self.here, self.here + 1, help)
        count = count_positions(node)
        if count > MAX_POSITIONS:
            title = f"the pattern has {count} characters with its counted repeats written out"
            help = f"at most {MAX_POSITIONS} can be proven: use + or * if the exact count does not matter"
            raise self.refuse("RK119", title, 0, len(self.value), help)
        self.check_captures(node, None)
        if (repeat := find_repeat_of_nothing(node)) is not None:
            raise self.refuse_repeat_of_nothing(repeat)
        return node

    def refuse_repeat_of_nothing(self, repeat: Repeat) -> RefusedPattern:
        start, end = repeat.at
        help = "let what is repeated match at least one character"
        if end - start <= MAX_SHOWN:
            help = (
                f"write {unparse(write_nothing_last(repeat))}: it matches the same keys, and takes as much as it can"
            )
        return self.refuse("RK110", "a repeat that prefers to match nothing", start, end, help)

    # -------------------------------------------------------------------------------------------- structure

    def parse_alternation(self) -> PatternNode:
        start = self.here
        branches = [self.parse_sequence()]
        while self.peek() == "|":
            self.here += 1
            branches.append(self.parse_sequence())
        if len(branches) == 1:
            return branches[0]
        joined = join_alternatives(branches) if len(branches) >= MANY else None
        return joined if joined is not None else Alt(tuple(branches), (start, self.here))

    def parse_sequence(self) -> PatternNode:
        start = self.here
        items: list[PatternNode] = []
        while self.here < len(self.value) and self.peek() not in "|)":
            item = self.parse_quantified()
            if not isinstance(item, Seq) or item.items:
                items.append(item)
        return items[0] if len(items) == 1 else Seq(tuple(items), (start, self.here))

    def parse_quantified(self) -> PatternNode:
        start = self.here
        if self.peek() in "*+?":
            title = f"there is nothing before {self.peek()} to repeat"
            raise self.refuse("RK118", title, start, start + 1, f"write \\{self.peek()} for the character itself")
        item = self.parse_atom()
        quantifier = self.parse_quantifier()
        if quantifier is None:
            return item
        low, high = quantifier
        following = self.peek()
        if following == "?":
            raise self.refuse_lazy(start)
        if following == "+":
            title = "a possessive quantifier"
            help = "drop the + after the quantifier; matching takes linear time without it"
            raise self.refuse("RK110", title, self.here, self.here + 1, help)
        if following in ("*", "{"):
            title = "a quantifier after a quantifier"
            raise self.refuse("RK118", title, self.here, self.here + 1, "group the inner one: (?:...)")
        return _make_repeat(item, low, high, (start, self.here))

    def refuse_lazy(self, start: int) -> RefusedPattern:
        help = "drop the ?, and use a class that stops at the right place: `[^.]+` stops before the next dot"
        return self.refuse("RK110", "a lazy quantifier", self.here, self.here + 1, help)

    def parse_quantifier(self) -> tuple[int, int | None] | None:
        sign = self.peek()
        if sign and sign in "*+?":
            self.here += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        return self.parse_counted() if sign == "{" else None

    def parse_counted(self) -> tuple[int, int | None]:
        start = self.here
        end = self.value.find("}", start)
        low, comma, high = (self.value[start + 1 : end] if end > 0 else "").partition(",")
        digits = frozenset("0123456789")
        if end < 0 or not low or not set(low + high) <= digits:
            help = [r"write \{ for the character itself, or {2}, {2,} or {2,4} for a counted repeat"]
            if end > 0 and not low and comma and high and set(high) <= digits:
                help = [f"write {{0,{high}}}"]
            raise self.refuse(
                "RK118", "'{' does not start a counted repeat", start, end + 1 if end > 0 else start + 1, *help
            )
        if max(len(low), len(high)) > 6 or max(int(low), int(high or 0)) > MAX_REPEAT:
            help_ = "use + or * if the exact count does not matter"
            raise self.refuse("RK119", f"a repeat must be at most {MAX_REPEAT} times", start, end + 1, help_)
        bounds = int(low), (int(high) if high else None) if comma else int(low)
        if bounds[1] is not None and bounds[1] < bounds[0]:
            raise self.refuse(
                "RK118", "the lower bound is above the upper bound", start, end + 1, f"write {{{high},{low}}}"
            )
        self.here = end + 1
        return bounds

    # -------------------------------------------------------------------------------------------- atoms

    def parse_atom(self) -> PatternNode:
        start, sign = self.here, self.peek()
        if sign == "(":
            return self.parse_group()
        if sign == "[":
            return self.parse_class()
        if sign == "\\":
            chars = self.parse_escape(in_class=False)
            return Chars(chars, (start, self.here))
        if sign == ".":
            self.here += 1
            return Chars(NOT_NEWLINE, (start, self.here))
        if sign in "^$":
            where = "start" if sign == "^" else "end"
            help = f"drop it: a pattern always matches the whole key; write \\{sign} for the character itself"
            raise self.refuse("RK114", f"an anchor to the {where}", start, start + 1, help)
        if sign in "{}]":
            title = f"unexpected {sign!r}"
            code = "RK118" if sign == "{" else "RK116"
            raise self.refuse(code, title, start, start + 1, f"write \\{sign} for the character itself")
        self.here += 1
        return Chars(singleton(sign), (start, self.here))

    def parse_group(self) -> PatternNode:
        start = self.here
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refuse(
                "RK119", f"groups nested more than {MAX_DEPTH} deep", start, start + 1, "write two rules"
            )
        self.here += 1
        name: tuple[str, int, int] | None = None
        if self.peek() == "?":
            name = self.parse_extension(start)
        item = self.parse_alternation()
        if self.peek() != ")":
            help = r"write \( for the character itself, or close it with )"
            raise self.refuse("RK116", "'(' is never closed", start, start + 1, help)
        self.here += 1
        self.depth -= 1
        if name is None:
            return replace(item, at=(start, self.here))
        return Group(name[0], item, (start, self.here))

    def parse_extension(self, start: int) -> tuple[str, int, int] | None:
        """Parse the text after `(?`: return None for `(?:`, the name for `(?P<name>`; refuse anything else."""
        self.here += 1
        rest = self.value[self.here :]
        if rest.startswith(":"):
            self.here += 1
            return None
        if rest.startswith("P<"):
            return self.parse_group_name(start)
        for sign, code, what, help in _EXTENSIONS:
            if rest.startswith(sign):
                raise self.refuse(code, what, start, self.here + len(sign), help)
        if rest.startswith("<"):
            raise self.refuse("RK120", "a capture without the P", start, self.here + 1, "write (?P<name>...)")
        if rest[:1].isalpha() or rest[:1] == "-":
            help = "drop it: matching is ASCII and case-sensitive; write [Aa] for both cases"
            raise self.refuse("RK113", "an inline flag", start, self.here + 1, help)
        raise self.refuse("RK113", "an unknown kind of group", start, self.here + 1, "write (?:...) or (?P<name>...)")

    def parse_group_name(self, start: int) -> tuple[str, int, int]:
        begin = self.here + 2
        end = self.value.find(">", begin)
        name = self.value[begin : end if end >= 0 else len(self.value)]
        if end < 0 or not (name.isascii() and name.isidentifier()):
            stop = end if end >= 0 else begin
            help = "write (?P<name>...); a name consists of letters, digits and _, and does not start with a digit"
            raise self.refuse(
                "RK120",
                f"{name!r} is not a valid capture name" if end >= 0 else "a name without its >",
                start,
                stop + 1,
                help,
            )
        if name in self.names:
            first = self.names[name]
            labels = (
                Label(self.text.at(*first), "first here", primary=False),
                Label(self.text.at(begin, end), "again here"),
            )
            title = f"two captures are named {name!r}"
            raise RefusedPattern(Diagnostic("RK122", title, labels, ("give each capture its own name",)))
        self.names[name] = (begin, end)
        self.here = end + 1
        return name, begin, end

    # -------------------------------------------------------------------------------------------- escapes, classes

    def parse_escape(self, *, in_class: bool) -> Ranges:
        start = self.here
        sign = self.value[start + 1 : start + 2]
        self.here += 2
        if not sign:
            raise self.refuse("RK115", "a backslash at the end", start, start + 1, r"write \\ for a backslash")
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign in _CONTROLS:
            return singleton(_CONTROLS[sign])
        if sign in "xuU":
            return self.parse_hexadecimal(start, {"x": 2, "u": 4, "U": 8}[sign])
        if sign in "0123456789":
            raise self.refuse_digit_escape(start, sign, in_class)
        if sign in _ANCHORS and not in_class:
            help = "drop it: a pattern always matches the whole key"
            raise self.refuse("RK114", f"an anchor to {_ANCHORS[sign]}", start, self.here, help)
        if sign.isalnum() or not sign.isascii():
            signs = r"\d \w \s \D \W \S \t \n \r \f \v \xhh \uhhhh \Uhhhhhhhh"
            help = f"supported are {signs}, and a backslash before punctuation"
            raise self.refuse("RK115", f"unknown escape \\{sign}", start, self.here, help)
        return singleton(sign)

    def refuse_digit_escape(self, start: int, sign: str, in_class: bool) -> RefusedPattern:
        if sign == "0" or in_class:
            return self.refuse("RK115", "an octal escape", start, self.here, r"write \xhh")
        help = "a regular pattern cannot repeat what it captured; write one rule for each value"
        return self.refuse("RK111", "a back-reference", start, self.here, help)

    def parse_hexadecimal(self, start: int, count: int) -> Ranges:
        digits = self.value[self.here : self.here + count]
        if len(digits) < count or not set(digits) <= _HEX:
            title = f"{self.value[start : start + 2]} must be followed by {count} hexadecimal digits"
            raise self.refuse("RK115", title, start, self.here + len(digits), r"write \xhh, \uhhhh or \Uhhhhhhhh")
        if int(digits, 16) > sys.maxunicode:
            title = f"\\U{digits} is no character: the last one is \\U{sys.maxunicode:08x}"
            raise self.refuse("RK115", title, start, self.here + len(digits), "correct the digits")
        self.here += count
        return singleton(chr(int(digits, 16)))

    def parse_class(self) -> PatternNode:
        start = self.here
        self.here += 1
        negated = self.peek() == "^"
        self.here += negated
        pairs: list[tuple[int, int]] = []
        while self.peek() != "]":
            if self.here >= len(self.value):
                help = r"write \[ for the character itself, or close it with ]"
                raise self.refuse("RK116", "'[' is never closed", start, start + 1, help)
            pairs += self.parse_member(start)
        self.here += 1
        if not pairs:
            help = r"write \] for a ] inside a class"
            raise self.refuse("RK117", "an empty class", start, self.here, help)
        chars = merge_ranges(pairs)
        if negated:
            chars = complement(chars)
        if not chars:
            raise self.refuse("RK117", "a class that matches no character", start, self.here, "remove it")
        return Chars(chars, (start, self.here))

    def parse_member(self, opened: int) -> Ranges:
        """Parse one member of a class: a character, an escape or a range."""
        start = self.here
        low = self.parse_class_character(opened)
        if self.peek() != "-" or self.peek(2) in ("-", "-]"):
            return low
        self.here += 1
        high = self.parse_class_character(opened)
        if len(low) != 1 or low[0][0] != low[0][1] or len(high) != 1 or high[0][0] != high[0][1]:
            help = r"write \- for the character itself"
            raise self.refuse("RK117", "a range with a class at one end", start, self.here, help)
        if low[0][0] > high[0][0]:
            low_text, _, high_text = self.value[start : self.here].partition("-")
            title = f"the range {self.value[start : self.here]} runs backwards"
            raise self.refuse("RK117", title, start, self.here, f"write {high_text}-{low_text}")
        return ((low[0][0], min(high[0][0], LAST)),)

    def parse_class_character(self, opened: int) -> Ranges:
        sign = self.peek()
        if sign == "\\":
            return self.parse_escape(in_class=True)
        if not sign:
            raise self.refuse("RK116", "'[' is never closed", opened, opened + 1, "close it with ]")
        if sign == "[" or self.peek(2) in ("--", "&&", "~~", "||"):
            title = f"a {sign} inside a class" if sign == "[" else f"a doubled {sign} inside a class"
            help = f"write \\{sign} for the character itself: bare, it may come to mean a set operation"
            raise self.refuse("RK117", title, self.here, self.here + 1, help)
        self.here += 1
        return singleton(sign)

    # -------------------------------------------------------------------------------------------- captures

    def check_captures(self, node: PatternNode, inside: str | None) -> None:
        """Check that every capture is at the top level, where it cannot be missing, repeated or nested."""
        if isinstance(node, Group):
            if inside is not None:
                raise self.refuse_misplaced(node, inside)
            self.check_captures(node.item, f"the capture {node.name!r}")
        elif isinstance(node, Repeat):
            self.check_captures(node.item, inside or ("an optional part" if node.high == 1 else "a repetition"))
        elif isinstance(node, Alt):
            for branch in node.branches:
                self.check_captures(branch, inside or "a branch of an alternation")
        elif isinstance(node, Seq):
            for item in node.items:
                self.check_captures(item, inside)

    def refuse_misplaced(self, node: Group, inside: str) -> RefusedPattern:
        reasons = {
            "an optional part": ("it could be missing", "write two rules, one with the part and one without"),
            "a repetition": (
                "it would have several values",
                f"capture the whole repetition: (?P<{node.name}>(?:...)*)",
            ),
            "a branch of an alternation": ("it could be missing", "write one rule a branch"),
        }
        why, help = reasons.get(inside, ("its text would be used twice", "capture the parts side by side"))
        title = f"the capture {node.name!r} is inside {inside}: {why}"
        return self.refuse("RK121", title, *node.at, help)


def _make_repeat(item: PatternNode, low: int, high: int | None, at: tuple[int, int]) -> PatternNode:
    """Return a repeat; a repeat of nothing is nothing, and a counted repeat of a counted repeat is one, if possible.

    `(x{0,b}){c,d}` is `x{0,b*d}`, read in the same order; and if `x` is one character, `(x{1,b}){c,d}` is `x{c,b*d}`.
    """
    if item == EMPTY:
        return item
    match item:
        case Repeat(inner, (0 | 1) as least, int(most)) if high is not None and most * high <= MAX_REPEAT:
            if least == 0 or isinstance(inner, Chars):
                return Repeat(inner, least * low, most * high, at)
    return Repeat(item, low, high, at)
