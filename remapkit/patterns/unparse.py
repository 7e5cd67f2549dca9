"""Write pattern trees as regular expressions."""

from __future__ import annotations

from remapkit.patterns.charset import LAST, Ranges, complement
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Seq

_SPECIAL = frozenset(r"\.^$*+?{}[]|()")


_NAMED = {9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r"}


def unparse(node: PatternNode) -> str:
    r"""Write a tree as a regular expression in the dialect of `regex.py`; it means the same to `re`, with any flags.

    >>> from remapkit.patterns.pattern import SEGMENTS
    >>> unparse(SEGMENTS)
    '[^.]+(?:\\.[^.]+)*'
    """
    if isinstance(node, Chars):
        return unparse_chars(node.chars)
    if isinstance(node, Seq):
        return "".join(unparse(item) for item in node.items)
    if isinstance(node, Alt):
        return f"(?:{'|'.join(unparse(branch) for branch in node.branches)})"
    if isinstance(node, Group):
        return f"(?P<{node.name}>{_unparse_bare(node.item)})"
    return _unparse_atom(node.item) + _unparse_quantifier(node.low, node.high)


def _unparse_bare(node: PatternNode) -> str:
    if isinstance(node, Alt):
        return "|".join(unparse(branch) for branch in node.branches)
    return unparse(node)


def _unparse_atom(node: PatternNode) -> str:
    if isinstance(node, Seq) and len(node.items) == 1:
        return _unparse_atom(node.items[0])
    return unparse(node) if isinstance(node, Chars | Alt) else f"(?:{unparse(node)})"


def _unparse_quantifier(low: int, high: int | None) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
    if short is not None:
        return short
    if low == high:
        return f"{{{low}}}"
    return f"{{{low},{'' if high is None else high}}}"


def unparse_chars(chars: Ranges) -> str:
    """Write one character, or a class.

    >>> from remapkit.patterns.charset import DIGITS, NOT_DOT, singleton
    >>> unparse_chars(DIGITS), unparse_chars(NOT_DOT), unparse_chars(singleton("."))
    ('[0-9]', '[^.]', '\\\\.')
    """
    if not chars:
        return r"[^\x00-\U0010ffff]"
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return _escape_character(chars[0][0], _SPECIAL)
    if chars[-1][1] == LAST and chars[0] != (0, LAST):
        return f"[^{_unparse_members(complement(chars))}]"
    return f"[{_unparse_members(chars)}]"


def _unparse_members(chars: Ranges) -> str:
    inner = frozenset("\\]^-[&~|")
    written = []
    for low, high in chars:
        if high - low < 2:
            written += [_escape_character(code, inner) for code in range(low, high + 1)]
        else:
            written.append(f"{_escape_character(low, inner)}-{_escape_character(high, inner)}")
    return "".join(written)


def _escape_character(code: int, special: frozenset[str]) -> str:
    character = chr(code)
    if character in special:
        return "\\" + character
    if code in _NAMED:
        return _NAMED[code]
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
