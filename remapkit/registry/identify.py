"""Identify the layout of a checkpoint by the names that installed packs read or write, and under which root.

Only names are compared, with their numbers left open: a pack's manifest is of one size of its model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.registry.candidates import Candidate, RootFit, fit_candidates
from remapkit.registry.layouts import Layout, Side, list_layouts, list_pack_layouts
from remapkit.tensors.spec import StateDictSpec

HINTED = ("RK301", "RK368", "RK310", "RK311", "RK316", "RK370")
"""The problems that a checkpoint of another layout has."""


def identify_layout(names: Iterable[str]) -> tuple[RootFit, ...]:
    """Return the packs whose source has at least half of the names, under their best root: the best first.

    The empty root wins where it fits as well; a pack that fits under several roots is named for each. Every root and
    every pack is looked at once. A fit's `layout` is the name of its pack.

    >>> import remapkit
    >>> names = [f"{test.source.value}" for test in remapkit.load("wan22_pth").tests]
    >>> identify_layout(f"net.{name}" for name in names)[0].root
    'net'
    """
    return _fit_packs(list(names), [(each.pack, each.source) for each in list_pack_layouts()])


def _fit_packs(names: Sequence[str], packs: Iterable[tuple[str, Side]]) -> tuple[RootFit, ...]:
    candidates = [Candidate(pack, (pack,), side.kinds) for pack, side in packs if side.kinds]
    # Where names lack a prefix there is no option that adds it.
    return tuple(fit for fit in fit_candidates(names, candidates) if not fit.lost)


def describe_layouts(names: Iterable[str], but: str = "") -> str | None:
    """Return which layout these names are those of, or which packs, except the pack `but`; None if there is none.

    Layouts that installed packs read come first, then those that they only write.

    >>> import remapkit
    >>> from remapkit.sources.declared import read_declared_source
    >>> known = read_declared_source(remapkit.load("wan22_pth").file)
    >>> describe_layouts([f"net.{fqn}" for fqn in known])
    "these keys are those of layout wan22-vae/upstream (packs wan22_pth and wan22_vae) under root 'net': --root net"
    """
    keys, layouts = list(names), list_layouts()
    prefixed = isinstance(names, StateDictSpec) and any(names.prefixes)
    every = identify_layout(keys)
    found = _find_parts(every)
    packs = [fit.candidate.layout for fit in found]
    if not found or but in packs:  # then another pack that reads the layout is no better
        return None if found else _describe_written(keys, layouts, but, prefixed)
    root = found[0].root
    if root and prefixed:
        return None  # a root is looked for in each file, before its keys get the prefix of a mount
    own = any(but in layout.written_by and set(packs) <= set(layout.read_by) for layout in layouts)
    nearest = packs[0], found[0].lacking
    roots = dict.fromkeys(fit.root for fit in every if (fit.candidate.layout, fit.lacking) == nearest)
    if root and len(roots) > 1:
        place = f"{_describe_place(found[0])} and {count_noun(len(roots) - 1, 'other root')}"
        options = join_words((f"--root {each}" for each in roots), 4, "or")
        return f"these keys are those of {_name_packs(packs, layouts)}{place}: {options}"
    end = f": --root {root}" if root else f"; {but} writes it" if own else ""
    return f"these keys are those of {_name_packs(packs, layouts)}{_describe_place(found[0])}{end}"


def _describe_place(fit: RootFit) -> str:
    verb = "is" if fit.lacking == 1 else "are"
    less = f", {count_noun(fit.lacking, 'name')} of which {verb} not there" if fit.lacking else ""
    return less + (f" under root {fit.root!r}" if fit.root else "")


def _find_parts(fits: Sequence[RootFit]) -> list[RootFit]:
    parts = [fit for fit in fits if fit.is_part]
    return [fit for fit in parts if (fit.root, fit.lacking) == (parts[0].root, parts[0].lacking)]


def _name_packs(names: Sequence[str], layouts: Sequence[Layout]) -> str:
    """Return the layout that packs read, with their names; only these if they name none, or several."""
    found = {layout.name for layout in layouts for name in names if name in layout.read_by}
    every = f"pack{'s' if len(names) > 1 else ''} {join_words(names)}"
    return f"layout {found.pop()} ({every})" if len(found) == 1 else every


def _describe_written(keys: Sequence[str], layouts: Sequence[Layout], but: str, prefixed: bool) -> str | None:
    """Return which layout keys have that packs only write, and what leads back; None if there is none."""
    unread = {pack for layout in layouts if not layout.read_by for pack in layout.written_by}
    found = _find_parts(
        _fit_packs(keys, [(each.pack, each.target) for each in list_pack_layouts() if each.pack in unread])
    )
    if not found or (found[0].root and prefixed):
        return None
    packs = [fit.candidate.layout for fit in found]
    writers = [but] if but in packs else packs
    named = [layout.name for layout in layouts if not layout.read_by and set(writers) & set(layout.written_by)]
    what = f"these keys are those of layout{'s' if len(named) > 1 else ''} {join_words(named)}"
    what += _describe_place(found[0])
    if but in packs:
        return f"{what}, which {but} writes: they are converted already"
    sources = [layout.name for layout in layouts if set(packs) & set(layout.read_by)]
    back = f": `remapkit convert` leads back to {join_words(sources, 4)}" if sources else ""
    every = f"pack{'s' if len(packs) > 1 else ''} {join_words(packs)} write{'s' if len(packs) == 1 else ''}"
    return f"{what}, which {every}{back}"


def hint_layout(problems: Sequence[Diagnostic], names: Iterable[str], rules: str) -> tuple[Diagnostic, ...]:
    """Return problems of some rules with a checkpoint; the first of those in `HINTED` says whose layout it is."""
    place = next((number for number, problem in enumerate(problems) if problem.code in HINTED), None)
    hint = describe_layouts(names, rules) if place is not None else None
    if place is None or hint is None:
        return tuple(problems)
    hinted = replace(problems[place], help=(hint, *problems[place].help))
    return (*problems[:place], hinted, *problems[place + 1 :])
