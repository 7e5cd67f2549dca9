"""Joins the mappings of tensors nested in a pickled mapping: `{"a": {"b": tensor}}` holds the key `a.b`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from remapkit.diagnostics.wording import show_key
from remapkit.files.errors import FileFault
from remapkit.formats.pickle.values import PickledDict, PickleFault
from remapkit.tensors.spec import MAX_NAME

MAX_DEPTH = 200
"""Deeper mappings are refused; this also ends the walk of a mapping that contains itself."""
_MAX_TEXT = 64_000_000
"""The characters of all joined names: mappings that share a child have exponentially many names."""

Named = tuple[str, Any, Any]
"""The prefix of a mapping (with its last dot), a key in it, and the value."""


def join_nested(
    node: PickledDict, holders: Collection[int], skip: Callable[[str, PickledDict], bool]
) -> Iterator[Named]:
    """Yield every entry of a mapping and of the mappings nested in it, with their prefixes, in the pickle's order.

    Only dicts under text are joined, and only those in `holders`: the identities of what holds tensors, however deep.
    Other mappings are values. `skip` says of a path and its mapping that they are left out. Raises `FileFault`
    (RK406) for a name that is too long, and `PickleFault` for mappings nested too deeply or too many names.

    >>> inner = PickledDict([("w", "a tensor")])
    >>> node = PickledDict([("b", "a tensor"), ("sub", inner), ("config", PickledDict([("lr", 0.1)]))])
    >>> [prefix + key for prefix, key, _ in join_nested(node, {id(inner)}, lambda path, node: False)]
    ['b', 'sub.w', 'config']
    """
    written = 0
    waiting = [("", iter(node.items))]
    while waiting:
        prefix, items = waiting[-1]
        for key, value in items:
            written += len(prefix) + (len(key) if isinstance(key, str) else 0)
            if written > _MAX_TEXT:
                raise PickleFault("the names of its nested tensors are longer than any checkpoint's")
            if not (isinstance(key, str) and isinstance(value, PickledDict) and id(value) in holders):
                yield prefix, key, value
            elif not skip(path := prefix + key, value):
                if len(path) > MAX_NAME:
                    title = f"a key starts with {len(path):,} characters; at most {MAX_NAME:,} bytes are read"
                    raise FileFault("RK406", title, key=show_key(path))
                if len(waiting) > MAX_DEPTH:
                    raise PickleFault(f"its mappings are nested more than {MAX_DEPTH} levels deep")
                waiting.append((f"{path}.", iter(value.items)))
                break
        else:
            waiting.pop()
