"""Templates: target keys, written with the captures of a pattern.

`{name}` is a capture, `{name|table}` its value in a table, `{i*4+j}` integer arithmetic on bounded captures; `{{` and
`}}` are literal braces, and `{'...'}` is a literal with any characters (`literals.py`). Tables and arithmetic are
compiled to finite maps, so that no key can fail later, and everything can be proven and inverted by enumeration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from remapkit.diagnostics.source import Text

PLAIN_TEXT = re.compile("[^{}]+")


@dataclass(frozen=True, slots=True)
class TextItem:
    """Text that is the same in every target."""

    text: str


@dataclass(frozen=True, slots=True)
class CaptureItem:
    """A capture, copied unchanged."""

    name: str


@dataclass(frozen=True, slots=True)
class MapItem:
    """A finite map from captures to text: a table (`table` is its name) or an arithmetic expression.

    `mapping` has one entry per combination of values of the captures `names`.
    """

    names: tuple[str, ...]
    mapping: Mapping[tuple[str, ...], str] = field(hash=False)
    written: str
    table: str | None = None


TemplateItem = TextItem | CaptureItem | MapItem


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template: its items in order, and the captures that it omits intentionally.

    `format` is the same template as a format string for `%`; copied captures are referred to by name, and `maps` by
    number.
    """

    text: Text
    items: tuple[TemplateItem, ...]
    forget: tuple[str, ...] = ()
    format: str = field(init=False, compare=False, repr=False)
    maps: tuple[MapItem, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        maps = tuple(item for item in self.items if isinstance(item, MapItem))
        numbers = iter(range(len(maps)))
        format = "".join(
            item.text.replace("%", "%%")
            if isinstance(item, TextItem)
            else f"%({item.name if isinstance(item, CaptureItem) else next(numbers)})s"
            for item in self.items
        )
        object.__setattr__(self, "maps", maps)
        object.__setattr__(self, "format", format)

    def render(self, captures: Mapping[str, str | None]) -> str:
        """Return the target key for the given captures; a capture that is None is written as `{name}`.

        >>> template = Template(Text.of("x.{n}"), (TextItem("x."), CaptureItem("n")))
        >>> template.render({"n": "3"}), template.render({"n": None})
        ('x.3', 'x.{n}')
        """
        if None in captures.values():
            return "".join(
                item.text if isinstance(item, TextItem) else _fill_item(item, captures) for item in self.items
            )
        if not self.maps:
            return self.format % captures
        values = dict(captures)
        for number, item in enumerate(self.maps):
            values[str(number)] = item.mapping[tuple([captures[name] for name in item.names])]  # type: ignore[misc]
        return self.format % values


def _fill_item(item: CaptureItem | MapItem, captures: Mapping[str, str | None]) -> str:
    if isinstance(item, CaptureItem):
        value = captures[item.name]
        return f"{{{item.name}}}" if value is None else value
    values = tuple(captures[name] for name in item.names)
    return item.written if None in values else item.mapping[values]  # type: ignore[index]
