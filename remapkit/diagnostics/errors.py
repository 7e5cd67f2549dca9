"""The exceptions that remapkit raises for what a user can mend; each carries its diagnostics.

Each is also the built-in exception that Python code would catch in its place:

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

So `except OSError` around code that may raise one of these must let `RemapkitError` pass first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from remapkit.diagnostics.diagnostic import Diagnostic


class RemapkitError(Exception):
    """The base of every error that a user can cause; `diagnostics` holds all problems found, not only the first.

    `exit_code` is the command line's: 1 where the input failed a check, 2 for bad usage or input that cannot be read.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        given = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = given
        super().__init__("\n\n".join(map(str, given)))

    def __str__(self) -> str:
        # `OSError` has a text of its own, made of an error number and a file name.
        return "\n\n".join(map(str, self.diagnostics))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.diagnostics,)


class InvalidRules(RemapkitError, ValueError):
    """A rule file that cannot be read, compiled or proven."""


class FailedCheck(RemapkitError, ValueError):
    """A plan or a check that has problems: nothing was written or loaded."""


class UsageError(RemapkitError, ValueError):
    """A wrong argument, an unknown name, a model that cannot be built."""

    exit_code = 2


class BadArgument(UsageError, TypeError):
    """An argument of a wrong type, or a number out of its range."""


class MissingFile(UsageError, FileNotFoundError):
    """A rule file, a pack, a config or a list of pairs that does not exist."""


class UnreadableCheckpoint(RemapkitError, ValueError):
    """A checkpoint, an index or a manifest that is missing, broken or hostile."""

    exit_code = 2


class MissingCheckpoint(UnreadableCheckpoint, FileNotFoundError):
    """A checkpoint, an index or a manifest that does not exist."""


class RefusedRead(UnreadableCheckpoint, OSError):
    """A checkpoint that the system does not let us read."""


class UnwritableOutput(RemapkitError, OSError):
    """An output that cannot be written; nothing was changed."""

    exit_code = 2


class OutputExists(UnwritableOutput, FileExistsError):
    """An output that exists already and may not be replaced (`force`)."""


class FailedWrite(UnwritableOutput):
    """An output that could be written, but is not what was meant: the disk failed, or what was read back differs."""

    exit_code = 1
