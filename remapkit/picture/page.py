"""One self-contained page: the template, its style and its script, and the picture as data in a script element."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from pathlib import Path

from remapkit.diagnostics.version import VERSION
from remapkit.picture.model import Picture

FOLDER = Path(__file__).parent


def make_page(picture: Picture) -> str:
    """Return the text of the page; the same picture always gives the same text.

    >>> from remapkit.picture.model import Side
    >>> evil = Picture("</script><script>alert(1)</script>", Side("a"), Side("b"))
    >>> "alert(1)</script>" in make_page(evil)
    False
    """
    data = {**picture.to_json(), "tool": f"remapkit {VERSION}"}
    parts = {
        "TITLE": escape(f"{picture.name} · remapkit report".encode("utf-8", "replace").decode("utf-8")),
        "STYLE": _read("report.css"),
        "DRAWINGS": _read("drawings.js"),
        "SCRIPT": _read("report.js"),
        "DATA": dump_safely(data),
    }
    # Split, then filled: a name of a part inside another part is never filled.
    head, *rest = _read("report.html").split("@@")
    return head + "".join(parts[each] if number % 2 == 0 else each for number, each in enumerate(rest))


def dump_safely(data: object) -> str:
    r"""Return compact JSON that an HTML parser takes as one text: `<` and `&` and all but ASCII are escaped.

    >>> dump_safely(["</script>", "ä"])
    '["\\u003c/script\\u003e","\\u00e4"]'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
