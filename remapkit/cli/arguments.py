"""Parsing of option values: `--model-arg key=value`, `--param name=number`, and the groups that commands share."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError

_PYTHON = {"None": None, "True": True, "False": False}


def parse_model_args(pairs: Sequence[str], option: str = "--model-arg") -> dict[str, Any]:
    """Parse `key=value` pairs; JSON and None, True and False are parsed, anything else is a string.

    Raises `UsageError` (RK609) for anything else than pairs, and for a key that is given twice.

    >>> parse_model_args(["dim=8", "dim_mult=[1, 2]", "name=tiny", "bias=False"])
    {'dim': 8, 'dim_mult': [1, 2], 'name': 'tiny', 'bias': False}
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                Diagnostic("RK609", f"{option} {pair!r} is not key=value", help=(f"for example {option} dim=8",))
            )
        if key in parsed:
            help = ("give each argument once; a list is written as JSON: key=[1, 2]",)
            raise UsageError(Diagnostic("RK609", f"{option} {key} is given twice", help=help))
        try:
            parsed[key] = _PYTHON[value] if value in _PYTHON else json.loads(value)
        except (ValueError, RecursionError):
            parsed[key] = value
    return parsed


def parse_params(written: Sequence[str]) -> dict[str, int | Sequence[int]]:
    """Parse `name=number` and `name=number,number`; raises `UsageError` (RK640) for anything else.

    >>> parse_params(["heads=40", "kv_heads=1,1,2", "offset=8,"])
    {'heads': 40, 'kv_heads': (1, 1, 2), 'offset': (8,)}
    """
    found: dict[str, int | Sequence[int]] = {}
    for text in written:
        name, sign, value = text.partition("=")
        numbers: tuple[int, ...] = ()
        try:
            numbers = tuple(map(int, value.removesuffix(",").split(",")))
        except ValueError:
            sign = ""
        if not sign or not name or name in found:
            what = "is given twice" if name in found else "must be NAME=NUMBER, with a whole number"
            help = ("write it like --param heads=40, and a list like --param kv_heads=1,1,2",)
            raise UsageError(Diagnostic("RK640", f"--param {text} {what}", help=help))
        found[name] = numbers if "," in value else numbers[0]
    return found


def get_param_options(args: Namespace) -> dict[str, Any]:
    """Return `--param` and `--config` as keywords."""
    return {"params": parse_params(args.param), "config": args.config}


def get_model_options(args: Namespace) -> dict[str, Any]:
    """Return `--model-arg` and `--model-config` as keywords."""
    return {"model_args": parse_model_args(args.model_arg), "model_config": args.model_config}


def get_target_options(args: Namespace) -> dict[str, Any]:
    """Return the options that name a target as keywords."""
    target = {"model": args.model, "target_keys": args.target_keys, "strict_dtype": args.strict_dtype}
    return {**target, **get_model_options(args)}


def get_reading_options(args: Namespace) -> dict[str, Any]:
    """Return the options for reading checkpoints, except `--root`, as keywords."""
    return {name: getattr(args, name) for name in ("strip", "strict_pickle", "allow_expand", "follow_links")}


def get_writing_options(args: Namespace) -> dict[str, Any]:
    """Return the options that every command that writes a checkpoint has, with those of its target and of reading."""
    names = ("to_format", "dtype", "shard_size", "dry_run", "verify", "untie", "force", "partial", "allow_undecided")
    own = {name: getattr(args, name) for name in (*names, "root")}
    return {**own, **get_target_options(args), **get_param_options(args), **get_reading_options(args)}


def get_adapter_options(args: Namespace) -> dict[str, Any]:
    """Return the options for adapters as keywords."""
    return {name: getattr(args, name) for name in ("adapter_format", "fold_alpha", "alpha", "base")}


def make_option_error(title: str, *help: str) -> UsageError:
    """Return the error for options that do not go together."""
    return UsageError(Diagnostic("RK609", title, help=help))
