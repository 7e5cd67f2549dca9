"""`remapkit packs`: the installed packs and their sources."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.packs import Pack, packs
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun
from remapkit.registry.installed import plugins

NAMES = ("name", "summary", "source_layout", "target_layout", "target", "by_value", "origin", "path")


def run(args: Namespace) -> CommandOutcome:
    """List the installed packs, or show the layouts that they connect."""
    if args.graph:
        return _show_graph(args)
    rows = tuple(map(_make_row, packs(graph=False, output=args.output, force=args.force)))
    found = plugins()
    return CommandOutcome(
        data={
            "packs": [dict(zip(NAMES, row, strict=True)) for row in rows],
            "plugins": [{"name": each.name, "package": each.package, "origin": each.origin} for each in found],
        },
        text=(
            TextTable(("pack", "summary", "from", "to", "target", "by value", "installed by", "file"), rows),
            TextTable(("plugin", "package", "from"), tuple((each.name, each.package, each.origin) for each in found)),
        ),
    )


def _make_row(pack: Pack) -> tuple[str, ...]:
    about = pack.describe()
    broken = f"{count_noun(len(about.problems), 'problem')}: see `remapkit lint`" if about.problems else ""
    layouts = about.source_layout, about.target_layout
    return pack.name, about.summary or broken, *layouts, about.target, about.by_value, pack.origin, str(pack.path)


def _show_graph(args: Namespace) -> CommandOutcome:
    graph = packs(graph=True, output=args.output, force=args.force)
    return CommandOutcome(
        data={
            "layouts": [{"name": each.name, "aliases": list(each.aliases)} for each in graph.layouts],
            "packs": [{"name": step.pack, "from": step.source, "to": step.target} for step in graph.steps],
            "output": None if graph.output is None else str(graph.output),
        },
        text=tuple(str(graph).split("\n")) if graph.output is None else (f"wrote {graph.output}",),
    )
