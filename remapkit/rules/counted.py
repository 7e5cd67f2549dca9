"""Params that are counted in the header of a checkpoint: `layers: {count: 'blocks.{i:int}.{rest:**}', value: 24}`.

Rules are compiled before there is a checkpoint, with the values of the file; where a checkpoint has others, they are
compiled again with these, before anything else is done with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.rules.requirements import list_indices


def count_params(rules: CompiledRules, keys: Iterable[str]) -> CompiledRules:
    """Return the rules for a checkpoint with some keys: the same object if no param has another value there.

    A param without any key keeps its own value. Raises `InvalidRules` if the rules cannot be compiled with these.

    >>> from remapkit.rulefile.read import read_text
    >>> text = "remapkit: 1\\nname: t\\nparams: {n: {count: 'a.{i:int}', value: 1}}\\nkeep: ['a.{i:0..n-1}']\\n"
    >>> count_params(compile_rules(read_text(text)), ["a.0", "a.7"]).params
    {'n': 8}
    """
    if not rules.counted:
        return rules
    known = list(keys)
    found = {each.name: list_indices(each.reader, each.by, known)[-1:] for each in rules.counted}
    counts = {name: indices[0] + 1 for name, indices in found.items() if indices}
    if all(rules.params[name] == count for name, count in counts.items()):
        return rules
    return replace(compile_rules(rules.file, *rules.inputs, counts), name=rules.name, after=rules.after)


def report_partial_counts(rules: CompiledRules, known: Iterable[str] | None, place: str) -> list[Diagnostic]:
    """Return an error for each param that a checkpoint which may lack keys cannot count (RK373).

    `known` are the keys of a whole one, if they are declared: the help says how many these have.
    """
    whole = list(known) if known is not None else []
    problems = []
    for each in rules.counted:
        indices = list_indices(each.reader, each.by, whole)[-1:]
        title = f"{each.name} is counted by {each.text.value}, and a checkpoint that may lack keys cannot be counted"
        help = f"give the number of the whole checkpoint: --param {each.name}=NUMBER"
        if indices:
            help = f"the declared source has {indices[0] + 1}: --param {each.name}={indices[0] + 1}"
        values = {"param": each.name}
        problems.append(Diagnostic("RK373", title, (Label(each.text.span),), (help,), place=place, values=values))
    return problems


def report_counts(rules: CompiledRules, keys: Iterable[str], place: str) -> list[Diagnostic]:
    """Return a note with the value of each param that is counted (RK372)."""
    known = list(keys) if rules.counted else []
    notes = []
    for each in rules.counted:
        value = rules.params[each.name]
        title = f"{each.name} = {value}, counted by {each.text.value}"
        if not list_indices(each.reader, each.by, known):
            title = f"{each.name} = {value}, its own value: no key matches {each.text.value}"
        help = (f"to use another value, pass --param {each.name}=NUMBER",)
        values = {"param": each.name, "value": value}
        severity = Severity.NOTE
        notes.append(Diagnostic("RK372", title, (Label(each.text.span),), help, (), severity, place, values))
    return notes
