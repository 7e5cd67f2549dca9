r"""YAML text as located nodes: every scalar knows the place of each of its characters.

PyYAML only splits the text into events; what they mean is decided here, and strictly. Rule files are a small part of
YAML, the part that every version of YAML reads alike: mappings, lists and scalars. Whatever could surprise is refused
at its place: duplicate keys, anchors, tags, tabs, and plain scalars that some YAML reads as something other than text
(`no`, `1:30`, `012`). Sources: YAML 1.1 and 1.2 (core schema), and PyYAML's implicit resolvers.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Source, Span, Text

MAX_BYTES = 10_000_000
"""The largest rule file that is read: about 50,000 rules."""

MAX_NODES = 500_000
"""The most keys, values, lists and mappings that are read: some 10 seconds."""

MAX_LENGTH = 100_000
"""The longest text, in characters."""

MAX_PROBLEMS = 100
"""How many problems of the YAML, and of the structure, are said before the rest is only announced."""

MAX_DIGITS = 400
"""The longest number, in characters: the largest float has 309 digits, and no size has more than 19."""

MAX_DEPTH = 20
"""How deep mappings and lists may be nested; the rule language needs 5."""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Splits text into events: libyaml's where PyYAML was built with it (20 times faster), else the one in Python."""

Kind = Literal["text", "integer", "number", "boolean", "null", "empty"]


@dataclass(frozen=True, slots=True, eq=False)
class ScalarNode:
    """A scalar. `text` has its characters, `span` includes the quotes, `kind` is what a plain scalar is read as."""

    text: Text
    span: Span
    kind: Kind

    @property
    def value(self) -> str:
        return self.text.value


@dataclass(frozen=True, slots=True, eq=False)
class ListNode:
    """A list."""

    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True, slots=True, eq=False)
class MapNode:
    """A mapping with distinct keys, in their order; `partial` where some of its keys were refused."""

    entries: tuple[tuple[ScalarNode, Node], ...]
    span: Span
    partial: bool = False

    def key(self, name: str) -> ScalarNode | None:
        """The key of that name, with its place."""
        return next((key for key, _ in self.entries if key.value == name), None)

    def get(self, name: str) -> Node | None:
        """The value under that name."""
        return next((node for key, node in self.entries if key.value == name), None)


@dataclass(frozen=True, slots=True, eq=False)
class BrokenNode:
    """Stands for what was refused, so that the rest of the file can be looked at without saying it twice."""

    span: Span


Node = ScalarNode | ListNode | MapNode | BrokenNode


# ------------------------------------------------------------------------------------------------ bytes to text


def decode(data: bytes, name: str) -> tuple[Source, tuple[Diagnostic, ...]]:
    """The bytes of a file as a source, and what is wrong with them: too many, or not UTF-8.

    >>> decode(b"name: \\xff", "rules.yaml")[1][0].title
    'byte 0xff is not UTF-8'
    """
    if len(data) > MAX_BYTES:
        return Source(name, ""), (too_large(name),)
    try:
        return Source(name, data.decode("utf-8")), ()
    except UnicodeDecodeError as error:
        start = len(data[: error.start].decode("utf-8"))
        source = Source(name, data.decode("utf-8", "replace"))
        help = "save the file as UTF-8"
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            help = "it begins like UTF-16, which editors on Windows call Unicode: save it as UTF-8"
        title = f"byte 0x{data[error.start]:02x} is not UTF-8"
        return source, (Diagnostic("RK007", title, (Label(Span(source, start, start + 1)),), (help,)),)


def too_large(name: str, how: str = f"is larger than {MAX_BYTES // 1_000_000} MB") -> Diagnostic:
    """The refusal of a text beyond `MAX_BYTES` or `MAX_NODES`."""
    title = f"the rule file {how}"
    help = ("is this a checkpoint or a manifest? A rule file of that size wants patterns instead of single keys",)
    return Diagnostic("RK012", title, place=name, help=help)


def too_many() -> Diagnostic:
    """What is said instead of every further problem."""
    return Diagnostic("RK029", f"only the first {MAX_PROBLEMS} problems are shown")


def excerpt_of(text: str, limit: int = 60) -> str:
    """A text for a message: quoted, escaped, and cut where it is long.

    >>> print(excerpt_of("a\\tb"), excerpt_of("x" * 100, 5))
    'a\\tb' 'xxxxx…'
    """
    return repr(text if len(text) <= limit else text[:limit] + "…")


_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]|\r(?!\n)"
)


def _forbidden_characters(source: Source) -> Iterator[Diagnostic]:
    """One message for each kind of character that no rule file may hold, at the first of them."""
    first: dict[str, int] = {}
    count: Counter[str] = Counter()
    for match in _FORBIDDEN.finditer(source.text):
        first.setdefault(match.group(), match.start())
        count[match.group()] += 1
    for character, place in first.items():
        more = f"the first of {count[character]}" if count[character] > 1 else ""
        yield _forbidden(character, place == 0, Label(Span(source, place, place + 1), more))


def _forbidden(character: str, first: bool, label: Label) -> Diagnostic:
    name = f"U+{ord(character):04X}"
    if character == "\0":
        help = "a NUL never stands in a text file: is this a checkpoint, or a text saved as UTF-16?"
        return Diagnostic("RK005", "a NUL character", (label,), (help,))
    if character == "\ufeff":
        title = f"{'the file begins with' if first else 'there is'} a byte order mark ({name})"
        # libyaml counts the mark as a character: every column of the first line would be off by one.
        return Diagnostic("RK006", title, (label,), ("save the file as UTF-8 without a byte order mark",))
    if character == "\r":
        help = "save the file with line ends LF or CRLF"
        return Diagnostic("RK008", "a carriage return that does not end a line", (label,), (help,))
    what = "a control character"
    if character in "\u2028\u2029":
        what = "a line separator that only some YAML readers take for the end of a line"
    elif "\u202a" <= character <= "\u2069":
        what = "a character that changes the order in which others are shown"
    help = f'remove it; where it is meant, write it as an escape in double quotes: "\\u{ord(character):04x}"'
    return Diagnostic("RK008", f"{what} ({name})", (label,), (help,))


def _directives(source: Source) -> Iterator[Diagnostic]:
    """`%YAML` and `%TAG` change how what follows is read, and parsers disagree about the ones they do not know."""
    line = re.compile(r"(?:[ \t]*+(?:#[^\n]*+)?\r?\n)*+(%[^\n\r]*+)").match(source.text)
    if line:
        help = "rule files need none: remove the line"
        yield Diagnostic("RK004", "a YAML directive", (Label(Span(source, *line.span(1))),), (help,))


# ------------------------------------------------------------------------------------------------ text to nodes


def compose(source: Source) -> tuple[Node | None, tuple[Diagnostic, ...]]:
    """The root node of a text, and everything that is wrong with it as YAML.

    The node is None where the text cannot be read at all.

    >>> root, problems = compose(Source("rules.yaml", "name: 'wan'\\n"))
    >>> root.get("name").text.at(0).column, problems
    (8, ())
    """
    if len(source.text) > MAX_BYTES:
        return None, (too_large(source.name),)
    problems = [*_forbidden_characters(source), *_directives(source)]
    if problems:
        return None, tuple(problems)
    composer = _Composer(source)
    try:
        root = composer.document()
    except _Fatal as fatal:
        return None, (*composer.problems, fatal.diagnostic)
    except yaml.MarkedYAMLError as error:
        return None, (*composer.problems, _syntax_error(source, error))
    tabs = _tabs(source, composer.protected)
    if tabs:  # the parser in Python gives up there
        place = tabs[0].labels[0].span.start
        return None, (*(each for each in composer.problems if each.span and each.span.start < place), *tabs)
    composer.problems.sort(key=lambda problem: problem.span.start if problem.span else 0)
    return root, tuple(composer.problems)


class _Fatal(Exception):
    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.title)
        self.diagnostic = diagnostic


class _Composer:
    """Events to nodes; `protected` are the stretches where tabs are content, and whether it is a block scalar."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.loader = LOADER(source.text)
        self.problems: list[Diagnostic] = []
        self.count = 0
        self.aliases: set[str] = set()
        self.protected: list[tuple[int, int, bool]] = []

    def problem(self, code: str, title: str, labels: Span | tuple[Label, ...], *help: str) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Fatal(too_many())
        labels = (Label(labels),) if isinstance(labels, Span) else labels
        self.problems.append(Diagnostic(code, title, labels, help))

    def event(self) -> Any:
        """The next event; PyYAML's stubs type its events too loosely to be of use."""
        return self.loader.get_event()

    def span(self, event: Any) -> Span:
        return Span(self.source, event.start_mark.index, event.end_mark.index)

    def document(self) -> Node:
        self.event()
        if isinstance(self.event(), yaml.StreamEndEvent):
            raise _Fatal(self.nothing())
        root = self.node(self.event(), 0)
        self.event()
        following = self.event()
        if not isinstance(following, yaml.StreamEndEvent):
            label = Label(Span(self.source, following.start_mark.index, following.start_mark.index + 3))
            raise _Fatal(Diagnostic("RK010", "a second document begins here", (label,), ("one file, one rule file",)))
        if isinstance(root, ScalarNode) and root.kind in ("empty", "null"):
            raise _Fatal(self.nothing())
        return root

    def nothing(self) -> Diagnostic:
        help = (
            "begin with `remapkit: 1` and `name: ...`, or let `remapkit new NAME --from CKPT` write a first version"
        )
        return Diagnostic("RK011", "the rule file is empty", place=self.source.name, help=(help,))

    def node(self, event: Any, depth: int, key: bool = False) -> Node:
        span = self.span(event)
        self.count += 1
        if self.count > MAX_NODES:
            raise _Fatal(too_large(self.source.name, f"holds more than {MAX_NODES:,} keys and values"))
        if depth > MAX_DEPTH:
            raise _Fatal(_too_deep(self.source, span.start))
        if isinstance(event, yaml.AliasEvent):
            self.refuse_alias(span)
            return BrokenNode(span)
        refused = self.refuse_properties(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(span.start, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(span.start, depth)
        return BrokenNode(span) if refused else self.scalar(event, span, key)

    def sequence(self, start: int, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := self.event(), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        return ListNode(tuple(items), self.collection_span(start, event, items))

    def mapping(self, start: int, depth: int) -> Node:
        entries: list[tuple[ScalarNode, Node]] = []
        seen: dict[str, ScalarNode] = {}
        last: list[Node] = []
        partial = False
        while not isinstance(event := self.event(), yaml.MappingEndEvent):
            key = self.node(event, depth + 1, key=True)
            value = self.node(self.event(), depth + 1)
            last = [value]
            if self.is_key(key) and isinstance(key, ScalarNode):
                first = seen.setdefault(key.value, key)
                if first is key:
                    entries.append((key, value))
                else:
                    self.refuse_duplicate(first, key)
            else:
                partial = True
        return MapNode(tuple(entries), self.collection_span(start, event, last), partial)

    def collection_span(self, start: int, end: Any, items: list[Node]) -> Span:
        """A block collection ends with its last item: the parsers put its end after the blank lines that follow."""
        flow = end.end_mark.index > end.start_mark.index
        stop = end.end_mark.index if flow or not items else items[-1].span.end
        return Span(self.source, start, max(start, stop))

    def is_key(self, key: Node) -> bool:
        if isinstance(key, ListNode | MapNode):
            what = "a list" if isinstance(key, ListNode) else "a mapping"
            help = "quote the key where it is meant as text: '{name}'"
            self.problem("RK015", f"{what} as a key", key.span, help)
            return False
        if not isinstance(key, ScalarNode):
            return False
        if key.kind in ("text", "integer"):
            return True
        if key.kind == "empty":
            at = Span(self.source, key.span.start, key.span.start + 1)
            self.problem("RK015", "a colon without a key before it", at, "write the key, or '' for an empty one")
        else:
            title = f"the key {excerpt_of(key.value)[1:-1]} is {READ_AS[key.kind]} to YAML, not text"
            self.problem("RK014", title, key.span, f"quote it: '{key.value}'")
        return False

    def refuse_duplicate(self, first: ScalarNode, again: ScalarNode) -> None:
        labels = (Label(first.span, "first here", primary=False), Label(again.span, "again here"))
        help = "a reader would silently take one of them: merge the two, or remove one"
        self.problem("RK002", f"the key {excerpt_of(again.value)} stands twice", labels, help)

    def refuse_alias(self, span: Span) -> None:
        if span.text in self.aliases:
            return
        self.aliases.add(span.text)
        help = (
            "a plain text that begins with * is an alias: quote it if it is meant as text",
            "rule files have no anchors and aliases: write the value out",
        )
        self.problem("RK003", f"{excerpt_of(span.text)[1:-1]} is a YAML alias", span, *help)

    def refuse_properties(self, event: Any) -> bool:
        """Whether the node has an anchor or a tag, each refused at its place; its span begins with them."""
        if event.anchor is None and event.tag is None:
            return False
        here = event.start_mark.index
        while match := _PROPERTY.match(self.source.text, here):
            span = Span(self.source, here, match.end(1))
            name = excerpt_of(span.text)[1:-1]
            if name.startswith("&"):
                help = "a plain text that begins with & is an anchor: quote it if it is meant as text, else remove it"
                self.problem("RK003", f"{name} is a YAML anchor", span, help)
            else:
                help = "a plain text that begins with ! is a tag: quote it if it is meant as text, else remove it"
                self.problem("RK004", f"{name} is a YAML tag", span, help)
            here = match.end()
        return True

    def scalar(self, event: Any, span: Span, key: bool) -> Node:
        if len(event.value) > MAX_LENGTH:
            label = Label(Span(self.source, span.start, span.start + 1))
            help = "no key is that long: is a quote missing?"
            raise _Fatal(Diagnostic("RK012", f"a text of more than {MAX_LENGTH:,} characters", (label,), (help,)))
        style = event.style or ""
        if style in ("|", ">"):
            return self.block(event, span, style)
        if style:
            self.protected.append((span.start, span.end, False))
            return ScalarNode(_located(span, style, event.value), span, "text")
        if not event.value:
            span = _nothing_at(span)
        text = _located(span, style, event.value)
        kind = plain_kind(event.value)
        if kind in ("integer", "number") and len(event.value) > MAX_DIGITS:
            title = f"a number of {len(event.value):,} characters: at most {MAX_DIGITS} are read"
            self.problem("RK170", title, span, "quote it if it is text")
            return BrokenNode(span)
        if kind is not None:
            return ScalarNode(text, span, kind)
        if event.value == "<<":
            help = "write the entries out; quote the key if it is meant as text"
            self.problem("RK003", "<< is a YAML merge key", span, help)
        else:
            self.problem("RK014", *_ambiguous(event.value, span, key))
        return BrokenNode(span)

    def block(self, event: Any, span: Span, style: str) -> Node:
        header = _BLOCK_HEADER.match(self.source.text, span.start)
        if header is None:  # libyaml takes `|#` for a comment
            end = _line_end(self.source, span.start)
            label = Label(Span(self.source, span.start, end))
            raise _Fatal(Diagnostic("RK001", f"a text after {style}", (label,), ("begin the text on a new line",)))
        self.protected.append((header.end(), span.end, True))
        return ScalarNode(_located(span, style, event.value), span, "text")


def _nothing_at(span: Span) -> Span:
    """Where nothing stands: right after what is before it, and not after the white space that follows."""
    place = span.start
    while place and span.source.text[place - 1] in " \r\n":
        place -= 1
    return Span(span.source, place, place)


_BRACED_TEXT = re.compile(r"[:,{\[]\s*([^\s'\"{}\[\],:#][^\s'\"{}\[\],]*\{[^\s,{}]*\}[^\s,}]*)")
"""A plain text with braces in it, inside a mapping in braces: what a path that was not quoted looks like."""
_BLOCK_HEADER = re.compile(r"[|>][-+1-9]{0,2}(?:[ \t]+#[^\n]*|[ \t\r]*)(?=\n|\Z)")
_PROPERTY = re.compile(r"([&!][^\s,\[\]{}]*)\s*")

READ_AS = {
    "text": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "a boolean",
    "null": "nothing (null)",
    "empty": "nothing",
}
"""What a kind of scalar is called in messages."""


# ------------------------------------------------------------------------------------------------ plain scalars

_CANONICAL: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("empty", re.compile("")),
    ("integer", re.compile(r"0|-?[1-9][0-9]{0,14}")),
    ("number", re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+][0-9]+)?")),
    ("boolean", re.compile("true|false")),
    ("null", re.compile("null|~")),
)

_SURPRISING: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("true or false", re.compile("(?i:yes|no|on|off|true|false)")),
    ("nothing (null)", re.compile("(?i:null)")),
    ("a merge or value key", re.compile("<<|=")),
    ("a date", re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?", re.DOTALL)),
    ("a number in base 60", re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")),
    ("a binary, octal or hexadecimal number", re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0[0-9_]+)")),
    ("a number", re.compile(r"[-+]?\.(?i:inf)|\.(?i:nan)")),
    ("a number", re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")),
)


def plain_kind(value: str) -> Kind | None:
    """What an unquoted scalar is, or None where some YAML would read it as something else than it looks like.

    >>> [plain_kind(each) for each in ("norm1", "0", "1.5", "true", "~", "")]
    ['text', 'integer', 'number', 'boolean', 'null', 'empty']
    >>> [plain_kind(each) for each in ("no", "1:30", "012", "0x10", "1e3", ".5", "2024-01-31", "<<")]
    [None, None, None, None, None, None, None, None]
    """
    for kind, pattern in _CANONICAL:
        if pattern.fullmatch(value):
            return kind
    # Whatever YAML reads as something else begins with one of these; most scalars do not, and this runs on each.
    if value[0] not in "0123456789+-.<=yYnNtTfFoO":
        return "text"
    return None if any(pattern.fullmatch(value) for _, pattern in _SURPRISING) else "text"


def _ambiguous(value: str, span: Span, key: bool) -> tuple[str, Span, str]:
    what = next(what for what, pattern in _SURPRISING if pattern.fullmatch(value))
    value = excerpt_of(value)[1:-1]
    if key:
        help = f"quote it: '{value}'"
    elif what == "true or false":
        boolean = "true" if value.lower() in ("yes", "on", "true") else "false"
        help = f"quote it if it is text: '{value}'; else write {boolean}"
    else:
        help = f"quote it if it is text: '{value}'"
        help += "; else write it as a plain decimal number" if "number" in what else ""
    return f"some YAML reads {value} as {what}, and some as text", span, help


# ------------------------------------------------------------------------------------------------ places


def _located(span: Span, style: str, value: str) -> Text:
    """The value with the place of each character; quotes are left out of its span."""
    source, start, end = span.source, span.start, span.end
    if style in ("'", '"'):
        start, end = start + 1, end - 1
    inner = Span(source, start, end)
    if source.text.startswith(value, start) and start + len(value) == end:
        return Text(value, inner)
    raw = source.text[start:end]
    places = _block_places(raw, value) if style in ("|", ">") else _flow_places(raw, style)
    offsets = tuple(start + place for place in places)
    first, last = (offsets[0], offsets[-1]) if value else (start, end)
    return Text(value, Span(source, first, max(first, last)), offsets)


_BLANKS = r"(?P<blanks>[ \t]++(?!\r?\n))"
_FOLD = r"(?P<fold>[ \t]*+(?:\r?\n[ \t]*+)+)"
_FLOW_TOKENS = {
    "": re.compile(rf"{_BLANKS}|{_FOLD}|."),
    "'": re.compile(rf"{_BLANKS}|{_FOLD}|''|."),
    '"': re.compile(
        r"(?P<joined>\\\r?\n[ \t]*+(?:\r?\n[ \t]*+)*)"
        r"|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)"
        rf"|{_BLANKS}|{_FOLD}|."
    ),
}
_BREAK = re.compile(r"\r?\n")
_NEWLINES = re.compile(r"\n*")


def _flow_places(raw: str, style: str) -> list[int]:
    """Where each character of a plain or quoted scalar begins, and where the last one ends.

    One line break within it is a space, n + 1 of them are n line breaks; the white space around them is nothing.
    """
    places: list[int] = []
    for token in _FLOW_TOKENS[style].finditer(raw):
        if token.lastgroup is None:
            places.append(token.start())
        elif token.lastgroup == "blanks":
            places += range(*token.span())
        else:
            breaks = [each.start() for each in _BREAK.finditer(raw, *token.span())]
            places += breaks[1:] if len(breaks) > 1 or token.lastgroup == "joined" else breaks
    return [*places, len(raw)]


def _block_places(raw: str, value: str) -> list[int]:
    """Where each character of a literal (`|`) or folded (`>`) scalar begins, and where the last one ends.

    The characters of a line are those of the value; only what a run of line ends becomes differs: nothing, a
    space, or line breaks.
    """
    lines = [(line.start(), line.group().rstrip("\r\n")) for line in re.finditer(r"[^\n]*\n|[^\n]+", raw)][1:]
    indent = _indent([line for _, line in lines], value)
    places: list[int] = []
    breaks: list[int] = []
    for start, line in lines:
        if len(line) > indent and len(places) < len(value):
            run = _newlines(value, len(places))
            places += (
                breaks[len(breaks) - run :] if run else breaks[:1] if value[len(places)] == " " and breaks else []
            )
            places += range(start + indent, start + len(line))
            breaks = []
        breaks.append(start + len(line))
    places += breaks[: _newlines(value, len(places))]
    return [*places, places[-1] + 1 if places else len(raw)]


def _newlines(value: str, here: int) -> int:
    """How many line breaks the value has from `here` on, before anything else."""
    match = _NEWLINES.match(value, here)
    return len(match.group()) if match else 0


def _indent(lines: list[str], value: str) -> int:
    """How far a block scalar is indented: its first line with content against the same line of the source."""
    content = value.lstrip("\n")
    blank = len(value) - len(content)
    if not content or blank >= len(lines):
        return max(map(len, lines), default=0)
    return _leading_spaces(lines[blank]) - _leading_spaces(content)


def _leading_spaces(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


# ------------------------------------------------------------------------------------------------ what does not parse


def _tabs(source: Source, protected: Iterable[tuple[int, int, bool]]) -> list[Diagnostic]:
    """The first tab outside quoted and block scalars and comments, where YAML readers disagree about them."""
    if "\t" not in source.text:
        return []
    kept = sorted(protected)
    starts = [start for start, _, _ in kept]

    def free(place: int, indents: bool) -> bool:
        before = bisect_right(starts, place) - 1
        if before < 0 or place >= kept[before][1]:
            return True
        return indents and kept[before][2]

    found: list[int] = []
    for line in re.finditer(r"[^\n]*\t[^\n]*", source.text):
        for sign in re.finditer(r"\t|(?<!\S)#", line.group()):
            place = line.start() + sign.start()
            indents = not line.group()[: sign.start()].strip(" ")
            if sign.group() == "#" and free(place, False):
                break
            if sign.group() == "\t" and free(place, indents):
                found.append(place)
    return [_tab(source, found[0], len(found))] if found else []


def _tab(source: Source, place: int, count: int = 1) -> Diagnostic:
    label = Label(Span(source, place, place + 1), f"the first of {count}" if count > 1 else "")
    return Diagnostic("RK009", "a tab outside quotes", (label,), ("YAML is indented with spaces: replace it",))


def _syntax_error(source: Source, error: yaml.MarkedYAMLError) -> Diagnostic:
    """In our own words, from the place of the error and what stands there: the two parsers use different ones."""
    text = source.text
    marked = error.problem_mark or error.context_mark
    here = min(marked.index, len(text)) if marked else len(text)
    opened = error.context_mark.index if error.context_mark is not None else here
    opener = text[opened : opened + 1]
    tab = re.compile(r"[ ]*\t").match(text, text.rfind("\n", 0, here) + 1) or re.compile(r"\t").match(text, here)
    if tab:
        return _tab(source, tab.end() - 1)
    if here > MAX_DEPTH and not text[here - MAX_DEPTH - 1 : here].strip("{["):
        return _too_deep(source, here - 1)  # libyaml gives up by itself at 1,000
    if opener in ("'", '"') and opened != here:
        return _quoted(source, opened, here)
    if opener and opener in "*&!":
        return _sigil(source, opened)
    return _unexpected(source, opened, here)


def _too_deep(source: Source, place: int) -> Diagnostic:
    label = Label(Span(source, place, place + 1))
    help = "a rule file needs no more than 5 levels"
    return Diagnostic("RK013", f"nested more than {MAX_DEPTH} levels deep", (label,), (help,))


def _quoted(source: Source, opened: int, here: int) -> Diagnostic:
    quote = source.text[opened]
    backslash = next((place for place in (here, here - 1, here - 2) if source.text[place : place + 1] == "\\"), None)
    if quote == '"' and here < len(source.text) and backslash is not None:
        written = source.text[backslash : backslash + 2]
        help = f"use single quotes, where a backslash is a backslash, or write \\{written} for one"
        label = Label(Span(source, backslash, backslash + 2))
        return Diagnostic("RK001", f"{written} is no escape that double quotes know", (label,), (help,))
    help = "close it on the same line" + ("; within single quotes, '' is one quote" if quote == "'" else "")
    return Diagnostic("RK001", "a quote that is never closed", (Label(Span(source, opened, opened + 1)),), (help,))


def _sigil(source: Source, place: int) -> Diagnostic:
    sign = source.text[place]
    what, code = {"*": ("an alias", "RK003"), "&": ("an anchor", "RK003"), "!": ("a tag", "RK004")}[sign]
    title = f"a plain text cannot begin with {sign}, which begins {what}"
    return Diagnostic(code, title, (Label(Span(source, place, place + 1)),), (_quote_line(source, place),))


def _unexpected(source: Source, opened: int, here: int) -> Diagnostic:
    text = source.text
    title, labels, helps = (
        "this is not valid YAML",
        [Label(_token(source, here))],
        ["check the indentation and the quotes"],
    )
    opener, before, sign = text[opened : opened + 1], text[max(0, here - 1) : here], text[here : here + 1]
    value = _value_before(source, here)
    if (
        value is not None
        and value < here
        and text[value] in "{["
        and before in ("}", "]")
        and sign not in ("", "\n", " ")
    ):
        title = f"a text that begins with {text[value]} must be quoted"
        labels, helps = [Label(Span(source, value, _line_end(source, value)))], [_quote_line(source, value)]
    elif value is not None and text[value] in "'\"" and text[value + 1 : here].rstrip().endswith(text[value]):
        title = "text after a closing quote"
        helps = [
            "within single quotes, '' is one quote" if text[value] == "'" else 'within double quotes, \\" is one'
        ]
    elif (
        opener
        and opener in "{["
        and opened < here
        and (braced := _BRACED_TEXT.search(text, opened, _line_end(source, here)))
    ):
        at = braced.start(1)
        title = "a text with braces stands unquoted between braces"
        labels = [Label(Span(source, at, at + len(braced.group(1))))]
        helps = [f"quote it: '{braced.group(1)}'"]
    elif opener and opener in "{[" and opened < here:
        closer = {"{": "}", "[": "]"}[opener]
        title = f"a {opener} that is never closed" if not sign else f"a , or {closer} is missing here"
        labels = [Label(Span(source, opened, opened + 1), "opened here", primary=not sign)]
        labels += [Label(_token(source, here))] if sign else []
        helps = [f"close it with {closer}; a text that begins with {opener} must be quoted"]
    elif sign == ":":
        title, labels, helps = _colon(source, here)
    elif sign == "-" and value == here:
        title, helps = "a list begins on a line of its own", ["begin a new line, or quote it if it is text"]
    elif sign and sign in "@`%?,]}":
        title, helps = f"a plain text cannot begin with {sign}", [_quote_line(source, here)]
    elif opener and opener in "|>":
        title, helps = f"a plain text cannot begin with {opener}", [_quote_line(source, opened)]
    elif _has_no_colon(source, opened):
        title, helps = "a line without a colon", ["write `key: value`"]
        labels = [Label(Span(source, opened, _line_end(source, opened)))]
    elif opened < here:
        labels.insert(0, Label(_token(source, opened), "within what begins here", primary=False))
        title, helps = "this line does not fit what it stands in", ["indent it like its neighbours, with spaces"]
    return Diagnostic("RK001", title, tuple(labels), tuple(helps))


def _colon(source: Source, here: int) -> tuple[str, list[Label], list[str]]:
    begin = source.text.rfind("\n", 0, here) + 1
    before = source.text[begin:here]
    key = begin + _leading_spaces(before)
    if not before.strip():
        return "a colon without a key before it", [Label(Span(source, here, here + 1))], ["write the key"]
    if re.search(r"[:{\[]", before):
        help = "quote the whole value, or begin a new line"
        return "a second colon in one line: YAML would read a key here", [Label(Span(source, here, here + 1))], [help]
    help = "put the colon that is missing above, or indent this line like its neighbours"
    return "this key is read as part of the value above it", [Label(Span(source, key, here + 1))], [help]


def _token(source: Source, place: int) -> Span:
    """What stands at a place, up to the next white space; the last line's end where the text has ended."""
    if place >= len(source.text):
        place = len(source.text.rstrip())
    match = re.compile(r"[^\s,\[\]{}:]+|\S").match(source.text, place)
    return Span(source, place, match.end() if match else place)


def _line_end(source: Source, place: int) -> int:
    end = source.text.find("\n", place)
    return len(source.text[: end if end >= 0 else None].rstrip())


def _value_before(source: Source, place: int) -> int | None:
    """Where the value begins, after `key:` or `-`, that a place is within; None where there is none in its line."""
    begin = source.text.rfind("\n", 0, place) + 1
    match = re.compile(r"[ ]*(?:- +)*(?:[\w.-]+: +)?(?=\S)").match(source.text, begin)
    return match.end() if match and begin < match.end() <= place else None


def _quote_line(source: Source, place: int) -> str:
    written = source.text[place : _line_end(source, place)]
    return f"quote it: '{written}'" if len(written) <= 100 and "'" not in written else "quote it"


def _has_no_colon(source: Source, place: int) -> bool:
    line = source.text[place : _line_end(source, place)]
    return bool(line) and ":" not in line and line[0] not in "{[-|>"
