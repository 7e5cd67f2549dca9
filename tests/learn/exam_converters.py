"""How the exam on converters is sat: the variants of a pair, and a judge who applies the file and compares bytes.

`learn` and `learn_through` are run as a user runs them, the written file is applied by the engine, and every key of
either side must be right or be named as not taken. A file that is learned from values is then applied to other values
of the same layout: a guess that only fits the values that it was made from is wrong there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from converters import LAYOUTS, State, get_converter, make_layout
from safetensors.torch import save_file

import remapkit
from remapkit.authoring.learn import Learned
from remapkit.authoring.through import RandomTensors
from remapkit.diagnostics.errors import UsageError
from remapkit.formats.manifest import write_manifest


@dataclass(slots=True)
class Marks:
    """What the judge found: targets that are right, what is wrong, and guesses that the report names."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)


def make_a(name: str, kind: str, seed: int = 0) -> State:
    a = RandomTensors(make_layout(name), seed).make_state()
    firsts: dict[object, str] = {}
    for place, fqn in enumerate(a):
        first = firsts.setdefault(a[fqn].shape, fqn)
        if kind == "constant" and place % 3:
            a[fqn] = torch.full_like(a[fqn], place % 3 - 1)
        if kind == "tied" and place % 4 == 1:
            a[fqn] = a[first].clone()
    return a


def convert(name: str, a: State) -> State:
    return {fqn: tensor.clone().contiguous() for fqn, tensor in get_converter(name)(dict(a)).items()}


def spoil(b: State, kind: str) -> set[str]:
    """Change B; return the keys whose values no converter gives."""
    first, middle, last = next(iter(b)), list(b)[len(b) // 2], list(b)[-1]
    if kind == "changed":
        b[middle] = b[middle].flip(0) + 1
        return {middle}
    if kind == "missing":
        del b[first]
        return {first}
    if kind == "more":
        b[f"{last}.more"] = torch.rand(5)
    if kind == "cast":
        b[first] = b[first].double()
        return {first}
    return set()


def judge(learned: Learned, a: State, b: State) -> Marks:
    """Apply the written file with the engine; every key of A and B must be right, or be named as not taken."""
    made, taken = run_rules(learned.text, a)
    marks = Marks(sum(fqn in b and same(tensor, b[fqn]) for fqn, tensor in made.items()))
    open_a = {*learned.only_a, *learned.undecided, *learned.unsaid}
    open_b = {*learned.only_b, *learned.open_b, *learned.unsaid.values()}
    marks.wrong += [f"{fqn} is wrong" for fqn, tensor in made.items() if fqn not in b or not same(tensor, b[fqn])]
    marks.wrong += [f"{fqn} of B is not named" for fqn in b if fqn not in made and fqn not in open_b]
    marks.wrong += [f"{fqn} of A is not named" for fqn in a if fqn not in taken and fqn not in open_a]
    return marks


def run_rules(text: str, a: State) -> tuple[State, State]:
    """Apply a file to a whole checkpoint, as its own comment says: what it does not read is listed under `drop:`."""
    rules = remapkit.loads(text)
    taken = {fqn: tensor for fqn, tensor in a.items() if rules.match(fqn)}
    rest = [f"  - '{fqn}'\n" for fqn in a if fqn not in taken]
    whole = remapkit.loads("".join([text, *(["drop:\n", *rest] if rest else [])]))
    return dict(whole(dict(a))), taken


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def find_guesses(name: str, learned: Learned, spoiled: set[str]) -> tuple[list[str], list[str]]:
    """Return the targets that the rules get wrong on other values than those that they were learned from.

    The first are those that the report says nothing of; the second are settled by evidence that it names.
    """
    a = make_a(name, "random", seed=1)
    made, _ = run_rules(learned.text, a)
    b = convert(name, a)
    wrong = [fqn for fqn, one in made.items() if fqn not in spoiled and not (fqn in b and same(one, b[fqn]))]
    told = {each.target for each in learned.settled.values()}
    told |= {fqn for each in learned.relations if each.by for fqn in each.targets}
    return [f"{fqn} is a guess" for fqn in wrong if fqn not in told], [fqn for fqn in wrong if fqn in told]


def sit(name: str, kind: str, folder: Path) -> Marks:
    """Learn from the checkpoints of a converter's source and result; nothing learned is nothing right."""
    a = make_a(name, kind)
    b = convert(name, a)
    spoiled = spoil(b, kind)
    for state, file in ((a, "a"), (b, "b")):
        save_file(state, folder / f"{file}.safetensors")
    try:
        report = remapkit.learn(folder / "a.safetensors", folder / "b.safetensors")
    except UsageError as error:
        assert error.diagnostics[0].code == "RK625"
        return Marks()
    marks = judge(report.learned, a, b)
    silent, marks.guessed = find_guesses(name, report.learned, spoiled)
    marks.wrong += silent
    return marks


def sit_through(name: str, folder: Path) -> Marks:
    """Learn through the converter, and apply the file to values that it has not seen."""
    write_manifest(make_layout(name), folder / "a.json")
    reference = f"py:diffusers.loaders.single_file_utils:convert_{name}"
    report = remapkit.learn_through(reference, folder / "a.json", arg=dict(LAYOUTS[name].args))
    a = make_a(name, "random", seed=1)
    return judge(report.learned, a, convert(name, a))
