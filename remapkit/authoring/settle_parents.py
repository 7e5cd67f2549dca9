"""Constants that the tensors around them place: `layers.0.norm.weight` where all of `layers.0` went to `h.0`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

Alike = Mapping[str, Collection[str]]


def propose_by_parent(pairs: Mapping[str, str], alike: Alike, matrices: Collection[str] = ()) -> dict[str, str]:
    """Propose the only free equal below the module to which all paired tensors of a parent module went.

    The parent is the nearest module around a key that has pairs; it decides, or nothing does. Nothing from elsewhere
    may have gone to that module. Where all its names were kept, the name below it decides first. Nothing else decides
    of `matrices`: their elements may move on the way, which a constant does not show. Cost: a pass over all keys for
    each module around them.

    >>> pairs = {"l.0.q.w": "h.0.a.w", "l.0.k.w": "h.0.b.w"}
    >>> propose_by_parent(pairs, {"l.0.norm.w": {"h.0.ln.w", "h.1.ln.w"}})
    {'l.0.norm.w': 'h.0.ln.w'}
    >>> propose_by_parent({"fc.w": "net.w", "head.w": "out.w"}, {"fc.b": {"norm.b"}})
    {}
    """
    below: defaultdict[str, dict[str, str]] = defaultdict(dict)
    reached = {other: fqn for fqn, other in pairs.items()}
    for fqn, other in pairs.items():
        for parent in _list_parents(fqn):
            below[parent][fqn] = other
    arrived = _count_below(reached)
    free = _list_free(alike, reached)
    homes: dict[str, tuple[str, bool]] = {}
    wanting: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    found: dict[str, str] = {}
    for fqn in alike:
        parent = next((parent for parent in _list_parents(fqn) if parent in below), "")
        if not parent:
            continue
        if parent not in homes:
            homes[parent] = _find_home(parent, below[parent])
        home, keeps_names = homes[parent]
        if not home or arrived[home] != len(below[parent]):
            continue
        kept = home + fqn[len(parent) :]
        if keeps_names and kept in alike[fqn]:
            found[fqn] = kept
        elif fqn not in matrices:
            wanting[id(alike[fqn]), home].append(fqn)
    for (others, home), fqns in wanting.items():
        fitting = free[others].get(home, [])
        if len(fqns) == len(fitting) == 1:
            found[fqns[0]] = fitting[0]
    return found


def _list_parents(fqn: str) -> Iterator[str]:
    """Yield the modules around a key, the nearest first."""
    while "." in fqn:
        fqn = fqn.rpartition(".")[0]
        yield fqn


def _count_below(fqns: Iterable[str]) -> Mapping[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for fqn in fqns:
        for parent in _list_parents(fqn):
            counts[parent] += 1
    return counts


def _list_free(alike: Alike, reached: Collection[str]) -> Mapping[int, Mapping[str, list[str]]]:
    """Return the free candidates by the modules around them, once for all keys that share one set of candidates."""
    found: dict[int, defaultdict[str, list[str]]] = {}
    for others in {id(others): others for others in alike.values()}.values():
        by_parent = found[id(others)] = defaultdict(list)
        for other in others:
            for parent in _list_parents(other) if other not in reached else ():
                by_parent[parent].append(other)
    return found


def _find_home(parent: str, pairs: Mapping[str, str]) -> tuple[str, bool]:
    """Return the module that all pairs of a parent went to, and whether they kept their names below it."""
    kept = {
        other.removesuffix(fqn[len(parent) :]) if other.endswith(fqn[len(parent) :]) else ""
        for fqn, other in pairs.items()
    }
    if len(kept) == 1 and kept != {""}:
        return kept.pop(), True
    homes = [other.split(".")[:-1] for other in pairs.values()]
    same = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*homes, strict=False))
    return ".".join(words[0] for words in same), False
