"""Compose YAML text into located nodes, with the position of each character of every scalar.

PyYAML only splits the text into events; this module interprets them, strictly. Rule files use the small part of YAML
that every version of YAML reads the same way: mappings, lists and scalars. Anything ambiguous is an error at its
position: duplicate keys, anchors, tags, tabs, and plain scalars that some YAML versions do not read as text (`no`,
`1:30`, `012`). Sources: YAML 1.1 and 1.2 (core schema), and PyYAML's implicit resolvers.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Source, Span, Text
from remapkit.diagnostics.wording import quote_excerpt, show_key
from remapkit.rulefile.yaml.nodes import (
    BLOCK_HEADER,
    LOADER,
    MAX_DEPTH,
    PROPERTY,
    BrokenNode,
    ListNode,
    MapNode,
    Node,
    ScalarNode,
)
from remapkit.rulefile.yaml.positions import locate_text
from remapkit.rulefile.yaml.scalars import READ_AS, classify_scalar, explain_ambiguous_scalar
from remapkit.rulefile.yaml.syntax_errors import (
    explain_depth_limit,
    explain_syntax_error,
    find_line_end,
    find_tab_problems,
)

MAX_BYTES = 10_000_000
"""The size limit of rule files."""


MAX_NODES = 500_000
"""The most keys, values, lists and mappings that are read."""


NODES_OF_SHORT_FILE = 100_000
"""The same for a file of few lines, which a person did not write: about three seconds."""


NODES_OF_LINE = 20
"""A longer file may have this many for each of its lines."""


MAX_LENGTH = 100_000
"""The longest text, in characters."""


MAX_LOCATED = 500_000
"""The most characters of texts with escapes, quotes or line breaks inside, whose positions are stored one by one."""


MAX_PROBLEMS = 100
"""The most problems of the YAML, and of the structure, that are shown; the rest is only mentioned."""


MAX_DIGITS = 400
"""The longest number, in characters: the largest float has 309 digits, and no size has more than 19."""


def decode(data: bytes, name: str) -> tuple[Source, tuple[Diagnostic, ...]]:
    """Decode the bytes of a file; return the source and the problems: too large, or not UTF-8.

    >>> decode(b"name: \\xff", "rules.yaml")[1][0].title
    'byte 0xff is not UTF-8'
    """
    if len(data) > MAX_BYTES:
        return Source(name, ""), (explain_size_limit(name),)
    try:
        return Source(name, data.decode("utf-8")), ()
    except UnicodeDecodeError as error:
        start = len(data[: error.start].decode("utf-8"))
        source = Source(name, data.decode("utf-8", "replace"))
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80" or data[8:9] == b"{":
            title = f"{name} is a checkpoint, not a rule file"
            help = "name the rule file first and the checkpoint second: remapkit apply RULES CHECKPOINT"
            return source, (Diagnostic("RK007", title, help=(help,)),)
        help = "save the file as UTF-8"
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            help = "it begins like UTF-16, which editors on Windows call Unicode: save it as UTF-8"
        title = f"byte 0x{data[error.start]:02x} is not UTF-8"
        return source, (Diagnostic("RK007", title, (Label(Span(source, start, start + 1)),), (help,)),)


def explain_size_limit(name: str, how: str = f"is larger than {MAX_BYTES // 1_000_000} MB") -> Diagnostic:
    """Return the message for a text that exceeds `MAX_BYTES` or `MAX_NODES`."""
    title = f"the rule file {how}"
    help = ("is this a checkpoint or a manifest? If not, write patterns instead of single keys",)
    return Diagnostic("RK012", title, place=name, help=help)


def explain_problem_limit() -> Diagnostic:
    """Return the message that replaces all further problems."""
    return Diagnostic("RK029", f"only the first {MAX_PROBLEMS} problems are shown")


_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]|\r(?!\n)"
)


def _find_forbidden_characters(source: Source) -> Iterator[Diagnostic]:
    """Report each kind of character that rule files must not contain, at its first occurrence."""
    first: dict[str, int] = {}
    count: Counter[str] = Counter()
    for match in _FORBIDDEN.finditer(source.text):
        first.setdefault(match.group(), match.start())
        count[match.group()] += 1
    for character, place in first.items():
        more = f"the first of {count[character]}" if count[character] > 1 else ""
        yield _explain_forbidden(character, place == 0, Label(Span(source, place, place + 1), more))


def _explain_forbidden(character: str, first: bool, label: Label) -> Diagnostic:
    name = f"U+{ord(character):04X}"
    if character == "\0":
        help = "text files have no NUL: is this a checkpoint, or a text saved as UTF-16?"
        return Diagnostic("RK005", "a NUL character", (label,), (help,))
    if character == "\ufeff":
        title = f"{'the file begins with' if first else 'there is'} a byte order mark ({name})"
        # libyaml counts the mark as a character, so every column of the first line would be off by one.
        return Diagnostic("RK006", title, (label,), ("save the file as UTF-8 without a byte order mark",))
    if character == "\r":
        help = "save the file with LF or CRLF line ends"
        return Diagnostic("RK008", "a carriage return that does not end a line", (label,), (help,))
    what = "a control character"
    if character in "\u2028\u2029":
        what = "a line separator that only some YAML parsers treat as the end of a line"
    elif "\u202a" <= character <= "\u2069":
        what = "a character that reorders the text around it"
    help = f'remove it, or write it as an escape in double quotes: "\\u{ord(character):04x}"'
    return Diagnostic("RK008", f"{what} ({name})", (label,), (help,))


def _find_directives(source: Source) -> Iterator[Diagnostic]:
    """Report directives: `%YAML` and `%TAG` change how the text is read, and parsers disagree about unknown ones."""
    line = re.compile(r"(?:[ \t]*+(?:#[^\n]*+)?\r?\n)*+(%[^\n\r]*+)").match(source.text)
    if line:
        help = "remove the line: rule files have no directives"
        yield Diagnostic("RK004", "a YAML directive", (Label(Span(source, *line.span(1))),), (help,))


def compose(source: Source) -> tuple[Node | None, tuple[Diagnostic, ...]]:
    """Return the root node of a text and all of its YAML problems.

    The node is None if the text cannot be read at all.

    >>> root, problems = compose(Source("rules.yaml", "name: 'wan'\\n"))
    >>> root.get("name").text.at(0).column, problems
    (8, ())
    """
    if len(source.text) > MAX_BYTES:
        return None, (explain_size_limit(source.name),)
    problems = [*_find_forbidden_characters(source), *_find_directives(source)]
    if problems:
        return None, tuple(problems)
    composer = _Composer(source)
    try:
        with _pause_collection():
            root = composer.compose_document()
    except _Fatal as fatal:
        return None, (*composer.problems, fatal.diagnostic)
    except yaml.MarkedYAMLError as error:
        return None, (*composer.problems, explain_syntax_error(source, error))
    tabs = find_tab_problems(source, composer.protected)
    if tabs:  # the pure Python parser stops there
        place = tabs[0].labels[0].span.start
        return None, (
            *(problem for problem in composer.problems if problem.span and problem.span.start < place),
            *tabs,
        )
    composer.problems.sort(key=lambda problem: problem.span.start if problem.span else 0)
    return root, tuple(composer.problems)


@contextmanager
def _pause_collection() -> Iterator[None]:
    """Pause the search for cycles: nodes have none, and to trace half a million again and again doubles the time.

    Two threads at once: the first one in resumes it for both.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


class _Fatal(Exception):
    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.title)
        self.diagnostic = diagnostic


class _Composer:
    """Conversion of events to nodes; `protected`: ranges where tabs are content, and whether it is a block scalar."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.loader = LOADER(source.text)
        self.problems: list[Diagnostic] = []
        self.count = self.located = 0
        lines = source.text.count("\n") + 1
        self.most = min(MAX_NODES, max(NODES_OF_SHORT_FILE, NODES_OF_LINE * lines))
        self.aliases: set[str] = set()
        self.protected: list[tuple[int, int, bool]] = []

    def add_problem(self, code: str, title: str, labels: Span | tuple[Label, ...], *help: str) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Fatal(explain_problem_limit())
        labels = (Label(labels),) if isinstance(labels, Span) else labels
        self.problems.append(Diagnostic(code, title, labels, help))

    def read_event(self) -> Any:
        """Return the next event; PyYAML's stubs type events too loosely to be useful."""
        return self.loader.get_event()

    def span(self, event: Any) -> Span:
        return Span(self.source, event.start_mark.index, event.end_mark.index)

    def compose_document(self) -> Node:
        self.read_event()
        if isinstance(self.read_event(), yaml.StreamEndEvent):
            raise _Fatal(self.explain_empty_file())
        root = self.compose_node(self.read_event(), 0)
        self.read_event()
        following = self.read_event()
        if not isinstance(following, yaml.StreamEndEvent):
            label = Label(Span(self.source, following.start_mark.index, following.start_mark.index + 3))
            raise _Fatal(
                Diagnostic(
                    "RK010",
                    "a second document begins here",
                    (label,),
                    ("remove it, or move it to a file of its own",),
                )
            )
        if isinstance(root, ScalarNode) and root.kind in ("empty", "null"):
            raise _Fatal(self.explain_empty_file())
        return root

    def explain_empty_file(self) -> Diagnostic:
        help = (
            "begin with `remapkit: 1` and `name: ...`, or let `remapkit new NAME --from CKPT` write a first version"
        )
        return Diagnostic("RK011", "the rule file is empty", place=self.source.name, help=(help,))

    def compose_node(self, event: Any, depth: int, key: bool = False) -> Node:
        span = self.span(event)
        self.count += 1
        if self.count > self.most:
            raise _Fatal(explain_size_limit(self.source.name, f"holds more than {self.most:,} keys and values"))
        if depth > MAX_DEPTH:
            raise _Fatal(explain_depth_limit(self.source, span.start))
        if isinstance(event, yaml.AliasEvent):
            self.refuse_alias(span)
            return BrokenNode(span)
        refused = self.refuse_properties(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.compose_list(span.start, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self.compose_mapping(span.start, depth)
        return BrokenNode(span) if refused else self.compose_scalar(event, span, key)

    def compose_list(self, start: int, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := self.read_event(), yaml.SequenceEndEvent):
            items.append(self.compose_node(event, depth + 1))
        return ListNode(tuple(items), self.find_collection_span(start, event, items))

    def compose_mapping(self, start: int, depth: int) -> Node:
        entries: list[tuple[ScalarNode, Node]] = []
        seen: dict[str, ScalarNode] = {}
        last: list[Node] = []
        partial = False
        while not isinstance(event := self.read_event(), yaml.MappingEndEvent):
            key = self.compose_node(event, depth + 1, key=True)
            value = self.compose_node(self.read_event(), depth + 1)
            last = [value]
            if self.is_key(key) and isinstance(key, ScalarNode):
                first = seen.setdefault(key.value, key)
                if first is key:
                    entries.append((key, value))
                else:
                    self.refuse_duplicate(first, key)
            else:
                partial = True
        return MapNode(tuple(entries), self.find_collection_span(start, event, last), partial)

    def find_collection_span(self, start: int, end: Any, items: list[Node]) -> Span:
        """Return the span of a block collection, up to its last item; parsers include the blank lines after it."""
        flow = end.end_mark.index > end.start_mark.index
        stop = end.end_mark.index if flow or not items else items[-1].span.end
        return Span(self.source, start, max(start, stop))

    def is_key(self, key: Node) -> bool:
        if isinstance(key, ListNode | MapNode):
            what = "a list" if isinstance(key, ListNode) else "a mapping"
            help = "quote the key if it is meant as text: '{name}'"
            self.add_problem("RK015", f"{what} as a key", key.span, help)
            return False
        if not isinstance(key, ScalarNode):
            return False
        if key.kind in ("text", "integer"):
            return True
        if key.kind == "empty":
            at = Span(self.source, key.span.start, key.span.start + 1)
            self.add_problem("RK015", "a colon without a key before it", at, "write the key, or '' for an empty one")
        else:
            title = f"the key {show_key(key.value, 60)} is {READ_AS[key.kind]} to YAML, not text"
            self.add_problem("RK014", title, key.span, f"quote it: '{key.value}'")
        return False

    def refuse_duplicate(self, first: ScalarNode, again: ScalarNode) -> None:
        labels = (Label(first.span, "first here", primary=False), Label(again.span, "again here"))
        help = "merge the two, or remove one: some YAML parsers silently use only one of them"
        self.add_problem("RK002", f"duplicate key {quote_excerpt(again.value)}", labels, help)

    def refuse_alias(self, span: Span) -> None:
        if span.text in self.aliases:
            return
        self.aliases.add(span.text)
        help = (
            "a plain text that begins with * is an alias: quote it if it is meant as text",
            "rule files have no anchors and aliases: write the value out",
        )
        self.add_problem("RK003", f"{show_key(span.text, 60)} is a YAML alias", span, *help)

    def refuse_properties(self, event: Any) -> bool:
        """Report the anchor and tag of a node (its span begins with them); return whether there were any."""
        if event.anchor is None and event.tag is None:
            return False
        place = event.start_mark.index
        while match := PROPERTY.match(self.source.text, place):
            span = Span(self.source, place, match.end(1))
            name = show_key(span.text, 60)
            if name.startswith("&"):
                help = "a plain text that begins with & is an anchor: quote it if it is meant as text, else remove it"
                self.add_problem("RK003", f"{name} is a YAML anchor", span, help)
            else:
                help = "a plain text that begins with ! is a tag: quote it if it is meant as text, else remove it"
                self.add_problem("RK004", f"{name} is a YAML tag", span, help)
            place = match.end()
        return True

    def compose_scalar(self, event: Any, span: Span, key: bool) -> Node:
        if len(event.value) > MAX_LENGTH:
            label = Label(Span(self.source, span.start, span.start + 1))
            help = "no key is that long: is a quote missing?"
            raise _Fatal(Diagnostic("RK012", f"a text of more than {MAX_LENGTH:,} characters", (label,), (help,)))
        style = event.style or ""
        if style in ("|", ">"):
            return self.compose_block(event, span, style)
        if style:
            self.protected.append((span.start, span.end, False))
            return ScalarNode(self.locate(span, style, event.value), span, "text")
        if not event.value:
            span = _locate_empty(span)
        text = self.locate(span, style, event.value)
        kind = classify_scalar(event.value)
        if kind in ("integer", "number") and len(event.value) > MAX_DIGITS:
            title = f"a number of {len(event.value):,} characters: at most {MAX_DIGITS} are read"
            self.add_problem("RK170", title, span, "quote it if it is text")
            return BrokenNode(span)
        if kind is not None:
            return ScalarNode(text, span, kind)
        if event.value == "<<":
            help = "write the entries out; quote the key if it is meant as text"
            self.add_problem("RK003", "<< is a YAML merge key", span, help)
        else:
            self.add_problem("RK014", *explain_ambiguous_scalar(event.value, span, key))
        return BrokenNode(span)

    def locate(self, span: Span, style: str, value: str) -> Text:
        """Return a value with the position of each of its characters; the positions of folded text are stored."""
        text = locate_text(span, style, value)
        self.located += len(text.offsets or ())
        if self.located > MAX_LOCATED:
            how = f"has texts with escapes or line breaks of more than {MAX_LOCATED:,} characters in all"
            raise _Fatal(explain_size_limit(self.source.name, how))
        return text

    def compose_block(self, event: Any, span: Span, style: str) -> Node:
        header = BLOCK_HEADER.match(self.source.text, span.start)
        if header is None:  # libyaml reads `|#` as a comment
            end = find_line_end(self.source, span.start)
            label = Label(Span(self.source, span.start, end))
            raise _Fatal(Diagnostic("RK001", f"text after {style}", (label,), ("begin the text on a new line",)))
        self.protected.append((header.end(), span.end, True))
        return ScalarNode(self.locate(span, style, event.value), span, "text")


def _locate_empty(span: Span) -> Span:
    """Return the position of an empty value: right after the preceding text, before any white space."""
    place = span.start
    while place and span.source.text[place - 1] in " \r\n":
        place -= 1
    return Span(span.source, place, place)
