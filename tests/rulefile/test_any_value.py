"""Any value in any place of a rule file: it works, or one message says where it does not.

The kinds: a value of another type than a number, a size, a word or a list; numbers without end and infinities; nodes
that are missing or there twice; and the messages themselves, whose examples are values of every type too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import value_kit as kit

from remapkit.api.ruleset import compile_rules
from remapkit.diagnostics.errors import RemapkitError
from remapkit.rulefile.read import read_text
from remapkit.rulefile.schema import explain

COUNT = int(os.environ.get("REMAPKIT_FUZZ", "600"))
PARTS = 4
"""So many workers can share the files that take longest."""


def refusal(document: dict[str, Any]) -> RemapkitError:
    with pytest.raises(RemapkitError) as caught:
        compile_rules(read_text(kit.rule_file(document), "f.yaml"))
    return caught.value


@pytest.mark.parametrize("document", kit.DOCUMENTS)
def test_the_files_that_are_changed_are_sound(document: dict[str, Any]) -> None:
    assert kit.judged(kit.rule_file(document)) == "ok"


@pytest.mark.parametrize(
    "value", ["s", "alpha // rank", "0.5", [0.5], {"by": 0.5}, True, None], ids=lambda value: f"A18-{value}"
)
def test_a_factor_that_is_no_number(value: Any) -> None:
    (problem,) = refusal(kit.op({"scale": value})).diagnostics
    written = kit.written(value)
    assert (problem.code, problem.span and problem.span.text) == ("RK022", written)
    assert problem.title.startswith("`scale` must be a number, got")


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ({"slice": {"stop": "BOOL"}}, "RK162"),
        ({"reshape": ["half", 2]}, "RK162"),
        ({"rope": {"to": "half", "heads": "F32", "head_dim": 2}}, "RK162"),
        ({"scale": kit.Raw("9" * 400 + ".0")}, "RK170"),
        ({"scale": kit.Raw("9" * 390 + ".0")}, "RK163"),
        ({"scale": 10**300}, "RK014"),
        ({"slice": {"stop": kit.Raw("9" * 5000)}}, "RK014"),
    ],
)
def test_a_number_that_is_none(op: Any, code: str) -> None:
    found = refusal(kit.op(op)).diagnostics
    assert [each.code for each in found] == [code]
    assert all(each.span is not None for each in found)


def test_a_fill_beyond_its_dtype() -> None:
    add = [{"to": "z", "fill": 70000, "shape": [1], "dtype": "F16"}]
    (problem,) = refusal(kit.op("transpose", add=add)).diagnostics
    assert (problem.code, problem.title) == ("RK163", "70000 is beyond the largest F16, 65504")


def test_any_change_of_a_file_is_read_or_refused_in_its_place() -> None:
    for seed in range(COUNT):
        kit.judged(kit.some(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_value_in_every_place(part: int) -> None:
    """One in seven of a hundred thousand files, which ones is the same each time; REMAPKIT_FUZZ_ALL=1 takes all."""
    step = 1 if os.environ.get("REMAPKIT_FUZZ_ALL") else 7
    for text in kit.every(part * step, PARTS * step):
        kit.judged(text)


def test_an_example_that_cannot_be_shown_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: examples in messages are taken for texts or whole numbers."""

    def shown(value: Any) -> str:
        return json.dumps(value) if isinstance(value, int) else str.__add__(value, "")

    monkeypatch.setattr(explain, "emit_flow", shown)
    with pytest.raises(TypeError):
        for value in kit.VALUES:
            kit.judged(kit.rule_file(kit.op({"scale": value})))
