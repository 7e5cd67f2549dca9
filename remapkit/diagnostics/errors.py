"""The exceptions that remapkit raises for what a user can mend; each carries its diagnostics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from remapkit.diagnostics.diagnostic import Diagnostic


class RemapkitError(Exception):
    """The base of every error that a user can cause; `diagnostics` holds all problems found, not only the first.

    `exit_code` is the command line's: 1 where what was given fails, 2 where it could not run.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        given = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = given
        super().__init__("\n\n".join(map(str, given)))


class InvalidRules(RemapkitError):
    """A rule file that cannot be read, compiled or proven."""


class FailedCheck(RemapkitError):
    """A plan or a check that has problems: nothing was written or loaded."""


class UnreadableCheckpoint(RemapkitError):
    """A checkpoint, an index or a manifest that is missing, broken or hostile."""

    exit_code = 2


class UnwritableOutput(RemapkitError):
    """An output that cannot be written; nothing was changed."""

    exit_code = 2


class FailedWrite(UnwritableOutput):
    """An output that could be written, but is not what was meant: the disk failed, or what was read back differs."""

    exit_code = 1


class UsageError(RemapkitError):
    """A wrong argument, an unknown name, a model that cannot be built."""

    exit_code = 2
