"""Converters of state dicts: `py:module:function` or `file.py:NAME`, as one call from state dict to state dict.

Naming one runs its code, like `--model`: nothing but the caller's own word ever gets here.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import join_words, suggest_name
from remapkit.models.isolation import isolate_guest
from remapkit.models.reference import resolve_value

_HELP = (
    "name a function: py:package.module:function, or file.py:NAME",
    "or a mapping or a list of pairs of regular expressions, applied with re.sub in order; or a mapper with `apply`",
)
_STATE_NAMES = ("checkpoint", "state_dict", "sd", "ckpt", "weights", "tensors", "original_state_dict")
"""Names of the parameter that takes the state dict, if it is not the first one."""
_FIRST_ONLY = "_checkpoint_conversion_mapping"
"""Tables of this name, of classes of transformers, are applied up to the first expression that is found in a key."""
_MAPPER_PARTS = ("orig_to_new_regex", "orig_to_new_substr", "orig_to_new_prefix", "orig_to_new_suffix")
_STACKED = "orig_to_new_stacked"

State = dict[str, Any]
Rename = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Converter:
    """A converter: `call` runs it on a state dict that it may change, and returns what it returns."""

    reference: str
    call: Callable[[State], Any] = field(repr=False)


def resolve_converter(reference: str, args: Mapping[str, Any] | None = None) -> Converter:
    """Return the converter that a reference names; `args` are keyword arguments of a function.

    Raises `UsageError`: RK603, RK604 for what cannot be imported, RK668 for what is no converter, RK607 for arguments
    that do not fit.

    >>> dict(resolve_converter("py:collections:OrderedDict").call({"w": 1}))
    {'w': 1}
    """
    value = _find_value(reference)
    rename = _read_renames(reference, value, first_only=reference.endswith(_FIRST_ONLY))
    apply = getattr(value, "apply", None)
    is_mapper = callable(apply) and not isinstance(value, type) and not inspect.isroutine(value)
    if (rename is not None or is_mapper) and args:
        title = f"{reference} is {name_type(value)}, which takes no --arg"
        raise UsageError(Diagnostic("RK668", title, help=_HELP))
    if rename is not None:
        return Converter(reference, lambda state: _rename_keys(state, rename))
    if is_mapper and apply is not None:
        # A mapper takes pairs and yields pairs.
        return Converter(reference, lambda state: dict(apply(state.items())))
    if not callable(value):
        title = f"{reference} is {name_type(value)}, which converts no state dict"
        raise UsageError(Diagnostic("RK668", title, help=_HELP))
    return Converter(reference, _bind_arguments(reference, value, dict(args or {})))


def name_type(value: object) -> str:
    """Return the name of a value's type with its article.

    >>> name_type(3), name_type([])
    ('an int', 'a list')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _find_value(reference: str) -> Any:
    """Return what the reference names, in a file or a module; runs its code."""
    path, _, name = reference.rpartition(":")
    if reference.startswith("py:"):
        return resolve_value(reference)
    if path.endswith(".py"):
        return _get_attribute(reference, _load_file(Path(path), reference), name)
    if reference.endswith(".py"):
        title = f"{reference} names a file, but nothing in it"
        raise UsageError(Diagnostic("RK668", title, help=(f"add the name of the function: {reference}:NAME",)))
    if not path or not name or "/" in reference or "\\" in reference:
        raise UsageError(Diagnostic("RK668", f"{reference!r} names no converter", help=_HELP))
    return resolve_value(reference)


def _load_file(path: Path, reference: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(Diagnostic("RK603", f"{reference}: there is no file {path}", help=("check the path",)))
    # A name of its own: the file must not hide a module of the same name. `dataclasses` look it up in `sys.modules`.
    digest = hashlib.blake2b(str(path.resolve()).encode(errors="surrogateescape"), digest_size=6).hexdigest()
    spec = importlib.util.spec_from_file_location(f"_remapkit_converter_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if (folder := str(path.resolve().parent)) not in sys.path:
        # As in `python file.py`, it may import its neighbours. The folder stays: it may do so only when it is called.
        # It comes last: there, in contrast to `python file.py`, no neighbour hides a module of ours or of torch.
        sys.path.append(folder)
    try:
        with isolate_guest():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        cause = f"{type(error).__name__}: {error}"
        raise UsageError(Diagnostic("RK604", f"{reference}: running {path} failed", notes=(cause,))) from error
    return module


def _get_attribute(reference: str, value: Any, name: str) -> Any:
    for part in name.split("."):
        if not part or not hasattr(value, part):
            known = [each for each in dir(value) if not each.startswith("_")]
            title = f"{reference}: there is no {part!r} in it"
            help = tuple(filter(None, [suggest_name(part, known)]))
            raise UsageError(Diagnostic("RK603", title, help=help))
        value = getattr(value, part)
    return value


def _bind_arguments(reference: str, function: Callable[..., Any], args: dict[str, Any]) -> Callable[[State], Any]:
    """Return a call that passes the state dict where the function expects it; RK607 for arguments that do not fit."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        return lambda state: function(state, **args)
    kinds = inspect.Parameter
    kept = [each for each in parameters if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    free = [each for each in kept if each.name not in args]
    plain = [each for each in free if each.kind is not kinds.KEYWORD_ONLY]
    place = next((each for each in free if each.name in _STATE_NAMES), plain[0] if plain else None)
    if place is None and not any(each.kind is kinds.VAR_POSITIONAL for each in parameters):
        raise UsageError(Diagnostic("RK607", f"{reference} takes no state dict", help=_HELP))
    needed = [each.name for each in free if each is not place and each.default is kinds.empty]
    if needed:
        title = f"{reference} also needs {join_words(needed)}"
        raise UsageError(Diagnostic("RK607", title, help=(f"pass --arg {needed[0]}=value",)))
    takes_any = any(each.kind is kinds.VAR_KEYWORD for each in parameters)
    named = [each.name for each in kept if each is not place and each.kind != kinds.POSITIONAL_ONLY]
    unknown = [name for name in args if name not in named and not takes_any]
    if unknown:
        help = (suggest_name(unknown[0], named, f"it takes {join_words(named) if named else 'no arguments'}"),)
        raise UsageError(Diagnostic("RK607", f"{reference} takes no argument {unknown[0]!r}", help=help))
    # Each call gets arguments of its own: it may change them.
    if place is None or place.kind is kinds.POSITIONAL_ONLY or place is kept[0]:
        return lambda state: function(state, **copy.deepcopy(args))
    return lambda state: function(**{place.name: state, **copy.deepcopy(args)})


# ------------------------------------------------------------------------------------------------ tables of renames


def _read_renames(reference: str, value: object, *, first_only: bool) -> Rename | None:
    """Return the renaming that a table, or a mapper without `apply`, describes; None for anything else."""
    if isinstance(value, Mapping) or (isinstance(value, list | tuple) and value):
        pairs = value.items() if isinstance(value, Mapping) else value
        return _make_substitutions(reference, pairs, first_only=first_only)
    if callable(getattr(value, "apply", None)):
        return None
    if getattr(value, _STACKED, None):
        title = f"{reference} has {_STACKED}: how its shards are joined is known to the model's loader only"
        help = ("name a function from state dict to state dict that joins them, or a mapper with `apply`",)
        raise UsageError(Diagnostic("RK668", title, help=help))
    if any(isinstance(getattr(value, part, None), Mapping) for part in _MAPPER_PARTS):
        return lambda key: _map_name(value, key)
    return None


def _make_substitutions(reference: str, pairs: Iterable[Any], *, first_only: bool) -> Rename:
    steps = []
    for number, pair in enumerate(pairs, 1):
        try:
            pattern, new = pair
            steps.append((re.compile(pattern), new))
            if not isinstance(new, str) and not callable(new):
                raise TypeError(f"{new!r} is no replacement")
        except (TypeError, ValueError, re.error) as error:
            title = f"{reference}: entry {number} is no pair of a regular expression and its replacement"
            raise UsageError(Diagnostic("RK668", title, notes=(str(error),), help=_HELP)) from error

    def rename(key: str) -> str:
        for pattern, new in steps:
            key, count = pattern.subn(new, key)
            if count and first_only:
                break
        return key

    return rename


def _map_name(mapper: object, key: str) -> str | None:
    """Rename as vLLM does: regular expressions, substrings, prefixes, suffixes; None drops the key."""
    regexes, substrings, prefixes, suffixes = (getattr(mapper, part, None) or {} for part in _MAPPER_PARTS)
    for pattern, new in regexes.items():
        if re.search(pattern, key):
            if new is None:
                return None
            key = re.sub(pattern, new, key)
    for old, new in substrings.items():
        if old in key:
            if new is None:
                return None
            key = key.replace(old, new, 1)
    for old, new in prefixes.items():
        if key.startswith(old):
            if new is None:
                return None
            key = new + key[len(old) :]
    for old, new in suffixes.items():
        if key.endswith(old):
            if new is None:
                return None
            key = key[: len(key) - len(old)] + new
    return key


def _rename_keys(state: State, rename: Rename) -> State:
    found = {}
    for key, value in state.items():
        new = rename(key)
        if new is not None:
            found[new] = value
    return found
