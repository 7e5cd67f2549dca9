"""Converters of state dicts: `py:module:function` or `file.py:NAME`, as one call from state dict to state dict.

Naming one runs its code, like `--model`: nothing but the caller's own word ever gets here.
"""

from __future__ import annotations

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
_MAPPER_PARTS = ("orig_to_new_regex", "orig_to_new_substr", "orig_to_new_prefix", "orig_to_new_suffix")

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
    path, _, name = reference.rpartition(":")
    if not reference.startswith("py:") and path.endswith(".py"):
        value = _get_attribute(reference, _load_file(Path(path), reference), name)
    elif not reference.startswith("py:") and reference.endswith(".py"):
        title = f"{reference} names a file, but nothing in it"
        raise UsageError(Diagnostic("RK668", title, help=(f"add the name of the function: {reference}:NAME",)))
    else:
        value = resolve_value(reference)
    rename = _read_renames(reference, value)
    if rename is not None and not args:
        return Converter(reference, lambda state: _rename_keys(state, rename))
    apply = getattr(value, "apply", None)
    if callable(apply) and not isinstance(value, type) and not inspect.isroutine(value) and not args:
        # A mapper takes pairs and yields pairs.
        return Converter(reference, lambda state: dict(apply(state.items())))
    if not callable(value) or (rename is not None and args):
        what = f"{reference} is a {type(value).__name__}"
        title = f"{what}, which takes no --arg" if rename is not None else f"{what}, which converts no state dict"
        raise UsageError(Diagnostic("RK668", title, help=_HELP))
    return Converter(reference, _bind_arguments(reference, value, dict(args or {})))


def _load_file(path: Path, reference: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(Diagnostic("RK603", f"{reference}: there is no file {path}", help=("check the path",)))
    # A name of its own: the file must not hide a module of the same name. `dataclasses` look it up in `sys.modules`.
    digest = hashlib.blake2b(str(path.resolve()).encode(errors="surrogateescape"), digest_size=6).hexdigest()
    spec = importlib.util.spec_from_file_location(f"_remapkit_converter_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
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
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have none
        return lambda state: function(state, **args)
    kinds = inspect.Parameter
    named = [each for each in parameters.values() if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    free = [each for each in named if each.name not in args]
    places = [each for each in free if each.name in _STATE_NAMES] or free
    variable = any(each.kind is kinds.VAR_POSITIONAL for each in parameters.values())
    place = places[0] if places else None
    needed = [
        each.name for each in free if each is not place and each.default is kinds.empty and each.name not in args
    ]
    unknown = [
        name for name in args if name not in {each.name for each in named if each.kind != kinds.POSITIONAL_ONLY}
    ]
    if any(each.kind is kinds.VAR_KEYWORD for each in parameters.values()):
        unknown = []
    if needed:
        title = f"{reference} also needs {join_words(needed)}"
        raise UsageError(Diagnostic("RK607", title, help=(f"pass --arg {needed[0]}=value",)))
    if unknown:
        known = [each.name for each in named if each is not place]
        help = (suggest_name(unknown[0], known, f"it takes {join_words(known) if known else 'no arguments'}"),)
        raise UsageError(Diagnostic("RK607", f"{reference} takes no argument {unknown[0]!r}", help=help))
    if place is None:
        if not variable:
            raise UsageError(Diagnostic("RK607", f"{reference} takes no state dict", help=_HELP))
        return lambda state: function(state, **args)
    if place.kind is kinds.POSITIONAL_ONLY or place is named[0]:
        return lambda state: function(state, **args)
    return lambda state: function(**{place.name: state, **args})


# ------------------------------------------------------------------------------------------------ tables of renames


def _read_renames(reference: str, value: object) -> Rename | None:
    """Return the renaming that a table, or a mapper without `apply`, describes; None for anything else."""
    if isinstance(value, Mapping) or (isinstance(value, list | tuple) and value):
        return _make_substitutions(reference, value.items() if isinstance(value, Mapping) else value)
    if any(isinstance(getattr(value, part, None), Mapping) for part in _MAPPER_PARTS):
        return None if callable(getattr(value, "apply", None)) else lambda key: _map_name(value, key)
    return None


def _make_substitutions(reference: str, pairs: Iterable[Any]) -> Rename:
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
            key = pattern.sub(new, key)
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
