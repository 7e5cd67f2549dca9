"""What the eye needs: a drawing for every operation, and colours that stand out from every ground below them."""

from __future__ import annotations

import re

import pytest

import remapkit
from remapkit.ops.base import Op
from remapkit.ops.calls import FORMS
from remapkit.ops.dtype import AddOp
from remapkit.ops.join import FillOp, Join, Nested, SplitPart, TakeIndex
from remapkit.ops.reorder import Flip
from remapkit.ops.shape import Transpose
from remapkit.picture.describe_ops import DRAWN, MAX_TEXT, Drawing, describe_ops
from remapkit.picture.page import FOLDER

SPEC = remapkit.TensorSpec("F32", (4,))

STYLE = (FOLDER / "report.css").read_text(encoding="utf-8")
THEMES = {
    name: dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", block))
    for name, block in re.findall(r"^:root(\[data-theme=dark\])?\{(.*?)\}", STYLE, re.MULTILINE | re.DOTALL)
}


def luminance(color: str) -> float:
    """WCAG's relative luminance of `#rgb` or `#rrggbb`."""
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_of_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
def test_texts_and_lines_stand_out(theme: str) -> None:
    colors = THEMES[""] | THEMES[theme]
    grounds = ("bg", "card", "hover", "pick")
    texts = ("ink", "soft", "bad", "warn", "good", "note")
    assert [
        (name, ground) for name in texts for ground in grounds if contrast(colors[name], colors[ground]) < 4.5
    ] == []
    rules = [f"r{number}" for number in range(8)]
    assert [
        (name, ground)
        for name in (*rules, "focus")
        for ground in grounds
        if contrast(colors[name], colors[ground]) < 3
    ] == []
    assert len({colors[rule] for rule in rules}) == 8 and set(THEMES) == {"", "[data-theme=dark]"}


def test_every_operation_has_a_drawing() -> None:
    script = (FOLDER / "drawings.js").read_text(encoding="utf-8")
    drawn = set(re.findall(r"(?:^    |, )(\w+): (?:\(|dim =>)", script, re.MULTILINE)) | {"zeros"}
    assert drawn == {*DRAWN, "other"}
    assert set(FORMS) <= set(DRAWN)


@pytest.mark.parametrize(
    ("ops", "sources", "drawings", "words"),
    [
        ([SplitPart(1, 2, 3)], 1, [("split", 1, 2, 3)], "split along dim 1: part 3 of 3"),
        (
            [TakeIndex(0, 6), Transpose((0, 1))],
            1,
            [("unstack", 0, 0, 0), ("transpose", 0, 0, 0)],
            "number 6 → transpose",
        ),
        ([Join(((), (), ()), 1, None)], 3, [("concat", 1, 0, 3)], "concat along dim 1"),
        ([Join(((),), None, 0)], 8, [("stack", 0, 0, 8)], "stack along dim 0"),
        (
            [Join(((), (Flip(),)), 0, 1)],
            6,
            [("flip", 0, 0, 0), ("concat", 0, 0, 2), ("stack", 1, 0, 3)],
            "[flip dim 0] → concat along dim 0, then stack along dim 1",
        ),
        ([Join(((),), None, None, merge=True)], 2, [("merge", 0, 0, 0)], "merge equal tensors"),
        ([FillOp("zeros", SPEC)], 0, [("fill", 0, 0, 0)], "fill with zeros"),
        ([AddOp(1.0)], 1, [("add", 0, 0, 0)], "add term 1.0"),
        (
            [Nested(Join(((), ()), 0, None), ((Flip(),), ()), (1, 1))],
            2,
            [("flip", 0, 0, 0), ("concat", 0, 0, 2)],
            "concat",
        ),
    ],
)
def test_a_drawing_has_the_numbers_of_its_operation(
    ops: list[Op], sources: int, drawings: list[Drawing], words: str
) -> None:
    found, text = describe_ops(ops, sources)
    assert list(found) == drawings and words in text


def test_a_long_text_of_operations_says_that_it_is_cut() -> None:
    _, text = describe_ops([Flip(number) for number in range(60)])
    assert len(text) == MAX_TEXT and text.endswith("…")
