"""Mounts, `PREFIX=FILE`: files under prefixes of keys, one or all that fit a pattern; for inputs and outputs alike.

`tp{t}.=consolidated.{t}.pth` reads each `consolidated.<number>.pth` under `tp<number>.`. A capture reads a number
with any padding; `{t:02d}` reads and writes exactly this one. A number in a prefix has no padding.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules, UnreadableCheckpoint, UsageError
from remapkit.diagnostics.wording import escape_line, join_words, show_key
from remapkit.files.errors import make_unreadable
from remapkit.files.source_file import describe_os_error
from remapkit.tensors.spec import find_name_problem

if TYPE_CHECKING:
    from remapkit.rulefile.syntax import RuleFile

SourceLike = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
"""A checkpoint: a path, a mount `PREFIX=FILE`, several of them, or a path or a pattern for each prefix."""

MAX_FILES = 10_000
"""The most files that one mount reads."""
MAX_ENTRIES = 1_000_000
"""The most names in folders that are compared with one mount."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_CAPTURE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::0([1-9])d)?")
_DIGITS = "[0-9]{1,18}"


@dataclass(frozen=True, slots=True)
class Capture:
    """A number in a mount; `width` is the padding that it is written with, None if any is read."""

    name: str
    width: int | None = None

    def __str__(self) -> str:
        return f"{{{self.name}}}" if self.width is None else f"{{{self.name}:0{self.width}d}}"


@dataclass(frozen=True, slots=True)
class NumberedText:
    """A text with numbers: literal parts and captures in turn, never two captures without a sign between them."""

    parts: tuple[str | Capture, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    def list_names(self) -> tuple[str, ...]:
        """Return the names of the captures, each once, in their order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Capture)))

    def write(self, numbers: Mapping[str, int]) -> str:
        """Return the text with numbers in place of the captures."""
        return "".join(
            part if isinstance(part, str) else f"{numbers[part.name]:0{part.width or 0}d}" for part in self.parts
        )

    def match(self, text: str) -> dict[str, int] | None:
        """Return the numbers of a text that fits as a whole, else None."""
        found = re.fullmatch(self._compile(_DIGITS), text)
        return None if found is None else self._read(found)

    def match_start(self, text: str) -> tuple[str, dict[str, int]] | None:
        """Return the start of a text that fits, with its numbers, which have no padding; else None."""
        found = re.match(self._compile("(?:0|[1-9][0-9]{0,17})(?![0-9])"), text)
        numbers = None if found is None else self._read(found)
        return None if found is None or numbers is None else (found[0], numbers)

    def _compile(self, digits: str) -> str:
        return "".join(re.escape(part) if isinstance(part, str) else f"({digits})" for part in self.parts)

    def _read(self, found: re.Match[str]) -> dict[str, int] | None:
        """Return the numbers; None if one name has two, or a number has another padding than is written."""
        numbers: dict[str, int] = {}
        captures = [part for part in self.parts if isinstance(part, Capture)]
        for capture, text in zip(captures, found.groups(), strict=True):
            number = int(text)
            if numbers.setdefault(capture.name, number) != number:
                return None
            if capture.width is not None and f"{number:0{capture.width}d}" != text:
                return None
        return numbers


@dataclass(frozen=True, slots=True)
class Mount:
    """A prefix of keys and the file, or the pattern of files, whose keys it precedes; both have the same captures.

    >>> mount = parse_mount("tp{t}.=ckpt/consolidated.{t:02d}.pth")
    >>> mount.match_key("tp1.layers.0.w"), mount.write_file({"t": 1})
    (('tp1.', {'t': 1}), 'ckpt/consolidated.01.pth')
    >>> mount.file.match("ckpt/consolidated.03.pth"), mount.write_prefix({"t": 3})
    ({'t': 3}, 'tp3.')
    """

    prefix: NumberedText
    file: NumberedText

    def __str__(self) -> str:
        return f"{self.prefix}={self.file}"

    def match_key(self, fqn: str) -> tuple[str, dict[str, int]] | None:
        """Return the prefix of a key that this mount takes, with its numbers; None if it does not take the key."""
        return self.prefix.match_start(fqn)

    def write_prefix(self, numbers: Mapping[str, int]) -> str:
        """Return the prefix with numbers."""
        return self.prefix.write(numbers)

    def write_file(self, numbers: Mapping[str, int]) -> str:
        """Return the name of the file with numbers, padded as the captures say."""
        return self.file.write(numbers)


@dataclass(frozen=True, slots=True)
class MountedFile:
    """A file that a mount reads: the prefix of its keys, its path, and its numbers by the names of the captures."""

    prefix: str
    path: Path
    numbers: Mapping[str, int]


def is_path_mapping(value: object) -> TypeGuard[Mapping[str, str | Path]]:
    """Return whether a value has a path for each prefix: it is no header and no state dict."""
    return isinstance(value, Mapping) and any(isinstance(path, str | os.PathLike) for path in value.values())


def is_mount(text: str) -> bool:
    """Return whether a text that names a source is a mount: it has a `=`, and there is no file of this name.

    >>> is_mount("vae.=vae.safetensors"), is_mount("vae.safetensors")
    (True, False)
    """
    return "=" in text and not _exists(text)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def parse_mount(text: str) -> Mount:
    """Return a mount; a file that exists under the name as it is written has no captures.

    Raises `UsageError` (RK426) if it is malformed.
    """
    prefix, sign, file = text.partition("=")
    if not sign:
        raise _make_malformed(text, "it has no '='", "write PREFIX=FILE")
    return make_mount(prefix, file)


def make_mount(prefix: str, path: str | Path) -> Mount:
    """Return the mount of a file or a pattern under a prefix; raises `UsageError` (RK426) if it is malformed."""
    file = str(path)
    text = f"{prefix}={file}"
    if not file:
        raise _make_malformed(text, "no file follows the '='", "write PREFIX=FILE")
    if problem := find_name_problem(prefix):
        raise _make_malformed(text, f"its prefix {problem}", "no key can start with it")
    mount = Mount(_parse_text(text, prefix), _parse_file(text, prefix, file))
    if widths := [part for part in mount.prefix.parts if isinstance(part, Capture) and part.width is not None]:
        help = f"write {{{widths[0].name}}} in it; {widths[0]} may stand in the name of the file"
        raise _make_malformed(text, "a number in a prefix has no padding", help)
    names, others = mount.prefix.list_names(), mount.file.list_names()
    if alone := [name for name in names if name not in others]:
        help = f"write {{{alone[0]}}} in the name of the file too, or a number in the prefix"
        raise _make_malformed(text, f"{{{alone[0]}}} stands in the prefix, but not in the name of the file", help)
    if alone := [name for name in others if name not in names]:
        help = f"give each file a prefix of its own, such as {alone[0]}{{{alone[0]}}}.={file}"
        raise _make_malformed(text, f"{{{alone[0]}}} stands in the name of the file, but not in the prefix", help)
    return mount


def _parse_file(text: str, prefix: str, file: str) -> NumberedText:
    if "{" not in prefix and _exists(file):
        return NumberedText((file,))
    return _parse_text(text, file)


def _parse_text(text: str, part: str) -> NumberedText:
    """Return the prefix or the file of a mount as literal parts and captures."""
    parts: list[str | Capture] = []
    for place, piece in enumerate(_BRACES.split(part)):
        if place % 2:
            found = _CAPTURE.fullmatch(piece)
            if found is None:
                help = "a capture is {t}, or {t:02d} for a number that is padded to two digits"
                raise _make_malformed(text, f"{{{piece}}} is no capture", help)
            parts.append(Capture(found[1], int(found[2]) if found[2] else None))
        elif "{" in piece or "}" in piece:
            raise _make_malformed(text, f"a brace without its partner in {part!r}", "write captures as {t}")
        elif piece.isdecimal() and 0 < place < 2 * len(_BRACES.findall(part)):
            raise _make_malformed(text, _NO_SIGN, _NO_SIGN_HELP)
        elif piece:
            parts.append(piece)
    pairs = itertools.pairwise(parts)
    if any(isinstance(one, Capture) and isinstance(other, Capture) for one, other in pairs):
        raise _make_malformed(text, _NO_SIGN, _NO_SIGN_HELP)
    return NumberedText(tuple(parts))


_NO_SIGN = "two numbers follow each other without a sign between them"
_NO_SIGN_HELP = "put a letter, a dot or a dash between two captures"


def _make_malformed(text: str, problem: str, help: str) -> UsageError:
    title = f"{show_key(text)!r} is no mount: {problem}"
    return UsageError(Diagnostic("RK426", escape_line(title), help=(escape_line(help),)))


def parse_declared_files(rules: RuleFile) -> tuple[Mount, ...]:
    """Return the mounts that a rule file declares; raises `InvalidRules` (RK426) with all that are malformed.

    A rule file is untrusted: its patterns stay in the folder that the user names.
    """
    mounts, problems = [], []
    for text in rules.source_files:
        try:
            mount = parse_mount(text.value if "=" in text.value else f"={text.value}")
            file = str(mount.file)
            if file.startswith(("/", "~")) or ".." in file.split("/"):
                title = f"{show_key(text.value)!r} leads out of the folder"
                help = ("write a path below the folder that is read",)
                raise UsageError(Diagnostic("RK426", title, help=help))
            mounts.append(mount)
        except UsageError as error:
            problems += [replace(problem, labels=(Label(text.span),)) for problem in error.diagnostics]
    if problems:
        raise InvalidRules(problems)
    return tuple(mounts)


# ---------------------------------------------------------------------------------------------- the files that fit


def find_files(mount: Mount, folder: Path | None = None) -> tuple[MountedFile, ...]:
    """Return the files that a mount names, in the order of their numbers; a path is relative to `folder`.

    Each number from the lowest to the highest must be there; of several captures each combination.

    Raises `UnreadableCheckpoint`: RK427 if nothing fits, RK428 if files are missing, RK429 if two files have the same
    numbers.

    >>> import tempfile
    >>> home = Path(tempfile.mkdtemp())
    >>> for name in ("c.00.pth", "c.01.pth", "other.pth"):
    ...     (home / name).touch()
    >>> [(each.prefix, each.path.name) for each in find_files(parse_mount("tp{t}.=c.{t}.pth"), home)]
    [('tp0.', 'c.00.pth'), ('tp1.', 'c.01.pth')]
    """
    home = folder or Path()
    if not mount.file.list_names():
        return (MountedFile(str(mount.prefix), home / str(mount.file), {}),)
    found = sorted(_walk(mount, home), key=lambda file: (tuple(file.numbers.values()), str(file.path)))
    for one, other in itertools.pairwise(found):
        if one.numbers == other.numbers:
            title = f"two files have {_show_numbers(one.numbers)}: {one.path.name} and {other.path.name}"
            if one.path.name == other.path.name:
                title = f"two files have {_show_numbers(one.numbers)}: {one.path} and {other.path}"
            help = ("write the padding, such as {t:02d}, to read only one of them",)
            raise make_unreadable("RK429", title, one.path.parent, help=help)
    _check_complete(mount, found)
    return tuple(found)


def _walk(mount: Mount, home: Path) -> list[MountedFile]:
    """Return every file that fits, looking only into folders that fit so far; ends after `MAX_ENTRIES` names."""
    segments = _split_file(mount.file)
    looked = itertools.count(1)
    places: list[tuple[Path, dict[str, int]]] = [(home, {})]
    for depth, segment in enumerate(segments, 1):
        fitting: list[tuple[Path, dict[str, int]]] = []
        lacking: list[Path] = []
        for place, numbers in places:
            before = len(fitting)
            for entry in _list_entries(place) if segment.list_names() else [str(segment)]:
                if next(looked) > MAX_ENTRIES or len(fitting) > MAX_FILES:
                    title = f"too many files to compare with {show_key(str(mount))!r}"
                    raise make_unreadable("RK427", title, home, help=("name the files one by one",))
                read = segment.match(entry)
                if read is None or any(numbers.get(name, number) != number for name, number in read.items()):
                    continue
                path = place / entry
                if _exists(str(path)) if depth == len(segments) else path.is_dir():
                    fitting.append((path, {**numbers, **read}))
            if len(fitting) == before:
                lacking.append(place)
        if not fitting:
            raise _make_no_fit(mount, segment, lacking[0])
        if lacking:
            title = f"{segment} is missing in {join_words((place.name for place in lacking), 5)}"
            raise make_unreadable("RK428", title, lacking[0].parent, help=_MISSING_HELP)
        places = fitting
    names = mount.prefix.list_names()
    ordered = [(path, {name: numbers[name] for name in names}) for path, numbers in places]
    return [MountedFile(mount.write_prefix(numbers), path, numbers) for path, numbers in ordered]


_MISSING_HELP = (
    "fetch what is missing again",
    "if nothing is missing, name the files one by one, each with its prefix",
)


def _split_file(file: NumberedText) -> list[NumberedText]:
    """Return the segments of a path; the first one of an absolute path is its root."""
    segments: list[list[str | Capture]] = [[]]
    for part in file.parts:
        if isinstance(part, Capture):
            segments[-1].append(part)
            continue
        first, *others = part.split("/")
        segments[-1].append(first)
        segments += [[other] for other in others]
    if str(file).startswith("/"):
        segments[0] = ["/"]
    filled = [NumberedText(tuple(part for part in segment if part != "")) for segment in segments]
    return [segment for segment in filled if str(segment) not in ("", ".")]


def _list_entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        title = f"cannot read the directory: {describe_os_error(error)}"
        raise make_unreadable("RK400", title, folder, refused=error) from error


def _make_no_fit(mount: Mount, segment: NumberedText, place: Path) -> UnreadableCheckpoint:
    """Return the error for the first segment of a path that nothing fits, with what lies in the folder."""
    there = [entry for entry in _list_entries(place) if not entry.startswith(".")]
    title = f"nothing here fits {show_key(str(segment))!r} of the mount {show_key(str(mount))!r}"
    notes = (f"here are: {join_words(map(show_key, there), 8)}" if there else "the folder is empty",)
    return make_unreadable("RK427", title, place, help=_suggest_pattern(segment, there), notes=notes)


def _suggest_pattern(segment: NumberedText, there: Sequence[str]) -> tuple[str, ...]:
    """Return the help that shows how the nearest names are written as a pattern."""
    from difflib import get_close_matches  # takes 2 ms and is needed only after a mistake

    captures = [part for part in segment.parts if isinstance(part, Capture)]
    patterns = set(there[:1000])
    for entry in there[:1000]:
        pieces = re.split(r"[0-9]+", entry)
        if len(pieces) == len(captures) + 1:
            names = [*(f"{{{capture.name}}}" for capture in captures), ""]
            patterns.add("".join(itertools.chain(*zip(pieces, names, strict=True))))
    close = get_close_matches(str(segment), sorted(patterns), 1, 0.7)
    if close and close[0] != str(segment):
        return (f"did you mean {show_key(close[0])!r}?",)
    return ("name files that are there; {t} stands for a number, and everything else for itself",)


def _check_complete(mount: Mount, found: Sequence[MountedFile]) -> None:
    """Raise `UnreadableCheckpoint` (RK428) if a number between the lowest and the highest has no file."""
    names = mount.prefix.list_names()
    there = {tuple(file.numbers.values()) for file in found}
    ranges = [range(min(values), max(values) + 1) for values in zip(*there, strict=True)]
    # Numbers may be far apart: the first ones that are missing are enough.
    missing = list(itertools.islice((each for each in itertools.product(*ranges) if each not in there), 1000))
    if not missing:
        return
    numbers = dict(zip(names, missing[0], strict=True))
    more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
    title = f"{_show_numbers(numbers)} is missing: there is no {_guess_name(mount, numbers, found[0])}{more}"
    have = [_show_numbers(file.numbers) for file in found]
    if len(names) == 1:
        have = [f"{names[0]} = {join_words((str(number) for (number,) in sorted(there)), 12)}"]
    notes = (f"there: {join_words(have, 6)}",)
    raise make_unreadable("RK428", title, found[0].path.parent, help=_MISSING_HELP, notes=notes)


def _guess_name(mount: Mount, numbers: Mapping[str, int], beside: MountedFile) -> str:
    """Return the name that a missing file would have: padded like the one beside it."""
    segments = _split_file(mount.file)
    names = []
    for segment, name in zip(segments, beside.path.parts[-len(segments) :], strict=True):
        found = re.fullmatch(segment._compile(_DIGITS), name)
        widths = iter([len(digits) for digits in found.groups()] if found is not None else ())
        names.append(
            "".join(p if isinstance(p, str) else f"{numbers[p.name]:0{next(widths, 0)}d}" for p in segment.parts)
        )
    first = next(place for place, segment in enumerate(segments) if segment.list_names())
    return "/".join(names[first:])


def _show_numbers(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {number}" for name, number in numbers.items())
