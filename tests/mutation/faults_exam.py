"""Faults in `remapkit/authoring/` that the exam on converters notices: what is learned would be wrong, or less."""

from __future__ import annotations

from tests.mutation.fault import Fault

EXAM = ("tests/learn/test_converters.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "a rename is not tried on every key",
        "authoring/learn.py",
        "if match.target not in wanted or len(matches) > 1 or again:",
        "if len(matches) > 1 or again:",
        "no rule leads a key to a tensor with other bytes",
        EXAM,
    ),
    Fault(
        "a duplicate is a pair",
        "authoring/pair_by_value.py",
        "        if len(fqns) == len(others) == 1 and not content.is_constant:\n",
        "        if fqns and others and not content.is_constant:\n",
        "keys whose bytes others have too are not paired by value",
        EXAM,
    ),
    Fault(
        "rules in the order of their places in memory",
        "authoring/generalize.py",
        "found = sorted(zip(groups, loose, strict=True), key=lambda each: order[each[0][0]])",
        "found = sorted(zip(groups, loose, strict=True), key=lambda each: id(each[0]))",
        "learning the same again gives the same",
        ("tests/learn/test_exam.py",),
    ),
    Fault(
        "the parts of a split in the wrong order",
        "authoring/build_cut.py",
        'tuple(selection.target.fqn for selection in selections),\n        cut="split",',
        'tuple(selection.target.fqn for selection in selections)[::-1],\n        cut="split",',
        "the parts of a split follow one another as their rows do",
        EXAM,
    ),
)
