"""Values of options parsed: `--model-arg key=value`, sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError


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
