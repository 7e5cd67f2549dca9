"""Says messages for Python: they name options of the command line, for which the functions have keywords.

Every message is written once, with options (`--root net`). The command line shows it as it is; `str` of a diagnostic
or an error, and the log, show `root='net'`. Commands in backticks stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FLAGS: Mapping[str, str] = {
    **{
        name: f"{name.replace('-', '_')}=True"
        for name in (
            "dry-run",
            "in-place",
            "verify",
            "untie",
            "force",
            "partial",
            "allow-undecided",
            "strict-dtype",
            "strict-pickle",
            "allow-expand",
            "follow-links",
            "write",
            "with-files",
            "graph",
            "fold-alpha",
        )
    },
    "no-target": "declared_target=False",
}
"""What Python writes for each option without a value."""

VALUES: Mapping[str, str] = {
    **{
        name: name.replace("-", "_")
        for name in (
            "root",
            "root-a",
            "root-b",
            "rules-a",
            "rules-b",
            "strip",
            "output",
            "to-format",
            "dtype",
            "shard-size",
            "model",
            "model-config",
            "target-keys",
            "config",
            "ckpt",
            "keys",
            "metadata-from",
            "tolerance",
            "source",
            "source-config",
            "target",
            "target-config",
            "forward",
            "input",
            "oracle",
            "seed",
            "name",
            "pairs",
            "via",
            "from-layout",
            "through",
            "arg",
            "adapter-format",
            "alpha",
            "base",
        )
    },
    "from": "source",
    "more-a": "a",
    "more-b": "b",
    "to": "target",
    "model-arg": "model_args",
    "source-arg": "source_args",
    "target-arg": "target_args",
    "param": "params",
}
"""The keyword for each option with a value."""

_LISTS = frozenset({"strip"})
_TEXTS = frozenset({"root", "root-a", "root-b", "input"})
_MAPPINGS = frozenset({"arg", "model-arg", "source-arg", "target-arg", "param"})
_METAVARS = frozenset(
    {"M", "C", "FILE", "OUT", "NAME", "NUMBER", "SHAPE", "SIZE", "R", "T", "N", "D", "value", "MODEL", "PREFIX"}
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|\[.*\]")
_NUMBERS = re.compile(r"\d+(?:,\d+)+")
_PROSE = re.compile("and|are|is|need|or|out|writes")
"""The words of messages after an option that is only mentioned; never after `--root` or `--strip`."""
_COMMAND = re.compile(r"`remapkit [^`]*`|remapkit (?:check|inspect|recover|apply) [^,;`]*")
_NAMED = re.compile(
    r"(?<![\w'`/.-])(?:--(?P<name>[a-z]+(?:-[a-z]+)*)|(?P<out>-o\b))(?![\w-])"
    r"""(?:[ =](?P<value>'[^']*'|"[^"]*"|[^\s;()'"]*[^\s,;:.?()'"]|\.(?=$|[\s,;:?)])))?"""
)


def name_keywords(text: str) -> str:
    """Return a message with Python's keywords in the place of options.

    >>> name_keywords("all 2 keys match under root 'net': --root net"), name_keywords("pass --partial")
    ("all 2 keys match under root 'net': root='net'", 'pass partial=True')
    >>> name_keywords("--model M or --target-keys FILE"), name_keywords("pass --param heads=40, or --strip module")
    ('model=M or target_keys=FILE', "pass params={'heads': 40}, or strip=['module']")
    >>> name_keywords("--model-arg and --model-config need --model")
    'model_args= and model_config= need model='
    >>> name_keywords("name a file with -o OUT"), name_keywords("-o FILE; or one for the prefix: -o 'a.=a.pth'")
    ('name a file with output=OUT', "output=FILE; or one for the prefix: output='a.=a.pth'")
    """
    if "--" not in text and "-o" not in text:
        return text
    kept = 0
    parts = []
    for command in _COMMAND.finditer(text):
        parts += [_NAMED.sub(_write_keyword, text[kept : command.start()]), command.group()]
        kept = command.end()
    return "".join((*parts, _NAMED.sub(_write_keyword, text[kept:])))


def _write_keyword(found: re.Match[str]) -> str:
    option, value = found["name"] or "output", found["value"]
    if option in FLAGS:
        return FLAGS[option] + ("" if value is None else found.group()[found.start("value") - found.start() - 1 :])
    if option not in VALUES:
        return found.group()
    keyword = VALUES[option]
    if value is None:
        return f"{keyword}="
    named = option in _LISTS or option in _TEXTS
    if (not named and _PROSE.fullmatch(value)) or (
        option == "output" and value not in _METAVARS and value[0] not in "'\""
    ):
        return f"{keyword}= {value}"
    if option in _MAPPINGS:
        name, _, inner = value.partition("=")
        return f"{keyword}={{{name!r}: {_write_value(inner)}}}"
    if option in _LISTS:
        return f"{keyword}=[{_quote(value)}]"
    is_text = option in _TEXTS and value != "PREFIX"
    return f"{keyword}={_quote(value) if is_text else _write_value(value)}"


def _write_value(value: str) -> str:
    if _NUMBERS.fullmatch(value):
        return f"[{', '.join(value.split(','))}]"
    return value if value in _METAVARS or _NUMBER.fullmatch(value) else _quote(value)


def _quote(value: str) -> str:
    return value if value[:1] in ("'", '"') else repr(value)
