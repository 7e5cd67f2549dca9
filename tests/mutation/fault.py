"""The form of a planted fault, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that a tired programmer could make, as one replacement in the source of the package.

    `old` must occur exactly once in `file` (relative to `remapkit/`), and `new` takes its place. `claim` is what then
    no longer holds; `tests` are the files and folders of tests that must notice it, the fastest first. `equivalent`
    is the reason, in one sentence, why nothing can notice it; without one, a fault that survives is an error.
    """

    name: str
    file: str
    old: str
    new: str
    claim: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def plant(self) -> str:
        """Return the source of the file with the fault; raises `ValueError` if `old` does not occur exactly once."""
        source = (ROOT / "remapkit" / self.file).read_text(encoding="utf-8")
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name}: `old` must occur once in {self.file}, got {source.count(self.old)} times")
        return source.replace(self.old, self.new)
