"""A picture of layouts and packs: an SVG drawing, by itself or in a page, without any library or network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import escape_line
from remapkit.files.text import write_texts
from remapkit.registry.layouts import Layout, list_layouts, list_pack_layouts
from remapkit.registry.routes import Step, draw_text, list_steps

WIDTH, HEIGHT = 230, 40
"""The size of a box."""
ACROSS, DOWN = 200, 34
"""The space between boxes."""
MARGIN = 24
LINE = 17

_STYLE = """
svg { font: 13px system-ui, sans-serif; }
.ground { fill: #ffffff; } .box { fill: #eef3fb; stroke: #3b66a8; } .name { fill: #14213d; font-weight: 600; }
.also { fill: #5b6475; font-size: 11px; } .way { stroke: #3b66a8; fill: none; } .head { fill: #3b66a8; }
.pack { fill: #33415c; font-size: 11px; }
@media (prefers-color-scheme: dark) {
.ground { fill: #12161d; } .box { fill: #1d2a40; stroke: #7fa5e6; } .name { fill: #e8eefb; }
.also { fill: #a3adbf; } .way { stroke: #7fa5e6; } .head { fill: #7fa5e6; } .pack { fill: #c3cde0; }
}
"""


@dataclass(frozen=True, slots=True)
class Graph:
    """The layouts that installed packs name, and the packs between them. `output` is the picture that was written."""

    layouts: tuple[Layout, ...]
    steps: tuple[Step, ...]
    output: Path | None = None

    def __str__(self) -> str:
        return "\n".join(draw_text(self.layouts, self.steps))

    @property
    def svg(self) -> str:
        """The picture as SVG."""
        return draw_svg(self.layouts, self.steps)


def make_graph(output: str | Path | None = None, *, force: bool = False) -> Graph:
    """Return the graph of the installed packs, and write its picture: an `.svg`, or an `.html` with one.

    Raises `UsageError` (RK609) for another suffix, `UnwritableOutput` if the file cannot be written, or exists.
    """
    packs = list_pack_layouts()
    layouts = list_layouts(packs)
    graph = Graph(layouts, list_steps(packs, layouts), None if output is None else Path(output))
    if graph.output is None:
        return graph
    suffix = graph.output.suffix.lower()
    if suffix not in (".svg", ".html"):
        title = f"a picture is an .svg or an .html file, got {graph.output}"
        raise UsageError(
            Diagnostic("RK609", escape_line(title), help=("name it with -o packs.svg or -o packs.html",))
        )
    text = graph.svg if suffix == ".svg" else _write_page(graph.svg)
    write_texts({graph.output: text}, force=force, sources=[each.path for each in packs])
    return graph


def _write_page(svg: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Layouts and packs</title>'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"</head>\n<body>\n{svg}</body></html>\n"
    )


def draw_svg(layouts: Sequence[Layout], steps: Sequence[Step]) -> str:
    """Return a picture: the layouts of one model in one row, and arrows from layout to layout with their packs.

    >>> drawn = draw_svg([Layout("m/a", (), ("p",), ()), Layout("m/b", (), (), ("p",))], [Step("p", "m/a", "m/b")])
    >>> drawn.count('class="box"'), drawn.count('class="way"')
    (2, 1)
    """
    rows: list[list[Layout]] = [[layouts[number] for number in row] for row in _find_rows(layouts, steps)]
    columns = max(map(len, rows), default=0)
    places: dict[str, tuple[int, int]] = {}
    down = MARGIN
    labels = _label_ways(steps)
    for row in rows:
        names = {layout.name for layout in row}
        most = max((len(packs) for (source, _), packs in labels.items() if source in names), default=0)
        far = sum(1 for source, target in labels if source in names and _is_far(row, source, target))
        down += LINE * max(0, most - 1) + far * LINE * 2
        for number, layout in enumerate(row):
            places[layout.name] = (MARGIN + number * (WIDTH + ACROSS), down)
        down += HEIGHT + DOWN + LINE * most
    width, height = 2 * MARGIN + columns * (WIDTH + ACROSS) - ACROSS, down
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="Layouts and packs">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    parts += [_draw_way(places, source, target, packs) for (source, target), packs in labels.items()]
    parts += [_draw_box(layout, *places[layout.name]) for row in rows for layout in row]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _label_ways(steps: Sequence[Step]) -> dict[tuple[str, str], list[str]]:
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for step in steps:
        found[step.source, step.target].append(step.pack)
    return dict(sorted(found.items()))


def _find_rows(layouts: Sequence[Layout], steps: Sequence[Step]) -> list[list[int]]:
    """Return the layouts that packs connect, a row for each group, in the order of their names."""
    group = {layout.name: number for number, layout in enumerate(layouts)}
    for step in steps:  # each step joins two groups, or none
        one, other = group[step.source], group[step.target]
        group = {name: min(one, other) if number in (one, other) else number for name, number in group.items()}
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for number, layout in enumerate(layouts):
        rows[group[layout.name]].append(number)
    return [rows[key] for key in sorted(rows)]


def _is_far(row: Sequence[Layout], source: str, target: str) -> bool:
    names = [layout.name for layout in row]
    return abs(names.index(source) - names.index(target)) > 1


def _draw_box(layout: Layout, x: int, y: int) -> str:
    also = ", ".join(layout.aliases)
    name = f'<text class="name" x="{x + 12}" y="{y + (18 if also else 25)}">{escape(layout.name)}</text>'
    more = f'<text class="also" x="{x + 12}" y="{y + 33}">{escape(also)}</text>' if also else ""
    return f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>{name}{more}'


def _draw_way(places: dict[str, tuple[int, int]], source: str, target: str, packs: Sequence[str]) -> str:
    """Draw an arrow between neighbours straight, to the right above and to the left below; over others in a bow."""
    (x1, y1), (x2, _) = places[source], places[target]
    right = x2 > x1
    if abs(x2 - x1) <= WIDTH + ACROSS:
        height = y1 + (12 if right else HEIGHT - 12)
        start, stop = (x1 + WIDTH, x2) if right else (x1, x2 + WIDTH)
        path = f"M{start} {height} L{stop} {height}"
        middle = (start + stop) // 2
        first = height - 5 - LINE * (len(packs) - 1) if right else height + 14
    else:
        start, stop = x1 + WIDTH // 2 + (8 if right else -8), x2 + WIDTH // 2 + (8 if right else -8)
        rise = LINE * (2 if right else 3)
        edge, top = (y1, y1 - rise) if right else (y1 + HEIGHT, y1 + HEIGHT + rise)
        path = f"M{start} {edge} C{start} {top} {stop} {top} {stop} {edge}"
        middle = (start + stop) // 2
        first = top + (2 if right else -2)
    texts = "".join(
        f'<text class="pack" text-anchor="middle" x="{middle}" y="{first + LINE * number}">{escape(pack)}</text>'
        for number, pack in enumerate(packs)
    )
    return f'<path class="way" marker-end="url(#head)" d="{path}"/>{texts}'
