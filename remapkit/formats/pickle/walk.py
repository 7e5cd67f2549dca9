"""Walks a pickle's containers: finds the mappings of tensors, the optimizers, and all that is no plain value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from remapkit.formats.pickle.values import (
    Global,
    Opaque,
    PickledDict,
    PickledTensor,
    PickleFault,
    describe_with_article,
)
from remapkit.tensors.dtypes import DTYPE_BITS

MAX_CANDIDATES = 100_000
_MAX_DEPTH = 200
_MAX_PATH = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A path as a linked list to its parent, so that deep structures need no copies; `node` is what lies there."""

    parent: Place | None
    key: Any
    depth: int
    node: Any

    def __str__(self) -> str:
        """Return the path as text, cut at the front if it is long: memory must not grow with depth times keys."""
        keys: list[str] = []
        path: Place | None = self
        length = 0
        while path is not None and path.parent is not None:
            key = format_key(path.key)
            length += len(key) + 1
            if length > _MAX_PATH:
                keys.append("…")
                break
            keys.append(key)
            path = path.parent
        return ".".join(reversed(keys))

    def list_ancestors(self) -> list[Place]:
        """Return the paths from the top level to this one."""
        found: list[Place] = []
        path: Place | None = self
        while path is not None:
            found.append(path)
            path = path.parent
        return found[::-1]


def format_key(key: Any) -> str:
    """Format a key of a pickled dict for messages; keys other than text and numbers by their type only."""
    return str(key) if isinstance(key, str | int) else f"<{describe_with_article(key)}>"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A mapping that contains tensors, and its path in the pickle; `of_arrays` if all are arrays of numpy."""

    place: Place
    items: Sequence[tuple[Any, Any]]
    tensors: int
    nbytes: int
    of_arrays: bool = False

    @property
    def path(self) -> str:
        """The path, such as `a.b`; empty for the top level."""
        return str(self.place)


class Walk:
    """A walk that visits every container once, even if several others contain it."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.top: Any = None
        self.holders: set[int] = set()
        self.optimizers: dict[int, Place] = {}
        self.opaque: Counter[str] = Counter()
        self.loose = 0
        self.modules: str | None = None
        self.hostile_path: dict[str, Place] = {}

    def search(self, value: Any) -> None:
        """Collect the mappings of tensors, and all objects that are neither tensors nor plain values.

        Depth first, with an explicit stack. Every container is entered once, by identity, so the walk ends even if
        a pickle contains itself, and takes time linear in the items of all containers.
        """
        self.top = value
        seen: set[int] = set()
        root = Place(None, "", 0, value)
        self._visit(root, value)
        # Iterators rather than lists of children: a list with the same dict a million times needs no extra memory.
        waiting = [(root, self._enter(root, value, seen))]
        while waiting:
            parent, children = waiting[-1]
            for key, child in children:
                if not is_node(child):
                    continue
                path = Place(parent, key, parent.depth + 1, child)
                self._visit(path, child)
                if id(child) in self.holders:
                    self._mark_holders(parent)
                if id(child) not in seen:
                    waiting.append((path, self._enter(path, child, seen)))
                    break
            else:
                waiting.pop()

    def _enter(self, path: Place, node: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
        children = list_children(node)
        if children is None:
            return iter(())
        seen.add(id(node))
        if path.depth > _MAX_DEPTH:
            raise PickleFault(f"the pickle is nested more than {_MAX_DEPTH} levels deep")
        self._note_mapping(path, node)
        return children

    def _visit(self, path: Place, node: Any) -> None:
        if isinstance(node, Opaque):
            self._note_opaque(path, node)
        elif isinstance(node, PickledTensor) and not isinstance(path.key, str):
            self.loose += 1
        elif isinstance(node, Global):
            self.hostile_path.setdefault(str(node), path)

    def _note_opaque(self, path: Place, node: Opaque) -> None:
        if not node.known:
            self.opaque[node.name] += 1
            self.hostile_path.setdefault(node.name, path)
            if node.module or node.name.startswith("torch.nn.modules."):
                self.modules = self.modules or node.name

    def _note_mapping(self, path: Place, node: Any) -> None:
        items = node.items if isinstance(node, PickledDict | Opaque) else None
        if isinstance(node, PickledDict) and is_optimizer(node):
            self.optimizers[id(path)] = path
        tensors = [value for key, value in items or () if isinstance(value, PickledTensor) and isinstance(key, str)]
        if items is not None and tensors:
            self._mark_holders(path)
            nbytes, of_arrays = sum(map(count_bytes, tensors)), all(value.storage.data for value in tensors)
            self.candidates.append(Candidate(path, items, len(tensors), nbytes, of_arrays))
            if len(self.candidates) > MAX_CANDIDATES:
                raise PickleFault(f"the pickle holds more than {MAX_CANDIDATES} mappings of tensors")

    def _mark_holders(self, path: Place | None) -> None:
        """Mark what holds tensors; the ancestors of a marked container are marked already, so this is linear."""
        while path is not None and id(path.node) not in self.holders:
            self.holders.add(id(path.node))
            path = path.parent

    def is_in_optimizer(self, candidate: Candidate) -> bool:
        """Return whether a mapping of tensors is inside the state of an optimizer."""
        path: Place | None = candidate.place
        while path is not None:
            if id(path) in self.optimizers:
                return True
            path = path.parent
        return False


def is_optimizer(node: PickledDict) -> bool:
    """Return whether the keys are those of `torch.optim.Optimizer.state_dict`: only `state` and `param_groups`."""
    if len(node.items) != 2 or not all(isinstance(key, str) for key, _ in node.items):
        return False
    entries = dict(node.items)
    return entries.keys() == {"state", "param_groups"} and isinstance(entries["param_groups"], list)


def list_children(node: Any) -> Iterator[tuple[Any, Any]] | None:
    if isinstance(node, PickledDict):
        return iter(node.items)
    if isinstance(node, Opaque):
        return iter(node.items) if node.items else None
    if isinstance(node, list | tuple):
        return iter(enumerate(node))
    return None


def is_node(value: Any) -> bool:
    return isinstance(value, PickledDict | Opaque | PickledTensor | Global | list | tuple)


def count_bytes(tensor: PickledTensor) -> int:
    """Return the packed size of a tensor in bytes; capped at 2^62, because nothing has been checked yet."""
    return max(0, min(math.prod(tensor.shape) * (DTYPE_BITS[tensor.dtype] // 8), 1 << 62))
