"""Chooses the state dict among the mappings in a pickle: the only one, or the one that the user names.

A checkpoint may contain its state dict under a key, several state dicts, or an optimizer as well. If there is exactly
one mapping of tensors, it is used and reported. Mappings nested in one are joined with dots, and what a trainer saves
for its own use is no state dict; nothing else is guessed from names or from the number of keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from remapkit.diagnostics.wording import SHOWN, count_noun, format_bytes, join_words, list_names, show_key
from remapkit.files.errors import FileFault
from remapkit.formats.join_nested import Named, join_nested
from remapkit.formats.pickle.allowlist import is_allowed
from remapkit.formats.pickle.values import (
    HOSTILE_HELP,
    Global,
    Opaque,
    PickleContent,
    PickledDict,
    PickledStorage,
    PickledTensor,
    describe_with_article,
)
from remapkit.formats.pickle.walk import (
    MAX_CANDIDATES,
    Candidate,
    Place,
    Walk,
    format_key,
    is_node,
    is_optimizer,
    list_children,
)
from remapkit.formats.renamed import describe_outside, make_missing_root
from remapkit.tensors.families import mask_indices
from remapkit.tensors.roots import Root, is_trainers_own, list_roots
from remapkit.tensors.spec import find_name_problem, get_leaf

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The entries of the chosen mapping and of those nested in it; `parts` are the identities of their items."""

    path: str
    entries: tuple[Named, ...]
    parts: frozenset[int]


@dataclass(frozen=True, slots=True)
class StateDict:
    """The chosen mapping: its tensors by FQN, its path, and what was ignored."""

    tensors: dict[str, PickledTensor]
    root: str
    ignored: tuple[str, ...]


def choose_state_dict(content: PickleContent, root: str | None, strict: bool) -> StateDict:
    """Return the state dict of a pickle; raises `FileFault` (RK404, RK406, RK411) if there is not exactly one."""
    walk = Walk()
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
    chosen = _choose_mapping(walk) if root is None else _find_mapping(walk, "" if root == "." else root)
    tensors = _collect_tensors(chosen)
    _refuse_partitioned(walk, chosen, tensors)
    unused = [name for name in strange if name not in walk.opaque and name not in walk.hostile_path]
    return StateDict(tensors, chosen.path, (*_describe_ignored(walk, chosen), *_describe_unused(unused)))


def _make_hostile_fault(content: PickleContent, walk: Walk) -> FileFault:
    for name in content.hostile:
        where = str(walk.hostile_path.get(name) or "")
        if where:
            title = f"'{show_key(where)}' is a {name} object, not a tensor"
            return FileFault("RK404", title, help=HOSTILE_HELP)
    names = " and ".join(content.hostile[:5])
    return FileFault("RK404", f"the pickle calls {names}", help=HOSTILE_HELP)


def _choose_mapping(walk: Walk) -> _Chosen:
    """Return the only mapping that can be the state dict, or one whose nested mappings are its parts."""
    models = [candidate for candidate in walk.candidates if not walk.is_in_optimizer(candidate)]
    # Beside mappings of tensors, arrays alone are statistics or random states.
    models = [candidate for candidate in models if not candidate.of_arrays] or models
    if len(models) == 1:
        # The format of an optimizer is recognized exactly: ignoring it is not a guess.
        return _take_alone(models[0])
    likely = [candidate for candidate in models if _can_be_model(candidate)]
    chosen = _join_parts(walk, models, likely) if likely else None
    if chosen is not None:
        return chosen
    if walk.candidates:
        help = _suggest_roots(walk)
        title = f"{len(walk.candidates)} mappings of tensors: which one is the state dict?"
        raise FileFault("RK406", title, notes=(format_candidates(walk.candidates),), help=help)
    raise FileFault(
        "RK406",
        "the file holds no mapping of tensors",
        notes=_explain_no_mapping(walk),
        help=_suggest_state_dict(walk),
    )


def _take_alone(candidate: Candidate) -> _Chosen:
    entries = tuple(("", key, value) for key, value in candidate.items)
    return _Chosen(candidate.path, entries, frozenset([id(candidate.items)]))


def _join_parts(walk: Walk, models: Sequence[Candidate], likely: Sequence[Candidate]) -> _Chosen | None:
    """Return the mapping that all likely ones are parts of, joined; None if they are several state dicts.

    The file's top level is never such a mapping: what lies there side by side are models, not parts of one. Nor is
    one in which two parts have the same names: the second is a copy, such as averaged weights.
    """
    place = _find_common_place([candidate.place for candidate in likely])
    above = place.list_ancestors()[1:-1]
    if any(candidate.place is path for candidate in models for path in above):
        return None
    if len(likely) == 1 and (place.parent is None or not isinstance(place.node, PickledDict)):
        return _take_alone(likely[0])
    path = str(place)
    if place.parent is None or not isinstance(place.node, PickledDict) or path.startswith("…"):
        return None
    direct = likely[0].place is place
    chosen = _join_mapping(
        walk, path, place.node, lambda path, node: is_optimizer(node) or (not direct and is_trainers_own(path))
    )
    whole = all(id(candidate.items) in chosen.parts for candidate in likely)
    return chosen if whole and not _has_copies(chosen.entries) else None


def _find_common_place(places: Sequence[Place]) -> Place:
    """Return the innermost path that contains all of them."""
    common = places[0].list_ancestors()
    for place in places[1:]:
        ancestors = place.list_ancestors()
        common = [path for path, other in zip(common, ancestors, strict=False) if path is other]
    return common[-1]


def _join_mapping(walk: Walk, path: str, node: PickledDict, skip: Callable[[str, PickledDict], bool]) -> _Chosen:
    parts = {id(node.items)}

    def is_left_out(path: str, nested: PickledDict) -> bool:
        left_out = skip(path, nested)
        if not left_out:
            parts.add(id(nested.items))
        return left_out

    entries = tuple(join_nested(node, walk.holders, is_left_out))
    return _Chosen(path, entries, frozenset(parts))


def _has_copies(entries: Iterable[Named]) -> bool:
    """Return whether two nested mappings have the same names, at least two."""
    names: dict[str, set[str]] = {}
    for prefix, key, value in entries:
        first, _, rest = prefix.partition(".")
        if prefix and isinstance(value, PickledTensor):
            names.setdefault(first, set()).add(f"{rest}{key}")
    found = [frozenset(each) for each in names.values() if len(each) > 1]
    return len(found) > len(set(found))


def _suggest_roots(walk: Walk) -> tuple[str, ...]:
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
    return not is_trainers_own(candidate.path) and any(
        isinstance(value, PickledTensor) and value.shape and isinstance(key, str) and not is_trainers_own(key)
        for key, value in candidate.items
    )


def _explain_no_mapping(walk: Walk) -> tuple[str, ...]:
    notes = []
    if walk.loose:
        notes.append(f"{walk.loose} tensors are in lists or under keys that are not text")
    if walk.opaque:
        notes.append(f"it holds {count_noun(walk.opaque.total(), 'object')} ({_list_common_names(walk.opaque)})")
    return tuple(notes)


def _suggest_state_dict(walk: Walk) -> tuple[str, ...]:
    if walk.modules:
        own = "" if walk.modules.startswith("torch.") else f" (a {show_key(walk.modules, 80)})"
        return (f"a whole module was pickled{own}: save `model.state_dict()` instead",)
    return ()


def _find_mapping(walk: Walk, root: str) -> _Chosen:
    """Return what lies under a root: all tensors whose joined names start with it.

    A root inside a list, an object or an optimizer is not the start of a joined name, but the path of a mapping.
    """
    prefix = f"{root}." if root else ""
    reached = [(walk.top, 0)] if isinstance(walk.top, PickledDict) else []
    nodes = _find_nodes(walk.top, root)
    for node, at in (*reached, *sorted(nodes, key=lambda pair: -pair[1])):
        chosen = _take_below(_join_mapping(walk, root, node, lambda path, nested: is_optimizer(nested)), prefix[at:])
        if any(isinstance(key, str) and isinstance(value, PickledTensor) for _, key, value in chosen.entries):
            return chosen
    notes = (format_candidates(walk.candidates),) if walk.candidates else _explain_no_mapping(walk)
    if not root:
        raise FileFault("RK416", "no mapping of tensors at the top level", notes=notes)
    raise make_missing_root(root, _list_all_roots(walk), notes)


def _take_below(chosen: _Chosen, prefix: str) -> _Chosen:
    """Return the entries whose names start with a prefix, without it."""
    if not prefix:
        return chosen
    entries = tuple(
        ("", f"{before}{key}"[len(prefix) :], value)
        for before, key, value in chosen.entries
        if isinstance(key, str) and f"{before}{key}".startswith(prefix)
    )
    return _Chosen(chosen.path, entries, frozenset())


def _list_all_roots(walk: Walk) -> tuple[Root, ...]:
    """Return the roots that may be a model's: the mappings, and the prefixes of their keys."""
    models = [
        candidate for candidate in walk.candidates if not walk.is_in_optimizer(candidate) and _can_be_model(candidate)
    ]
    paths = {candidate.path: candidate for candidate in models[:_SHOWN]}
    return list_roots(
        f"{path}.{key}" if path else key
        for path, candidate in paths.items()
        for key, value in candidate.items
        if isinstance(key, str) and isinstance(value, PickledTensor)
    )


def _find_nodes(top: Any, root: str) -> list[tuple[PickledDict, int]]:
    """Return the mappings that a path, or the start of it, can refer to, and where its rest begins.

    Keys may contain dots, so a path can be split in several ways. Each node is visited at most once for each position
    in the path, and at most `MAX_CANDIDATES` times in all.
    """
    nodes: dict[tuple[int, int], tuple[PickledDict, int]] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [(top, 0 if root else 1)]
    while waiting:
        node, at = waiting.pop()
        children = list_children(node)
        if children is None or (id(node), at) in seen or len(seen) > MAX_CANDIDATES:
            continue
        seen.add((id(node), at))
        if isinstance(node, PickledDict | Opaque):
            mapping = node if isinstance(node, PickledDict) else PickledDict(node.items or [])
            nodes[id(node), at] = (mapping, at)
        if at > len(root):
            continue
        for key, child in children:
            text = format_key(key)
            end = at + len(text)
            if is_node(child) and root.startswith(text, at) and root[end : end + 1] in ("", "."):
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


def _collect_tensors(chosen: _Chosen) -> dict[str, PickledTensor]:
    """Return the tensors of the chosen mapping; an object in place of a tensor is an error."""
    tensors: dict[str, PickledTensor] = {}
    for prefix, key, value in chosen.entries:
        if isinstance(value, PickledTensor):
            fqn = _check_key(prefix, key)
            if fqn in tensors:
                raise FileFault("RK406", f"duplicate key {show_key(fqn)!r}", key=fqn)
            tensors[fqn] = value
        elif isinstance(value, Opaque | Global) and not _is_extra(key, value):
            root = f"{chosen.path}." if chosen.path else ""
            raise _make_object_fault(value, show_key(f"{root}{prefix}{format_key(key)}"))
        elif isinstance(value, PickledStorage):
            raise FileFault("RK409", f"'{show_key(format_key(key))}' is a bare storage, not a tensor")
    return tensors


def _refuse_partitioned(walk: Walk, chosen: _Chosen, tensors: dict[str, PickledTensor]) -> None:
    """Raise if the parameters are elsewhere: ZeRO stage 3 leaves a tensor of shape [0] in place of each.

    DeepSpeed's own files name themselves by their top level; buffers are whole in them. Without these names, a
    `module` is one if all of its tensors, two or more, are empty. Empty tensors elsewhere are tensors.
    """
    empty = [fqn for fqn, tensor in tensors.items() if tensor.shape == (0,)]
    top = walk.top.items if isinstance(walk.top, PickledDict) else []
    of_deepspeed = any(key in ("ds_version", "param_shapes") for key, _ in top if isinstance(key, str))
    if not empty or not (of_deepspeed or (chosen.path == "module" and 1 < len(empty) == len(tensors))):
        return
    where = f" under {show_key(chosen.path)!r}" if chosen.path else ""
    number = f"{len(empty)} of {count_noun(len(tensors), 'tensor')}{where} {'is' if len(empty) == 1 else 'are'} empty"
    raise FileFault(
        "RK409",
        f"{number}, of shape [0]: ZeRO stage 3 has partitioned the parameters over its ranks",
        help=(
            "join them first, with the script that DeepSpeed put into that folder: python zero_to_fp32.py . OUT",
            "or save the model with stage3_gather_16bit_weights_on_model_save",
        ),
        notes=(list_names(empty),),
    )


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


def _check_key(prefix: str, key: Any) -> str:
    if not isinstance(key, str):
        text = repr(key) if isinstance(key, int | float | bool) else format_key(key)
        raise FileFault("RK406", f"a tensor under the key {show_key(text, 60)}, which is not text")
    if problem := find_name_problem(fqn := prefix + key):
        raise FileFault("RK406", f"a key {problem}", key=fqn)
    return fqn


def _describe_ignored(walk: Walk, chosen: _Chosen) -> Iterator[str]:
    if walk.opaque:
        objects = count_noun(walk.opaque.total(), "object was", "objects were")
        yield f"{objects} ignored ({_list_common_names(walk.opaque)})"
    values = [entry for entry in chosen.entries if not isinstance(entry[2], PickledTensor | Opaque)]
    if values:
        entries = (
            f"{show_key(prefix + format_key(key), 60)}: {describe_with_article(v)}" for prefix, key, v in values
        )
        count = count_noun(len(values), "entry", "entries")
        yield f"{count} beside the tensors ignored ({join_words(entries, SHOWN)})"
    aside = [candidate for candidate in walk.candidates if walk.is_in_optimizer(candidate)]
    if aside and not any(id(candidate.items) in chosen.parts for candidate in aside):
        tensors = sum(candidate.tensors for candidate in aside)
        yield f"the state of an optimizer was ignored ({count_noun(tensors, 'tensor')})"
    if outside := _count_outside(walk, chosen):
        yield describe_outside(chosen.path, outside)
    if walk.loose:
        ignored = count_noun(walk.loose, "tensor in lists", "tensors in lists")
        yield f"{ignored} or under keys that are not text {'was' if walk.loose == 1 else 'were'} ignored"


def _count_outside(walk: Walk, chosen: _Chosen) -> Counter[str]:
    """Count the tensors that are neither chosen nor an optimizer's, by the first key of their paths."""
    outside: Counter[str] = Counter()
    taken = {id(value) for _, _, value in chosen.entries}
    for candidate in walk.candidates:
        if id(candidate.items) in chosen.parts or walk.is_in_optimizer(candidate):
            continue
        path = candidate.place.list_ancestors()[1:2]
        for key, value in candidate.items:
            if isinstance(key, str) and isinstance(value, PickledTensor) and id(value) not in taken:
                outside[format_key(path[0].key) if path else key.partition(".")[0]] += 1
    return outside


def _describe_unused(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"the pickle names globals that none of its objects uses ({_list_first(names)}); they were not imported"


def _list_first(names: Sequence[str]) -> str:
    return join_words((show_key(name, 80) for name in names), SHOWN)


def _list_common_names(names: Counter[str]) -> str:
    return _list_first([name for name, _ in names.most_common()])
