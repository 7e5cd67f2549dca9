"""Joins the dicts of tensors nested in a state dict in memory, and chooses among several: exactly as in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.files.errors import FileFault
from remapkit.formats.pickle.values import Opaque, PickleContent, PickledDict, PickledStorage, PickledTensor
from remapkit.formats.state_dict import choose_state_dict
from remapkit.tensors.spec import get_leaf

_MAX_DEPTH = 200
"""Deeper values are not looked into; the walk of a file refuses what is nested as deeply."""

Shape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class JoinedState:
    """The tensors of a nested state dict under their joined names, where they were found, and what was left out."""

    tensors: dict[str, Any]
    root: str
    ignored: tuple[str, ...]


def join_state_dict(
    state: Mapping[Any, Any], shape_of: Callable[[Any], Shape | None], root: str | None = None
) -> JoinedState | None:
    """Return the state dict in nested dicts; None if no dict in it holds tensors, so that it is one as it is.

    `shape_of` returns the dtype and the shape of a tensor, None for other values. Raises `FileFault` (RK406, RK416)
    as for a file with the same dicts.

    >>> state = {"net": {"in": {"w": 1.5}, "out": {"w": 2.5}}, "step": "a text"}
    >>> joined = join_state_dict(state, lambda value: ("F32", (2,)) if isinstance(value, float) else None)
    >>> joined.root, joined.tensors
    ('net', {'in.w': 1.5, 'out.w': 2.5})
    """
    mirror = _Mirror(shape_of)
    value = mirror.reflect(state)
    if not mirror.has_nested:
        return None
    chosen = choose_state_dict(PickleContent(value, 0, ()), root, False)
    tensors = {fqn: mirror.originals[id(stand_in)] for fqn, stand_in in chosen.tensors.items()}
    return JoinedState(tensors, chosen.root, chosen.ignored)


def join_nested(
    state: Mapping[Any, Any], shape_of: Callable[[Any], Shape | None], root: str | None = None
) -> JoinedState | None:
    """Return `join_state_dict` of a caller's state dict; None if no value is a mapping. Raises `FailedCheck`."""
    if not any(isinstance(value, Mapping) for value in state.values()):
        return None
    try:
        return join_state_dict(state, shape_of, root)
    except FileFault as fault:
        raise FailedCheck(Diagnostic(fault.code, fault.title, help=fault.help, notes=fault.notes)) from None


class _Mirror:
    """Reflects values as what the reader of a pickle finds; a container twice in them is one reflection."""

    def __init__(self, shape_of: Callable[[Any], Shape | None]) -> None:
        self.shape_of = shape_of
        self.originals: dict[int, Any] = {}
        self.stand_ins: list[PickledTensor] = []
        self.has_nested = False
        self._seen: dict[int, Any] = {}

    def reflect(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str | int | float | bool | None):
            found = self.shape_of(value)
            return value if found is None else self._stand_in(value, found, depth)
        if id(value) in self._seen:
            return self._seen[id(value)]
        if isinstance(value, Mapping) and depth <= _MAX_DEPTH:
            mapping = PickledDict()
            self._seen[id(value)] = mapping
            mapping.items.extend(self._reflect_items(value, depth))
            return mapping
        if isinstance(value, list | tuple) and depth <= _MAX_DEPTH:
            items: list[Any] = []
            self._seen[id(value)] = items
            items.extend(self.reflect(each, depth + 1) for each in value)
            return items
        found = self.shape_of(value)
        return Opaque(type(value).__name__, known=True) if found is None else self._stand_in(value, found, depth)

    def _reflect_items(self, value: Mapping[Any, Any], depth: int) -> Iterator[tuple[Any, Any]]:
        for key, child in value.items():
            # Extra state may be anything, tensors included; it is no part of the weights.
            extra = isinstance(key, str) and get_leaf(key) == "_extra_state"
            yield key, Opaque("extra state", known=True) if extra else self.reflect(child, depth + 1)

    def _stand_in(self, value: Any, found: Shape, depth: int) -> PickledTensor:
        dtype, shape = found
        stand_in = PickledTensor(PickledStorage("", dtype, 0), dtype, 0, shape, ())
        self.stand_ins.append(stand_in)  # held, so that no identity is given twice
        self.originals[id(stand_in)] = value
        self.has_nested |= depth > 1
        return stand_in
