"""Positions in texts: where in a file a value was read.

Every message about a rule file points at a line and a column, so every value keeps its position. A `Source` is a
whole text, a `Span` is a part of it, and a `Text` is a string value with the source position of each character, even
if YAML quoting shifts them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A text and its display name.

    >>> source = Source("rules.yaml", "a: 1\\nb: 2\\n")
    >>> source.find_position(5)
    (2, 1)
    >>> source.line(2)
    'b: 2'
    """

    name: str
    text: str
    _starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = [0]
        for index, character in enumerate(self.text):
            if character == "\n":
                starts.append(index + 1)
        object.__setattr__(self, "_starts", tuple(starts))

    def find_position(self, offset: int) -> tuple[int, int]:
        """Return the line and column, both counted from 1, of a character offset (clamped to the text)."""
        offset = max(0, min(offset, len(self.text)))
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return the text of a line, counted from 1, without its line end."""
        start = self._starts[number - 1]
        end = self._starts[number] if number < len(self._starts) else len(self.text)
        return self.text[start:end].rstrip("\r\n")

    def whole(self) -> Span:
        """The span of the whole text."""
        return Span(self, 0, len(self.text))


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `end` (end excluded) of a source.

    >>> span = Span(Source("rules.yaml", "name: wan\\n"), 6, 9)
    >>> span.text, span.line, span.column, str(span)
    ('wan', 1, 7, 'rules.yaml:1:7')
    """

    source: Source
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.find_position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.find_position(self.start)[1]

    def __str__(self) -> str:
        line, column = self.source.find_position(self.start)
        return f"{self.source.name}:{line}:{column}"


@dataclass(frozen=True, slots=True)
class Text:
    """A string value with the position of each of its characters.

    `offsets[i]` is where character `i` of the value begins in the source, and `offsets[len(value)]` where the last
    one ends; value and source differ in quotes, escapes and folded lines. Without `offsets`, the source contains the
    value verbatim at `span.start`.

    >>> text = Text.of(r"layers\\.(\\d+", "the pattern")
    >>> str(text.at(8))
    'the pattern:1:9'
    """

    value: str
    span: Span
    offsets: tuple[int, ...] | None = None

    @classmethod
    def of(cls, value: str, name: str = "<string>") -> Text:
        """Make a text that was not read from a file; it is its own source."""
        return cls(value, Source(name, value).whole())

    def at(self, start: int, end: int | None = None) -> Span:
        """Return the span of `value[start:end]` (one character if `end` is omitted) in the source."""
        end = start + 1 if end is None else end
        start, end = min(start, len(self.value)), min(end, len(self.value))
        if self.offsets is None:
            return Span(self.span.source, self.span.start + start, self.span.start + max(end, start))
        return Span(self.span.source, self.offsets[start], self.offsets[max(end, start)])

    def __str__(self) -> str:
        return self.value
