r"""Check and write literal text in paths, templates, guards and tables.

Text outside braces is literal. Characters with a special meaning in regular expressions, globs and shells
(`* ? \ ^ $ ( ) [ ] |`), spaces, quotes and invisible characters are rejected there: otherwise `attn_*` would pass the
proof but match no key. A name with such characters is written as a quoted literal: `layers{'[0]'}`, with `''` for a
quote inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Text
from remapkit.rulefile.names import choose_name
from remapkit.rulefile.yaml.emit import quote_text
from remapkit.tensors.spec import find_name_problem

QUOTED = re.compile(r"\{'((?:[^']|'')*)'\}")
"""A quoted literal; `''` is one quote."""
_SPECIAL = frozenset("*?\\^$()[]|")
_QUOTES = frozenset("'\"`´‘’‚‛“”„‟«»‹›＂＇")
_SHOWN = 5


def is_plain(sign: str) -> bool:
    """Return whether a character is literal outside quoted literals (braces are left to the parsers).

    >>> [sign for sign in "a-é.*[ '" if not is_plain(sign)]
    ['*', '[', ' ', "'"]
    """
    return sign.isprintable() and sign != " " and sign not in _SPECIAL and sign not in _QUOTES


def literal_text(name: str) -> str:
    """Write a name as literal text, for a path, a template, a guard or a table.

    >>> literal_text("a.weight"), literal_text("x[0].w"), literal_text("it's {n}")
    ('a.weight', "x{'[0]'}.w", "it{'''s {n}'}")
    """
    return ".".join(map(_write_segment, name.split(".")))


def _write_segment(text: str) -> str:
    odd = [place for place, sign in enumerate(text) if sign in "{}" or not is_plain(sign)]
    if not odd:
        return text
    start, end = odd[0], odd[-1] + 1
    return text[:start] + "{" + choice_text(text[start:end], always=True) + "}" + text[end:]


def choice_text(word: str, *, always: bool = False) -> str:
    """Write a word as one of the choices of a capture, quoted if it is not plain.

    >>> choice_text("weight"), choice_text("w*")
    ('weight', "'w*'")
    """
    if not always and word and all(is_plain(sign) and sign not in "{}" for sign in word):
        return word
    return "'" + word.replace("'", "''") + "'"


def unescape_quotes(found: str) -> str:
    """Replace each `''` in the content of a quoted literal by one quote.

    >>> unescape_quotes("it''s")
    "it's"
    """
    return found.replace("''", "'")


def read_quoted(text: Text, here: int, problems: list[Diagnostic]) -> tuple[str, int]:
    """Read the quoted literal at `here`; return its text and end. An unclosed one extends to the end of the text."""
    found = QUOTED.match(text.value, here)
    if found is not None and found[1]:
        return unescape_quotes(found[1]), found.end()
    end = found.end() if found is not None else len(text.value)
    title = "an empty quoted literal" if found is not None else "a quoted literal that is never closed"
    help = "leave it out" if found is not None else "close it with '}, and write '' for a quote in it"
    problems.append(Diagnostic("RK220", title, (Label(text.at(here, end)),), (help,)))
    return text.value[here:end], end


# ------------------------------------------------------------------------------------------------ the judge


_PATTERNS = {
    "a path": ("a path has no wildcards but captures; a regular expression is written as `match:`",),
    "a word of a guard": (
        "a guard lists words in full; leave it out, or bound the capture itself, as in {name:int}",
    ),
    "a leaf": ("`leaf:` lists words in full; to take others, leave it out and capture the last segment, {leaf}",),
}
"""What to write instead if a pattern was intended."""
TextRange = tuple[int, int]
"""The position of literal text in a value: start and end."""
Works = Callable[[str], bool]
"""Whether a spelling is a valid replacement for the rejected one."""


def check_literal_text(
    text: Text, what: str, stretches: Sequence[TextRange], works: Works, *, wildcards: bool = False
) -> Diagnostic | None:
    """Return the problem of the literal text of a value (RK219), or None.

    `what` describes the value, for example `a path`; only spellings that pass `works` are suggested. `wildcards`:
    captures are allowed, so one can be suggested for a `*`.
    """
    places = [here for start, end in stretches for here in range(start, end) if not is_plain(text.value[here])]
    if not places:
        return None
    signs = list(dict.fromkeys(describe_sign(text.value[here]) for here in places))
    got = ", ".join(signs[:_SHOWN]) + (", ..." if len(signs) > _SHOWN else "")
    allowed = "plain text" if what.startswith(("a word", "a key", "a value", "a leaf")) else "plain text and braces"
    labels = tuple(Label(text.at(*run)) for run in list(_join_places(places))[:_SHOWN])
    help = _suggest_spellings(text, stretches, works, wildcards)
    if any(text.value[here] in _SPECIAL for here in places):
        help += _PATTERNS.get(what, ())
    return Diagnostic("RK219", f"{what} must be {allowed}, got {got}", labels, help)


def check_key_characters(text: Text, what: str, value: str) -> Diagnostic | None:
    """Return the problem (RK219) if a literal, quoted or not, has a character that no key may have, else None."""
    problem = find_name_problem(value)
    if problem is None:
        return None
    return Diagnostic("RK219", f"{what} {problem}", (Label(text.span),), ("remove it: no key can contain it",))


def read_word(text: Text, what: str, problems: list[Diagnostic]) -> Text | None:
    """Read a word of literal text, including quoted literals; return None if it has a problem.

    >>> found = []
    >>> read_word(Text.of("w{'*'}"), "a word of a guard", found).value, found
    ('w*', [])
    >>> read_word(Text.of("w*"), "a word of a guard", found), found[0].title, found[0].help[0]
    (None, "a word of a guard must be plain text, got '*'", 'for these very characters write "w{\\'*\\'}"')
    """
    value, before = text.value, len(problems)
    if not value or (all(map(is_plain, value)) and not set("{}") & set(value)):
        return text
    signs: list[tuple[str, int]] = []
    stretches: list[TextRange] = []
    here = 0
    while here < len(value):
        if value.startswith("{'", here):
            start = here
            literal, here = read_quoted(text, start, problems)
            signs += [(sign, min(start + 2 + number, here - 1)) for number, sign in enumerate(literal)]
        else:
            stretches.append((here, here + 1))
            signs.append((value[here], here))
            here += 1
    read = "".join(sign for sign, _ in signs)
    found = (
        _check_braces(text, what, stretches)
        or check_literal_text(text, what, _join_stretches(stretches), _is_word)
        or check_key_characters(text, what, read)
    )
    problems += [found] if found is not None and len(problems) == before else []
    if len(problems) > before:
        return None
    first = [text.at(place, place).start for _, place in signs]
    return Text(read, text.span, (*first, text.at(len(value), len(value)).end))


def _check_braces(text: Text, what: str, stretches: Sequence[TextRange]) -> Diagnostic | None:
    """Return the problem of braces in a word; words have no captures."""
    places = [start for start, _ in stretches if text.value[start] in "{}"]
    if not places:
        return None
    labels = tuple(Label(text.at(*run)) for run in list(_join_places(places))[:_SHOWN])
    got = " and ".join(dict.fromkeys(repr(text.value[place]) for place in places))
    literal = quote_text(_escape_literals(text.value, _join_stretches(stretches)))
    help = ("only paths and templates have captures", f"for these very characters write {literal}")
    return Diagnostic("RK219", f"{what} must be plain text, got {got}", labels, help)


def _is_word(value: str) -> bool:
    problems: list[Diagnostic] = []
    return bool(value) and read_word(Text.of(value), "a word", problems) is not None


def describe_sign(sign: str) -> str:
    r"""Describe a character for a message.

    >>> describe_sign("*"), describe_sign(" "), describe_sign("\u200b")
    ("'*'", 'a space', 'U+200B')
    """
    if sign == " ":
        return "a space"
    return (f'"{sign}"' if sign == "'" else f"'{sign}'") if sign.isprintable() else f"U+{ord(sign):04X}"


def _join_places(places: Sequence[int]) -> Iterator[TextRange]:
    return iter(_join_stretches([(place, place + 1) for place in places]))


def _join_stretches(stretches: Sequence[TextRange]) -> list[TextRange]:
    """Join adjacent ranges."""
    joined: list[TextRange] = []
    for start, end in stretches:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


# ------------------------------------------------------------------------------------------------ the right spelling


def _suggest_spellings(text: Text, stretches: Sequence[TextRange], works: Works, wildcards: bool) -> tuple[str, ...]:
    meant = [
        each for each in _guess_spellings(text.value, stretches, wildcards) if each != text.value and works(each)
    ]
    help = []
    if meant:
        below = f", and {quote_text(meant[1])} for all below it" if len(meant) > 1 else ""
        help.append(f"write {quote_text(meant[0])}{below}")
    literal = _escape_literals(text.value, stretches)
    if works(literal):
        help.append(f"for these very characters write {quote_text(literal)}")
    elif not meant:
        start, end = next(each for each in stretches if not all(map(is_plain, text.value[slice(*each)])))
        help.append(f"for these very characters write {literal_text(text.value[start:end])}")
    return tuple(help)


def _escape_literals(value: str, stretches: Iterable[TextRange]) -> str:
    """Return a value with its literal text written by `literal_text`."""
    written, done = "", 0
    for start, end in stretches:
        written += value[done:start] + literal_text(value[start:end])
        done = end
    return written + value[done:]


_HELD = 0xF0000
_NAME = r"[A-Za-z_]\w*"
_WORDS = r"[\w-]+(?:\|[\w-]+)+"


def _guess_spellings(value: str, stretches: Sequence[TextRange], wildcards: bool) -> tuple[str, ...]:
    """Guess the path meant by shell, glob or regular expression syntax, plus a second one for all keys below it.

    Each field in braces is temporarily replaced by one private-use character, so that its content is not changed.
    """
    held: list[str] = []
    shape, done = "", 0
    for start, end in (*stretches, (len(value), len(value))):
        if start > done:
            shape += chr(_HELD + len(held))
            held.append(value[done:start])
        shape += value[start:end]
        done = end
    if len(held) > 1000 or any(ord(sign) >= _HELD for start, end in stretches for sign in value[start:end]):
        return ()
    shape = re.sub(rf"\$(?=[{chr(_HELD)}-{chr(_HELD + 1000)}])", "", _strip_quotes(shape))
    if not wildcards:
        return _restore_braces([shape], held)
    taken = set(re.findall(r"\{(\w+)", value))
    shape = _convert_regexes(shape, taken)
    below = []
    if shape.endswith("*") and not re.search(r"(?:^|\.)\**$", shape):
        part = choose_name("part", taken)
        below = [f"{shape.rstrip('*')}{{{part}}}.{{{choose_name('rest', taken)}:**}}"]
        shape = f"{shape.rstrip('*')}{{{part}}}"
    return _restore_braces([_convert_globs(shape, taken), *below], held)


def _restore_braces(shapes: Iterable[str], held: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        "".join(held[ord(sign) - _HELD] if _HELD <= ord(sign) <= _HELD + 1000 else sign for sign in shape)
        for shape in shapes
    )


def _strip_quotes(shape: str) -> str:
    """Strip surrounding spaces and quotes."""
    shape = shape.strip()
    while len(shape) > 1 and shape[0] in _QUOTES and shape[-1] in _QUOTES:
        shape = shape[1:-1].strip()
    return shape


def _convert_regexes(shape: str, taken: set[str]) -> str:
    """Replace indices in brackets, and regular expressions that have an equivalent capture, by captures."""
    shape = shape.removeprefix("^").removesuffix("$").replace(r"\.", ".").replace("..*", ".*")
    steps: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
        (r"\((?:\\d|\[0-9\])[+*]\)|(?:\\d|\[0-9\])[+*]", lambda _: f"{{{choose_name('n', taken)}:int}}"),
        (r"\((?:\\w|\[\^\.\])[+*]\)|(?:\\w|\[\^\.\])[+*]", lambda _: f"{{{choose_name('part', taken)}}}"),
        (rf"\((?:\?:)?({_WORDS})\)", lambda found: f"{{{choose_name('part', taken)}:{found[1]}}}"),
        (rf"(?<![^.])({_WORDS})(?![^.])", lambda found: f"{{{choose_name('part', taken)}:{found[1]}}}"),
        (rf"\$({_NAME})|\[({_NAME})\]", lambda found: f"{{{choose_name(found[1] or found[2], taken)}}}"),
    )
    for pattern, made in steps:
        shape = re.sub(pattern, made, shape, flags=re.ASCII)
    return shape


def _convert_globs(shape: str, taken: set[str]) -> str:
    """Replace every `*` by a capture: of all following segments if it is the last segment or doubled, else of one."""
    segments = re.split(r"\.(?![^{}]*\})", shape)
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if segment == "**" or (segment == "*" and last):
            segments[number] = f"{{{choose_name('rest', taken)}:**}}"
        elif not segment.count("{"):
            segments[number] = re.sub(r"\*+", lambda _: f"{{{choose_name('part', taken)}}}", segment)
    return ".".join(segments)
