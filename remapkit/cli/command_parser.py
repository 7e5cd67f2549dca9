"""The parsers of the command line: their messages, and options anywhere among the arguments of a command."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import NoReturn

EXIT_UNABLE = 2


class Parser(argparse.ArgumentParser):
    """Escapes terminal control characters in messages about wrong arguments, and prints them in the wanted format."""

    format: str | None = None

    def error(self, message: str) -> NoReturn:
        from remapkit.diagnostics.wording import escape_line

        lines = list(map(escape_line, message.split("\n")))
        if self.format is not None:
            from remapkit.cli.render import show_error
            from remapkit.diagnostics.diagnostic import Diagnostic

            help = (f"see `{self.prog} --help`",)
            show_error((Diagnostic("RK609", " ".join(lines), help=help),), self.format, EXIT_UNABLE)
            self.exit(EXIT_UNABLE)
        super().error("\n".join(lines))


class CommandParser(Parser):
    """Takes options between positional arguments: of `A --more-a F B`, argparse refuses B where it is optional.

    Options are read first, then all that is left at once. `parse_intermixed_args` does the same, but takes words
    after `--` for options, and is not called for subcommands.
    """

    _only_options = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(args or ())
        end = words.index("--") if "--" in words else len(words)
        required = [each for each in self._actions if each.required]
        try:
            self._only_options = True
            for each in required:
                each.required = False
            found, left = super().parse_known_args(words[:end], namespace)
            self._only_options = False
            for each in required:  # what is missing is reported together
                each.required = not each.option_strings or getattr(found, each.dest) is None
            return super().parse_known_args([*left, *words[end:]], found)
        finally:
            self._only_options = False
            for each in required:
                each.required = True

    def _get_positional_actions(self) -> list[argparse.Action]:
        return [] if self._only_options else super()._get_positional_actions()


def find_format(arguments: Sequence[str]) -> str | None:
    """Return the format that programs read, if the arguments name one; they may be wrong otherwise."""
    written = [each.removeprefix("--format=") for each in arguments if each.startswith("--format=")]
    written += [after for each, after in itertools.pairwise(arguments) if each == "--format"]
    return next((each for each in written if each in ("json", "github")), None)
