"""The only reader of JSON: headers, manifests, indexes, configs, journals. Refuses ambiguity, in bounded time.

Refused: anything but a regular file (a pipe or a device would never end), files larger than any real one of their
kind, duplicate names, numbers of hundreds of digits, NaN, and nesting deeper than in any real file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import FileFault
from remapkit.files.source_file import SourceFile

MAX_MANIFEST = 100_000_000
"""The largest manifest or index that is read, in bytes; a manifest takes about 80 bytes per tensor."""
MAX_SMALL = 10_000_000
"""The largest config, list of pairs or witness, in bytes."""
HEADER_DIGITS = 20
"""2^64 has 20 digits: longer numbers are meaningless in a header."""
_MAX_DIGITS = 400
"""The most digits of an integer in any other file. Parsing a million digits would take minutes."""

MAX_TENSORS = 1_000_000
"""The most tensors in a file; each costs about 2 kB of memory."""


def read_json(source: SourceFile) -> Any:
    """Parse a manifest or an index; raises `FileFault` (RK408)."""
    if source.size > MAX_MANIFEST:
        limit = format_bytes(MAX_MANIFEST)
        title = f"the file is {format_bytes(source.size)}; a manifest or an index has at most {limit}"
        raise FileFault("RK408", title)
    return parse_json(source.read(0, source.size), digits=HEADER_DIGITS)


def read_json_file(path: Path, limit: int = MAX_SMALL) -> Any:
    """Parse a small JSON file; raises `UnreadableCheckpoint`: RK400 if it cannot be opened, otherwise RK408."""
    source = SourceFile(path)
    try:
        if source.size > limit:
            raise FileFault(
                "RK408", f"the file is {format_bytes(source.size)}; at most {format_bytes(limit)} are read"
            )
        return parse_json(source.read(0, source.size))
    except FileFault as fault:
        raise fault.at(path) from None
    finally:
        source.close()


def parse_json(
    raw: bytes, what: str = "the file", code: str = "RK408", *, digits: int = _MAX_DIGITS, signed: bool = True
) -> Any:
    """Parse JSON; raises `FileFault` with `code`, whose message calls the bytes `what`.

    Integers have at most `digits` digits, and no minus (not even -0) if `signed` is False.

    >>> parse_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    """

    def raise_fault(title: str, key: str | None = None) -> NoReturn:
        raise FileFault(code, title, key=key)

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) != len(pairs) and (name := _find_duplicate(pairs)) is not None:
            raise_fault(f"duplicate name {show_key(name)!r} in {what}", name)
        return built

    def parse_integer(written: str) -> int:
        if written.startswith("-") and not signed:
            raise_fault(f"{what} holds the negative number {show_key(written, 40)}")
        if len(written.lstrip("-")) > digits:
            raise_fault(f"{what} holds a number of {len(written)} digits")
        return int(written)

    def refuse_constant(name: str) -> NoReturn:
        raise_fault(f"{what} holds {name}, which is not a JSON number")

    if problem := _find_size_problem(raw):
        raise_fault(f"{what} {problem}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise_fault(f"{what} is not UTF-8: byte {error.start}")
    # Without a hook, numbers are parsed in C. Python accepts -0, which a header must not contain.
    is_plain = (signed or b"-" not in raw) and not re.search(rb"[0-9]{%d}" % (digits + 1), raw)
    parse_int = None if is_plain else parse_integer
    try:
        return json.loads(text, object_pairs_hook=build_object, parse_int=parse_int, parse_constant=refuse_constant)
    except RecursionError:
        raise_fault(f"{what} is nested too deeply")
    except json.JSONDecodeError as error:
        raise_fault(f"{what} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except ValueError as error:
        raise_fault(f"{what} is not valid JSON: {error}")


def _find_duplicate(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def _find_size_problem(raw: bytes) -> str | None:
    """Return why the JSON of a header, a manifest or an index would take far more memory than its bytes, or None.

    Counted before parsing: `{}` is two bytes and becomes 64 in memory, and much more if it is not empty.

    >>> _find_size_problem(b"[" * 4_000_000)
    'opens 4000000 lists and objects: more than 1000000 tensors could need'
    """
    containers = raw.count(b"[") + raw.count(b"{")
    if containers > 3 * MAX_TENSORS + 100:
        return f"opens {containers} lists and objects: more than {MAX_TENSORS} tensors could need"
    values = raw.count(b",")
    if values > 8 * MAX_TENSORS:
        return f"holds {values} values: more than {MAX_TENSORS} tensors could need"
    return None
