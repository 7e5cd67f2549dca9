"""What authors of plugins may use besides `remapkit` itself.

A plugin is a package that `wan.vae:WanVAE` can name: a folder of `plugins/`, or a package with an entry point in the
group `remapkit.plugins`. It imports `remapkit` and this module, nothing else of remapkit: everything else may move.

* `show_error` prints a `RemapkitError` as the command line does, for plugins with a command of their own;
* `list_names` lists names in a message, the first few of many;
* `count_noun` writes a number with its noun: `2 keys`;
* `format_bytes` writes a number of bytes: `2.82 GB`;
* `open_source` opens a checkpoint as the commands do, with `ReadOptions(root=..., strip=(...,))`;
* `SourceLike` is what it opens: a path, a mount, several of them; `find_only_path` returns the path of a single one;
* `show_below` shows an open checkpoint below a root and without segments;
* `read_under_roots` yields an open checkpoint under each prefix that may be the root of its state dict;
* `describe_layouts` says which installed packs some names are those of;
* `read_json_file` reads a small JSON file (a config) strictly: one meaning or a `RemapkitError`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from remapkit.diagnostics.wording import count_noun, format_bytes, list_names
from remapkit.files.strict_json import read_json_file
from remapkit.formats.options import ReadOptions
from remapkit.registry.identify import describe_layouts
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source, read_under_roots, show_below
from remapkit.sources.parts import find_only_path

if TYPE_CHECKING:
    from remapkit.diagnostics.errors import RemapkitError

__all__ = [
    "ReadOptions",
    "SourceLike",
    "count_noun",
    "describe_layouts",
    "find_only_path",
    "format_bytes",
    "list_names",
    "open_source",
    "read_json_file",
    "read_under_roots",
    "show_below",
    "show_error",
]


def show_error(error: RemapkitError) -> int:
    """Print the diagnostics of an error to stderr, as `remapkit` does, and return its exit code.

    >>> import remapkit
    >>> show_error(remapkit.UsageError(remapkit.Diagnostic("RK609", "x must be y, got z")))
    2
    """
    from remapkit.cli import render

    render.show_error(error.diagnostics, "text", error.exit_code)
    sys.stderr.flush()
    return error.exit_code
