"""Format counts, sizes, lists and names for messages; all messages use these functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_bytes(nbytes: float) -> str:
    """Format a number of bytes for people, in powers of ten.

    >>> format_bytes(16), format_bytes(2_818_754_672), format_bytes(4398046511104)
    ('16 B', '2.82 GB', '4.40 TB')
    """
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    value = nbytes
    for unit in ("kB", "MB", "GB", "TB", "PB", "EB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{value:.3g} EB"


def format_bytes_part(done: int, total: int) -> str:
    """Format a part of a number of bytes, in the unit of the total.

    >>> format_bytes_part(1_100_000_000, 2_818_754_672), format_bytes_part(0, 16)
    ('1.10 of 2.82 GB', '0 of 16 B')
    """
    whole, unit = format_bytes(total).split()
    power = ("B", "kB", "MB", "GB", "TB", "PB", "EB").index(unit)
    decimals = len(whole.partition(".")[2])
    return f"{done / 1000**power:.{decimals}f} of {whole} {unit}"


def escape_line(text: str) -> str:
    r"""Make untrusted text safe within a line: escape control and reordering characters and lone surrogates.

    A name must not control a terminal, start a new line or display reversed.

    >>> escape_line("a\x1b[2J\nerror: b")
    'a\\x1b[2J\\nerror: b'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def show_key(key: str, width: int = 200) -> str:
    """Format a key for messages: escaped, and truncated to `width`."""
    text = escape_line(key)
    return text if len(text) <= width else f"{text[: width - 20]}... ({len(key)} characters)"


def count_noun(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun.

    >>> count_noun(1, "key"), count_noun(2, "key"), count_noun(3, "entry", "entries")
    ('1 key', '2 keys', '3 entries')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def join_words(words: Iterable[str], limit: int | None = None, conjunction: str = "and") -> str:
    """Join distinct words for a sentence: at most `limit`, then the number of remaining ones.

    >>> join_words(["a"]), join_words(["a", "b", "c", "b"], conjunction="or"), join_words("abcd", 2)
    ('a', 'a, b or c', 'a, b and 2 more')
    """
    distinct = list(dict.fromkeys(words)) or [""]
    if limit is not None and len(distinct) > limit:
        distinct[limit:] = [f"{len(distinct) - limit} more"]
    *before, last = distinct
    return f"{', '.join(before)} {conjunction} {last}" if before else last


SHOWN = 5
"""The most keys that a message names; it only counts the rest. JSON output always has all of them."""


def list_names(fqns: Sequence[str], limit: int = SHOWN) -> str:
    """List the first few keys, one per line, and the number of remaining ones.

    >>> print(list_names(["a", "b", "c"], 2))
    a
    b
    ... and 1 more
    """
    lines = [escape_line(fqn) for fqn in fqns[:limit]]
    if len(fqns) > limit:
        lines.append(f"... and {len(fqns) - limit} more")
    return "\n".join(lines)


def find_close_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to a misspelled one, or None if none is close."""
    from difflib import get_close_matches  # takes 2 ms and is needed only after a mistake

    names = list(known)
    close = get_close_matches(name, names, n=1) or get_close_matches(name.lower().strip(), names, n=1)
    return close[0] if close else None


def suggest_name(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the help for an unknown name: the closest known name, or `otherwise` if none is close.

    >>> suggest_name("pth", ["path", "match"]), suggest_name("x", ["path"], "known: path")
    ("did you mean 'path'?", 'known: path')
    """
    close = find_close_name(name, known)
    return f"did you mean {close!r}?" if close is not None else otherwise


def quote_excerpt(text: str, limit: int = 60) -> str:
    """Format a text for a message: quoted, escaped, and truncated to `limit`.

    >>> print(quote_excerpt("a\\tb"), quote_excerpt("x" * 100, 5))
    'a\\tb' 'xxxxx…'
    """
    return repr(text if len(text) <= limit else text[:limit] + "…")
