"""`remapkit packs`: what is installed, and from where."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.ruleset import load
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.errors import RemapkitError
from remapkit.diagnostics.wording import count_noun
from remapkit.models.target import find_declared_target
from remapkit.registry.installed import packs, plugins
from remapkit.registry.verified import read_witness

NAMES = ("name", "summary", "target", "by_value", "origin", "path")


def run(args: Namespace) -> CommandOutcome:
    """What is installed, and from where."""
    rows = []
    for pack in packs():
        try:
            rules = load(pack.path)
        except RemapkitError as error:
            rows.append(
                (
                    pack.name,
                    f"{count_noun(len(error.diagnostics), 'problem')}: see `remapkit lint`",
                    "",
                    "",
                    pack.origin,
                    str(pack.path),
                )
            )
            continue
        witness = read_witness(pack.path)
        by_value = witness.describe_state(rules) if witness is not None else "no"
        target = find_declared_target(rules)
        summary = rules.file.summary.value if rules.file.summary else ""
        rows.append((pack.name, summary, str(target) if target else "", by_value, pack.origin, str(pack.path)))
    found = plugins()
    return CommandOutcome(
        data={
            "packs": [
                dict(zip(("name", "summary", "target", "by_value", "origin", "path"), row, strict=True))
                for row in rows
            ],
            "plugins": [{"name": each.name, "package": each.package, "origin": each.origin} for each in found],
        },
        text=(
            TextTable(("pack", "summary", "target", "by value", "from", "file"), tuple(rows)),
            TextTable(("plugin", "package", "from"), tuple((each.name, each.package, each.origin) for each in found)),
        ),
    )
