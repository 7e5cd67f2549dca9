"""Values of options parsed: `--model-arg key=value`, sizes."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.models.target import TargetRef


def parse_model_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; a value that is JSON is read as such, anything else is a string.

    >>> parse_model_args(["dim=8", "dim_mult=[1, 2]", "name=tiny"])
    {'dim': 8, 'dim_mult': [1, 2], 'name': 'tiny'}
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                Diagnostic("RK609", f"--model-arg {pair!r} is not key=value", help=("for example --model-arg dim=8",))
            )
        try:
            parsed[key] = json.loads(value)
        except (ValueError, RecursionError):
            parsed[key] = value
    return parsed


def parse_target(args: Namespace) -> TargetRef | None:
    """What `--model`, `--model-arg`, `--model-config` and `--target-keys` say; None where they say nothing."""
    if args.model and args.target_keys:
        raise UsageError(Diagnostic("RK609", "--model and --target-keys are two targets", help=("name one",)))
    if not args.model and (args.model_arg or args.model_config):
        raise UsageError(Diagnostic("RK609", "--model-arg and --model-config need --model"))
    if not args.model and not args.target_keys:
        return None
    return TargetRef(
        model=args.model,
        args=parse_model_args(args.model_arg),
        config=Path(args.model_config) if args.model_config else None,
        keys=Path(args.target_keys) if args.target_keys else None,
    )
