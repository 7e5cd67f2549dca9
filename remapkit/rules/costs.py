"""What each entry of a rule file costs to compile, and the message if the file costs too much."""

from __future__ import annotations

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import join_words
from remapkit.patterns.steps import Steps

_SHOWN = 3


class CompileCosts:
    """The steps that compiling may take in all, and what each entry (a rule, a `keep`, an `add`) took of them."""

    def __init__(self, limit: int) -> None:
        self.steps = Steps(limit)
        self._begun: list[tuple[int, str, Span]] = []

    def begin(self, name: str, span: Span) -> None:
        """Count the following steps for an entry."""
        self._begun.append((self.steps.spent, name, span))

    def explain(self) -> Diagnostic:
        """Return the message that the current entry exceeds the limit, with the entries that cost the most."""
        starts = [start for start, _, _ in self._begun]
        spent = [after - start for start, after in zip(starts, [*starts[1:], self.steps.limit], strict=True)]
        most = sorted(zip(spent, self._begun, strict=True), key=lambda each: -each[0])[:_SHOWN]
        listed = join_words(f"{name} ({steps:,})" for steps, (_, name, _) in most)
        _, name, span = self._begun[-1]
        title = f"the rules are too large: {name} exceeds the {self.steps.limit:,} steps for compiling a file"
        note = f"{len(self._begun):,} entries up to here; the most steps: {listed}"
        help = (
            "list fewer words, or describe them by a type ({i:int}) or a class",
            "shorten ranges and counted repeats, and write one pattern for keys that differ in a number",
        )
        return Diagnostic("RK012", title, (Label(span),), help, (note,))
