"""Sizes written with units."""

from __future__ import annotations

import re

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(I?)B?", re.ASCII | re.IGNORECASE)


def parse_size(size: str | int) -> int:
    """Parse a number of bytes: digits with a decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB) unit, or none.

    Raises `UsageError` (RK613) for anything else, and for less than one byte.

    >>> parse_size("5GB"), parse_size("1.5 GiB"), parse_size("4096")
    (5000000000, 1610612736, 4096)
    """
    found = _SIZE.fullmatch(str(size).strip())
    if found is None or (found[3] and not found[2]):
        raise _make_size_error(f"{size!r} is not a size")
    base = 1024 if found[3] else 1000
    nbytes = int(float(found[1]) * base ** " KMGTP".index(found[2].upper() or " "))
    if nbytes < 1:
        raise _make_size_error(f"a size must be at least one byte, got {size!r}")
    return nbytes


def _make_size_error(title: str) -> UsageError:
    return UsageError(Diagnostic("RK613", title, help=("write it like 5GB, 500MB or 2GiB",)))
