"""The exceptions that remapkit raises for errors that a user can fix; all have `diagnostics`.

Each one is also a subclass of the corresponding built-in exception:

| exception | is also | exit code |
|---|---|---|
| `InvalidRules`, `FailedCheck` | `ValueError` | 1 |
| `UsageError`, `UnreadableCheckpoint` | `ValueError` | 2 |
| `BadArgument` (a `UsageError`) | `TypeError` | 2 |
| `MissingFile` (a `UsageError`), `MissingCheckpoint` (an `UnreadableCheckpoint`) | `FileNotFoundError` | 2 |
| `RefusedRead` (an `UnreadableCheckpoint`) | `OSError` | 2 |
| `UnwritableOutput` | `OSError` | 2 |
| `OutputExists` (an `UnwritableOutput`) | `FileExistsError` | 2 |
| `FailedWrite` (an `UnwritableOutput`) | `OSError` | 1 |

So code that catches `OSError` around these must first re-raise `RemapkitError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, ClassVar

from remapkit.diagnostics.diagnostic import Diagnostic


class RemapkitError(Exception):
    """The base of every error that a user can cause; `diagnostics` holds all problems found, not only the first.

    `exit_code` is for the command line: 1 if the input failed a check, 2 for bad usage or unreadable input. `number`
    is the system's error number: the `errno` of those that are an `OSError` too.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic], number: int | None = None) -> None:
        given = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = given
        super().__init__("\n\n".join(map(str, given)))
        if isinstance(self, OSError):
            kinds = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST}
            known = (each for kind, each in kinds.items() if isinstance(self, kind))
            object.__setattr__(self, "errno", next(known, number))

    def __str__(self) -> str:
        # `OSError` would make its own text from an error number and a file name.
        return "\n\n".join(map(str, self.diagnostics))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.diagnostics, getattr(self, "errno", None))


class InvalidRules(RemapkitError, ValueError):
    """A rule file cannot be read, compiled or proven."""


class FailedCheck(RemapkitError, ValueError):
    """A plan or a check has problems; nothing was written or loaded."""


class UsageError(RemapkitError, ValueError):
    """An argument is wrong, a name is unknown, or a model cannot be built."""

    exit_code = 2


class BadArgument(UsageError, TypeError):
    """An argument of a wrong type, or a number out of its range."""


class MissingFile(UsageError, FileNotFoundError):
    """A rule file, a pack, a config or a list of pairs does not exist."""


class UnreadableCheckpoint(RemapkitError, ValueError):
    """A checkpoint, an index or a manifest is missing, broken or hostile."""

    exit_code = 2


class MissingCheckpoint(UnreadableCheckpoint, FileNotFoundError):
    """A checkpoint, an index or a manifest does not exist."""


class RefusedRead(UnreadableCheckpoint, OSError):
    """The operating system denies reading a checkpoint."""


class UnwritableOutput(RemapkitError, OSError):
    """An output cannot be written; nothing was changed."""

    exit_code = 2


class OutputExists(UnwritableOutput, FileExistsError):
    """An output already exists and may not be replaced (`force`)."""


class FailedWrite(UnwritableOutput):
    """An output was written but is wrong: the disk failed, or the data read back differs."""

    exit_code = 1
