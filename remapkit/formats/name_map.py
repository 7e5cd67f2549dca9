"""Where the names of a header go: each tensor, each module, and each end of a module's path.

A *module* is every beginning of a tensor's name, up to a dot. Its place follows from its tensors, if they agree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

DEEPEST = 32
"""The most segments of a module that is looked for, which bounds the cost of keys of a thousand segments."""

SEVERAL = "its tensors go to several modules"

Ends = Mapping[str, Sequence[str]]
Names = tuple[str, ...]


class UnclearName(Exception):
    """Raised for a name that has no one new name; the message is the reason."""


def find_no_module(fqn: str) -> str | None:
    """Return None: no tensor has a module that its last segments alone do not tell."""
    return None


class NameMap:
    """The new names of tensors, and of their modules: none for what is gone, several for what is split.

    `find_module` returns the module of tensors whose last segments belong together (`m.lora_A.default.weight`).

    >>> names = NameMap({"a.qkv.w": ["b.q.w", "b.k.w"], "a.n.w": ["b.n.w"], "c.w": []})
    >>> names.find("a.qkv"), names.find("a.qkv.w"), names.find("a.n"), names.find("c"), names.find("d")
    (('b.q', 'b.k'), ('b.q.w', 'b.k.w'), ('b.n',), (), None)
    """

    def __init__(
        self, targets: Mapping[str, Sequence[str]], find_module: Callable[[str], str | None] = find_no_module
    ) -> None:
        self._targets = targets
        self._find_module = find_module
        self._found: dict[str, Names | UnclearName | None] = {}
        self._found_ends: dict[tuple[str, str], Names | UnclearName | None] = {}
        self._ends: tuple[dict[int, Ends], dict[int, Ends]] = ({}, {})

    @cached_property
    def is_identity(self) -> bool:
        """Whether every tensor keeps its name, and there is no other."""
        return all(len(new) == 1 and new[0] == fqn for fqn, new in self._targets.items())

    @cached_property
    def renames(self) -> bool:
        """Whether a tensor that is kept has another name, or several."""
        return any(new and (len(new) > 1 or new[0] != fqn) for fqn, new in self._targets.items())

    @cached_property
    def _old(self) -> list[str]:
        return sorted(self._targets)

    @cached_property
    def _new(self) -> list[str]:
        return sorted({name for names in self._targets.values() for name in names})

    @cached_property
    def _old_modules(self) -> list[str]:
        return _list_modules(self._targets)

    @cached_property
    def _new_modules(self) -> list[str]:
        return _list_modules(self._new)

    def is_below(self, prefix: str) -> bool:
        """Return whether the header has tensors below a prefix."""
        return _count_below(self._old, prefix) > 0

    def find(self, name: str) -> Names | None:
        """Return the new names of a tensor or a module, or None if the header has none of this name.

        Raises `UnclearName`.
        """
        if name not in self._found:
            self._found[name] = _catch(lambda: self._find(name))
        return _unwrap(self._found[name])

    def _find(self, name: str) -> Names | None:
        if (targets := self._targets.get(name)) is not None:
            return tuple(dict.fromkeys(targets))
        if not name or name.count(".") >= DEEPEST:
            return None
        first, last = _find_range(self._old, name)
        if first == last:
            return None
        places: dict[frozenset[str], Names] = {}
        surprising: set[str] = set()
        for fqn in self._old[first:last]:
            if targets := self._targets[fqn]:
                pairs = [self._place_module(name, fqn, target) for target in targets]
                surprising.update(place for place, is_plain in pairs if not is_plain)
                new = tuple(dict.fromkeys(place for place, _ in pairs))
                places.setdefault(frozenset(new), new)
        if not places:
            return ()
        fqns = self._old[first:last]
        if len(places) > 1 and all("." in fqn[len(name) + 1 :] for fqn in fqns):
            return (self._find_common(fqns),)
        if len(places) > 1 or "" in next(iter(places)):
            raise UnclearName(SEVERAL if len(places) > 1 else "no module is left of it")
        if surprising and not self._are_whole(fqns, surprising):
            raise UnclearName("its tensors go to modules that have others too")
        return next(iter(places.values()))

    def _place_module(self, module: str, fqn: str, target: str) -> tuple[str, bool]:
        """Return the place of a module according to one of its tensors, and whether that is plain.

        It is plain if everything behind the module stays the same, or is its last part.
        """
        rest = fqn[len(module) :]
        if target.endswith(rest):
            return target[: -len(rest)], True
        if self._find_module(fqn) == module and (new := self._find_module(target)) is not None:
            return new, True
        count = rest.count(".")
        head = target.rsplit(".", count)
        return (head[0] if len(head) > count else ""), count == 1

    def _find_common(self, fqns: Sequence[str]) -> str:
        """Return the module that has all that becomes of a module's tensors, and nothing else."""
        new = [target.split(".") for fqn in fqns for target in self._targets[fqn]]
        low, high = min(new), max(new)
        count = next((at for at, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low) - 1)
        common = ".".join(low[:count])
        if not common or not self._are_whole(fqns, (common,)):
            raise UnclearName(SEVERAL)
        return common

    def _are_whole(self, fqns: Iterable[str], places: Iterable[str]) -> bool:
        """Return whether everything below these modules comes from these tensors."""
        own = sorted({target for fqn in fqns for target in self._targets[fqn]})
        return all(_count_below(self._new, place) == _count_below(own, place) for place in places)

    def find_ends(self, end: str, below: str = "") -> Names | None:
        """Return the ends of paths that have the meaning of `end`: they are those of the same modules.

        `below` is the module that all of them are in. None if no module of the header has this end. Raises
        `UnclearName` if no end says this.

        >>> names = NameMap({"a.0.q.w": ["b.0.query.w"], "a.1.q.w": ["b.1.query.w"], "a.1.k.w": ["b.1.k.w"]})
        >>> names.find_ends("q"), names.find_ends("0.q"), names.find_ends("k"), names.find_ends("v")
        (('query',), ('0.query',), ('k',), None)
        """
        if (end, below) not in self._found_ends:
            self._found_ends[end, below] = _catch(lambda: self._find_ends(end, below))
        return _unwrap(self._found_ends[end, below])

    def _find_ends(self, end: str, below: str) -> Names | None:
        matched = self._list_ends(0, end, below)
        if not matched:
            return None
        images = [self.find(module) or () for module in matched]
        wanted = {name for each in images for name in each}
        if below and not all(name.startswith(f"{below}.") for name in wanted):
            raise UnclearName(f"its modules are no longer below {below}")
        if not wanted:
            return ()
        for ends in ((end,), _cut_ends(end, matched, images)):
            if ends and {module for each in ends for module in self._list_ends(1, each, below)} == wanted:
                return ends
        raise UnclearName("no end of a path says the same modules under their new names")

    def _list_ends(self, side: int, end: str, below: str) -> Sequence[str]:
        """Return the modules below another one whose paths end so, among the old ones or the new ones."""
        length = end.count(".") + 1
        if length > DEEPEST:
            return ()
        if length not in self._ends[side]:
            found: defaultdict[str, list[str]] = defaultdict(list)
            for module in self._new_modules if side else self._old_modules:
                segments = module.rsplit(".", length)
                if len(segments) >= length:
                    found[".".join(segments[-length:])].append(module)
            self._ends[side][length] = found
        modules = self._ends[side][length].get(end, ())
        return modules[slice(*_find_range(modules, below))] if below else modules


def _list_modules(fqns: Iterable[str]) -> list[str]:
    """Return the modules of tensors, sorted, but none of more than `DEEPEST` segments, which no model has."""
    found: dict[str, None] = {}
    for fqn in fqns:
        path = fqn.rpartition(".")[0] if fqn.count(".") <= DEEPEST else ""
        while path and path not in found:
            found[path] = None
            path = path.rpartition(".")[0]
    return sorted(found)


def _catch(find: Callable[[], Names | None]) -> Names | UnclearName | None:
    try:
        return find()
    except UnclearName as unclear:
        return unclear


def _unwrap(found: Names | UnclearName | None) -> Names | None:
    if isinstance(found, UnclearName):
        raise found
    return found


def _find_range(fqns: Sequence[str], module: str) -> tuple[int, int]:
    """Return the range of a sorted list that is below a module: `/` is the character behind the dot."""
    return bisect_left(fqns, f"{module}."), bisect_left(fqns, f"{module}/")


def _count_below(fqns: Sequence[str], module: str) -> int:
    first, last = _find_range(fqns, module)
    return last - first


def _cut_ends(end: str, matched: Sequence[str], images: Sequence[Names]) -> Names:
    """Return the ends that the new paths have where the old ones have `end`, if all say the same."""
    length = end.count(".") + 1
    found: dict[Names, None] = {}
    for module, names in zip(matched, images, strict=True):
        before = module.count(".") + 1 - length
        if names:
            found[tuple(".".join(name.split(".")[before:]) for name in names)] = None
    return next(iter(found)) if len(found) == 1 and all(next(iter(found))) else ()
