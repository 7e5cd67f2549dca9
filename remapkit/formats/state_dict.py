"""Chooses the state dict among the mappings in a pickle: the only one, or the one that the user names.

A checkpoint may contain its state dict under a key, several state dicts, or an optimizer as well. If there is exactly
one mapping of tensors, it is used and reported; nothing is guessed from names or from the number of keys.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from remapkit.diagnostics.wording import SHOWN, count_noun, format_bytes, join_words, list_names, show_key
from remapkit.files.errors import FileFault
from remapkit.formats.pickle.allowlist import is_allowed
from remapkit.formats.pickle.values import (
    HOSTILE_HELP,
    Global,
    Opaque,
    PickleContent,
    PickledDict,
    PickledStorage,
    PickledTensor,
    PickleFault,
    describe_with_article,
)
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.families import mask_indices
from remapkit.tensors.spec import find_name_problem, get_leaf

_MAX_DEPTH = 200
_MAX_PATH = 2000
_MAX_CANDIDATES = 100_000
_SHOWN = 12


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """A path as a linked list to its parent, so that deep structures need no copies."""

    parent: _Path | None
    key: Any
    depth: int

    def __str__(self) -> str:
        """Return the path as text, cut at the front if it is long: memory must not grow with depth times keys."""
        keys: list[str] = []
        path: _Path | None = self
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


def format_key(key: Any) -> str:
    """Format a key of a pickled dict for messages; keys other than text and numbers by their type only."""
    return str(key) if isinstance(key, str | int) else f"<{describe_with_article(key)}>"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A mapping that contains tensors, and its path in the pickle."""

    place: _Path
    items: Sequence[tuple[Any, Any]]
    tensors: int
    nbytes: int

    @property
    def path(self) -> str:
        """The path, such as `a.b`; empty for the top level."""
        return str(self.place)


@dataclass(frozen=True, slots=True)
class StateDict:
    """The chosen mapping: its tensors by FQN, its path, and what was ignored."""

    tensors: dict[str, PickledTensor]
    root: str
    ignored: tuple[str, ...]


def choose_state_dict(content: PickleContent, root: str | None, strict: bool) -> StateDict:
    """Return the state dict of a pickle; raises `FileFault` (RK404, RK406, RK411) if there is not exactly one."""
    walk = _Walk()
    walk.search(content.value)
    if content.hostile:
        raise _make_hostile_fault(content, walk)
    strange = [name for name in content.named if not is_allowed(name)]
    if strict and strange:
        count = count_noun(len(strange), "global")
        title = f"--strict-pickle: the pickle names {count} that no state dict needs ({_list_first(strange)})"
        raise FileFault(
            "RK411", title, help=("leave out --strict-pickle: nothing that a pickle names is ever imported",)
        )
    candidate = _choose_candidate(walk, root)
    tensors = _collect_tensors(candidate)
    unused = [name for name in strange if name not in walk.opaque and name not in walk.hostile_path]
    return StateDict(tensors, candidate.path, (*_describe_ignored(walk, candidate), *_describe_unused(unused)))


class _Walk:
    """A walk that visits every container once, even if several others contain it."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.top: Any = None
        self.optimizers: dict[int, _Path] = {}
        self.opaque: Counter[str] = Counter()
        self.loose = 0
        self.modules: str | None = None
        self.hostile_path: dict[str, _Path] = {}

    def search(self, value: Any) -> None:
        """Collect the mappings of tensors, and all objects that are neither tensors nor plain values.

        Depth first, with an explicit stack. Every container is entered once, by identity, so the walk ends even if
        a pickle contains itself, and takes time linear in the items of all containers.
        """
        self.top = value
        seen: set[int] = set()
        root = _Path(None, "", 0)
        self._visit(root, value)
        # Iterators rather than lists of children: a list with the same dict a million times needs no extra memory.
        waiting = [(root, self._enter(root, value, seen))]
        while waiting:
            parent, children = waiting[-1]
            for key, child in children:
                if not _is_node(child):
                    continue
                path = _Path(parent, key, parent.depth + 1)
                self._visit(path, child)
                if id(child) not in seen:
                    waiting.append((path, self._enter(path, child, seen)))
                    break
            else:
                waiting.pop()

    def _enter(self, path: _Path, node: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
        children = _list_children(node)
        if children is None:
            return iter(())
        seen.add(id(node))
        if path.depth > _MAX_DEPTH:
            raise PickleFault(f"the pickle is nested more than {_MAX_DEPTH} levels deep")
        self._note_mapping(path, node)
        return children

    def _visit(self, path: _Path, node: Any) -> None:
        if isinstance(node, Opaque):
            self._note_opaque(path, node)
        elif isinstance(node, PickledTensor) and not isinstance(path.key, str):
            self.loose += 1
        elif isinstance(node, Global):
            self.hostile_path.setdefault(str(node), path)

    def _note_opaque(self, path: _Path, node: Opaque) -> None:
        if not node.known:
            self.opaque[node.name] += 1
            self.hostile_path.setdefault(node.name, path)
            if node.module or node.name.startswith("torch.nn.modules."):
                self.modules = self.modules or node.name

    def _note_mapping(self, path: _Path, node: Any) -> None:
        items = node.items if isinstance(node, PickledDict | Opaque) else None
        if isinstance(node, PickledDict) and _is_optimizer(node):
            self.optimizers[id(path)] = path
        tensors = [value for key, value in items or () if isinstance(value, PickledTensor) and isinstance(key, str)]
        if items is not None and tensors:
            self.candidates.append(Candidate(path, items, len(tensors), sum(map(count_bytes, tensors))))
            if len(self.candidates) > _MAX_CANDIDATES:
                raise PickleFault(f"the pickle holds more than {_MAX_CANDIDATES} mappings of tensors")

    def is_in_optimizer(self, candidate: Candidate) -> bool:
        """Return whether a mapping of tensors is inside the state of an optimizer."""
        path: _Path | None = candidate.place
        while path is not None:
            if id(path) in self.optimizers:
                return True
            path = path.parent
        return False


def _is_optimizer(node: PickledDict) -> bool:
    """Return whether the keys are those of `torch.optim.Optimizer.state_dict`: only `state` and `param_groups`."""
    if len(node.items) != 2 or not all(isinstance(key, str) for key, _ in node.items):
        return False
    entries = dict(node.items)
    return entries.keys() == {"state", "param_groups"} and isinstance(entries["param_groups"], list)


def _list_children(node: Any) -> Iterator[tuple[Any, Any]] | None:
    if isinstance(node, PickledDict):
        return iter(node.items)
    if isinstance(node, Opaque):
        return iter(node.items) if node.items else None
    if isinstance(node, list | tuple):
        return iter(enumerate(node))
    return None


def _is_node(value: Any) -> bool:
    return isinstance(value, PickledDict | Opaque | PickledTensor | Global | list | tuple)


def count_bytes(tensor: PickledTensor) -> int:
    """Return the packed size of a tensor in bytes; capped at 2^62, because nothing has been checked yet."""
    return max(0, min(math.prod(tensor.shape) * (DTYPE_BITS[tensor.dtype] // 8), 1 << 62))


def _make_hostile_fault(content: PickleContent, walk: _Walk) -> FileFault:
    for name in content.hostile:
        where = str(walk.hostile_path.get(name) or "")
        if where:
            title = f"'{show_key(where)}' is a {name} object, not a tensor"
            return FileFault("RK404", title, help=HOSTILE_HELP)
    names = " and ".join(content.hostile[:5])
    return FileFault("RK404", f"the pickle calls {names}", help=HOSTILE_HELP)


def _choose_candidate(walk: _Walk, root: str | None) -> Candidate:
    candidates = walk.candidates
    if root is not None:
        return _find_candidate(walk, "" if root == "." else root)
    models = [candidate for candidate in candidates if not walk.is_in_optimizer(candidate)]
    if len(models) == 1:
        # The format of an optimizer is recognized exactly: ignoring it is not a guess.
        return models[0]
    if candidates:
        help = _suggest_roots(walk)
        title = f"{len(candidates)} mappings of tensors: which one is the state dict?"
        raise FileFault("RK406", title, notes=(format_candidates(candidates),), help=help)
    raise FileFault(
        "RK406",
        "the file holds no mapping of tensors",
        notes=_explain_no_mapping(walk),
        help=_suggest_state_dict(walk),
    )


_NO_MODEL = re.compile(
    r"(?:^|[._])(?:optim\w*|\w*schedulers?|\w*rng_states?|callbacks?|grad_scaler|scaler|amp|loops)(?:[._]|$)"
)


def _suggest_roots(walk: _Walk) -> tuple[str, ...]:
    """Return roots that the user may mean: not the mappings that a trainer saves for its own use."""
    models = [
        candidate for candidate in walk.candidates if not walk.is_in_optimizer(candidate) and _can_be_model(candidate)
    ]
    if walk.modules and not models:
        return _suggest_state_dict(walk)
    if not models:
        return ("choose one with --root A.B; none of them looks like the weights of a model",)
    roots = [
        f"--root {show_key(candidate.path) or '.'}"
        for candidate in sorted(models, key=lambda candidate: -candidate.nbytes)[:4]
    ]
    more = ", …" if len(models) > 4 else ""
    return (
        f"choose one: {' or '.join(roots)}{more}" if len(roots) > 1 else f"choose one with --root, e.g. {roots[0]}",
    )


def _can_be_model(candidate: Candidate) -> bool:
    """Return whether it has a tensor of at least one dimension under a name that trainers do not use."""
    return not _NO_MODEL.search(candidate.path) and any(
        isinstance(value, PickledTensor) and value.shape and isinstance(key, str) and not _NO_MODEL.search(key)
        for key, value in candidate.items
    )


def _explain_no_mapping(walk: _Walk) -> tuple[str, ...]:
    notes = []
    if walk.loose:
        notes.append(f"{walk.loose} tensors are in lists or under keys that are not text")
    if walk.opaque:
        notes.append(f"it holds {count_noun(walk.opaque.total(), 'object')} ({_list_common_names(walk.opaque)})")
    return tuple(notes)


def _suggest_state_dict(walk: _Walk) -> tuple[str, ...]:
    if walk.modules:
        own = "" if walk.modules.startswith("torch.") else f" (a {show_key(walk.modules, 80)})"
        return (f"a whole module was pickled{own}: save `model.state_dict()` instead",)
    return ()


def _find_candidate(walk: _Walk, root: str) -> Candidate:
    fitting = [candidate for candidate in walk.candidates if candidate.path == root]
    if not fitting:
        # A mapping with several names is one candidate, and any of the names selects it.
        nodes = _find_nodes(walk.top, root)
        fitting = [candidate for candidate in walk.candidates if any(candidate.items is node.items for node in nodes)]
        fitting = [replace(candidate, place=_Path(_Path(None, "", 0), root, 1)) for candidate in fitting]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FileFault("RK406", f"{len(fitting)} mappings of tensors are at {root!r}")
    notes = (format_candidates(walk.candidates),) if walk.candidates else _explain_no_mapping(walk)
    where = f"--root {show_key(root)}" if root else "the top level"
    raise FileFault("RK406", f"no mapping of tensors at {where}", notes=notes)


def _find_nodes(top: Any, root: str) -> list[PickledDict | Opaque]:
    """Return the mappings that a path can refer to; keys may contain dots, so a path can be split in several ways.

    Each node is visited at most once for each position in the path, and at most `_MAX_CANDIDATES` times in all.
    """
    nodes: dict[int, PickledDict | Opaque] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [(top, 0)]
    while waiting:
        node, at = waiting.pop()
        if at > len(root):
            if isinstance(node, PickledDict | Opaque):
                nodes[id(node)] = node
            continue
        children = _list_children(node)
        if children is None or (id(node), at) in seen or len(seen) > _MAX_CANDIDATES:
            continue
        seen.add((id(node), at))
        for key, child in children:
            text = format_key(key)
            end = at + len(text)
            if _is_node(child) and root.startswith(text, at) and root[end : end + 1] in ("", "."):
                waiting.append((child, end + 1))
    return list(nodes.values())


def format_candidates(candidates: Sequence[Candidate]) -> str:
    """Format the mappings with their counts and sizes; those that differ only in a number share one line."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        name = mask_indices(candidate.path)
        groups.setdefault(name, []).append(candidate)
    ordered = sorted(groups.items(), key=lambda item: -sum(c.nbytes for c in item[1]))
    lines = []
    for name, group in ordered:
        path = group[0].path if len(group) == 1 else f"{name} ({len(group)} mappings)"
        count = sum(c.tensors for c in group)
        lines.append(
            f"{show_key(path) or '.'}: {count_noun(count, 'tensor')}, {format_bytes(sum(c.nbytes for c in group))}"
        )
    return list_names(lines, _SHOWN)


def _collect_tensors(candidate: Candidate) -> dict[str, PickledTensor]:
    """Return the tensors of the chosen mapping; an object in place of a tensor is an error."""
    tensors: dict[str, PickledTensor] = {}
    for key, value in candidate.items:
        if isinstance(value, PickledTensor):
            fqn = _check_key(key, candidate)
            if fqn in tensors:
                raise FileFault("RK406", f"duplicate key {show_key(fqn)!r}", key=fqn)
            tensors[fqn] = value
        elif isinstance(value, Opaque | Global) and not _is_extra(key, value):
            raise _make_object_fault(
                value, show_key(f"{candidate.path}.{format_key(key)}" if candidate.path else format_key(key))
            )
        elif isinstance(value, PickledStorage):
            raise FileFault("RK409", f"'{show_key(format_key(key))}' is a bare storage, not a tensor")
    return tensors


def _make_object_fault(value: Opaque | Global, where: str) -> FileFault:
    list_names = value.name if isinstance(value, Opaque) else str(value)
    if " " in list_names:
        # A known kind of tensor that is not supported: its description names it, and often says what to do.
        return FileFault("RK409", f"'{where}' is {describe_with_article(value)}, which is not supported")
    help = ("it was not built; save it in another file, or name it `..._extra_state`",)
    return FileFault("RK404", f"'{where}' is a {list_names} object, not a tensor", help=help)


def _is_extra(key: Any, value: Any) -> bool:
    """Return whether a state dict may contain it: torch's `_extra_state`, or a builtin without tensors."""
    if isinstance(key, str) and get_leaf(key) == "_extra_state":
        return True
    return isinstance(value, Opaque) and value.known


def _check_key(key: Any, candidate: Candidate) -> str:
    if not isinstance(key, str):
        text = repr(key) if isinstance(key, int | float | bool) else format_key(key)
        raise FileFault("RK406", f"a tensor under the key {show_key(text, 60)}, which is not text")
    if problem := find_name_problem(key):
        raise FileFault("RK406", f"a key {problem}", key=key)
    return key


def _describe_ignored(walk: _Walk, chosen: Candidate) -> Iterator[str]:
    if walk.opaque:
        objects = count_noun(walk.opaque.total(), "object was", "objects were")
        yield f"{objects} ignored ({_list_common_names(walk.opaque)})"
    values = [(key, value) for key, value in chosen.items if not isinstance(value, PickledTensor | Opaque)]
    if values:
        entries = (f"{show_key(format_key(key), 60)}: {describe_with_article(value)}" for key, value in values)
        count = count_noun(len(values), "entry", "entries")
        yield f"{count} beside the tensors ignored ({join_words(entries, SHOWN)})"
    aside = [candidate for candidate in walk.candidates if walk.is_in_optimizer(candidate)]
    if aside and chosen not in aside:
        tensors = sum(candidate.tensors for candidate in aside)
        yield f"the state of an optimizer was ignored ({count_noun(tensors, 'tensor')})"
    if walk.loose:
        yield f"{walk.loose} tensors in lists or under keys that are not text were ignored"


def _describe_unused(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"the pickle names globals that none of its objects uses ({_list_first(names)}); they were not imported"


def _list_first(names: Sequence[str]) -> str:
    return join_words((show_key(name, 80) for name in names), SHOWN)


def _list_common_names(names: Counter[str]) -> str:
    return _list_first([name for name, _ in names.most_common()])
