"""`remapkit packs`: the installed packs and their sources."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.packs import Pack, packs
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun
from remapkit.registry.installed import plugins

NAMES = ("name", "summary", "target", "by_value", "origin", "path")


def run(args: Namespace) -> CommandOutcome:
    """List the installed packs and their sources."""
    rows = tuple(map(_make_row, packs()))
    found = plugins()
    return CommandOutcome(
        data={
            "packs": [dict(zip(NAMES, row, strict=True)) for row in rows],
            "plugins": [{"name": each.name, "package": each.package, "origin": each.origin} for each in found],
        },
        text=(
            TextTable(("pack", "summary", "target", "by value", "from", "file"), rows),
            TextTable(("plugin", "package", "from"), tuple((each.name, each.package, each.origin) for each in found)),
        ),
    )


def _make_row(pack: Pack) -> tuple[str, ...]:
    about = pack.describe()
    broken = f"{count_noun(len(about.problems), 'problem')}: see `remapkit lint`" if about.problems else ""
    return pack.name, about.summary or broken, about.target, about.by_value, pack.origin, str(pack.path)
