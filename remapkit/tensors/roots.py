"""Roots of a state dict, from its names alone: prefixes of keys under which a state dict may be found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remapkit.tensors.spec import StateDictSpec

_MAX_DEPTH = 8
"""Roots of more segments are not listed: names from a file may have thousands of segments."""
_TRAINERS_OWN = re.compile(
    r"(?:^|[._])(?:optim(?:[A-Z]\w*|i[sz]er\w*|s)?|\w*schedulers?|\w*rng_states?|callbacks?|grad_scaler|scaler|amp|loops)"
    r"(?:[._]|$)"
)


@dataclass(frozen=True, slots=True)
class Root:
    """A prefix of keys, without its last dot, and the number of keys below it."""

    path: str
    keys: int


def is_trainers_own(path: str) -> bool:
    """Return whether a path names what a trainer saves for its own use: an optimizer, a scheduler, random states.

    >>> [is_trainers_own(path) for path in ("optimizer.state", "cuda_rng_state", "optical_flow", "net")]
    [True, True, False, False]
    """
    return _TRAINERS_OWN.search(path) is not None


def split_prefixes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return each name as the prefix that its file is mounted under, if the names are a header's, and the rest.

    >>> split_prefixes(StateDictSpec({"tp0.a.w": None, "tp1.a.w": None}, prefixes=("tp0.", "tp1.")))
    [('tp0.', 'a.w'), ('tp1.', 'a.w')]
    >>> split_prefixes(["tp0.a.w"])
    [('', 'tp0.a.w')]
    """
    prefixes = names.prefixes if isinstance(names, StateDictSpec) else ("",)
    if prefixes == ("",):
        return [("", name) for name in names]
    longest_first = sorted({*prefixes, ""}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    cuts = ((name, found.end()) for name in names if (found := pattern.match(name)))
    return [(name[:end], name[end:]) for name, end in cuts]


def list_roots(names: Iterable[str]) -> tuple[Root, ...]:
    """Return the prefixes that may be a root, those with most keys first, the outer one first among equals.

    A header is an iterable of names too; its roots lie behind the prefixes of its mounts. A prefix with a number is a
    layer, not a root, and what a trainer saves for its own use is never one.

    >>> [(root.path, root.keys) for root in list_roots(["net.unet.in.weight", "net.unet.h.0.bias", "step"])]
    [('net', 2), ('net.unet', 2), ('net.unet.in', 1), ('net.unet.h', 1)]
    """
    counts: Counter[str] = Counter()
    # Keys of one module share their prefixes: each module's prefixes are listed once.
    modules = Counter(name.rpartition(".")[0] for _, name in split_prefixes(names))
    for module, count in modules.items():
        path = ""
        for segment in module.split(".", _MAX_DEPTH)[:_MAX_DEPTH] if module else ():
            if segment.isdecimal():
                break
            path = f"{path}.{segment}" if path else segment
            counts[path] += count
    found = [Root(path, count) for path, count in counts.items() if not is_trainers_own(path)]
    return tuple(sorted(found, key=lambda root: (-root.keys, root.path.count("."))))


def suggest_roots(roots: Sequence[Root], written: str) -> tuple[str, ...]:
    """Return the roots that a user who wrote `written` may mean, the nearest first; at most three.

    >>> roots = list_roots(["model.diffusion_model.a.weight", "first_stage_model.b.weight"])
    >>> suggest_roots(roots, "diffusion_model"), suggest_roots(roots, "model.difusion_model")
    (('model.diffusion_model',), ('model.diffusion_model',))
    """
    paths = [root.path for root in roots[:1000]]
    ends = [path for path in paths if path.endswith(f".{written}")]
    if ends:
        return tuple(ends[:3])
    from difflib import get_close_matches  # takes 2 ms and is needed only after a mistake

    return tuple(get_close_matches(written[:200], paths, 1, 0.75))
