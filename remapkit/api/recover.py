"""`remapkit.recover`: restores a file after an interrupted rename in place."""

from __future__ import annotations

import os
from pathlib import Path

from remapkit.api.ruleset import checked
from remapkit.files.errors import make_unreadable
from remapkit.write import execute


@checked
def recover(file: str | Path) -> bool:
    """Restore a file after an interrupted rename in place, byte for byte, from the journal next to it.

    Args:
        file: The file that was given to `apply(..., in_place=True)`.

    Returns:
        Whether there was anything to restore.

    Raises:
        UnreadableCheckpoint: There is no such file (`MissingCheckpoint`).
        UnwritableOutput: The journal is damaged or belongs to another file, or the file cannot be written.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
    >>> _ = path.write_bytes(b"")
    >>> recover(path)
    False
    """
    path = Path(file)
    if not os.path.lexists(path):
        raise make_unreadable("RK400", f"no such file: {path}", refused=FileNotFoundError())
    return execute.recover(path)
