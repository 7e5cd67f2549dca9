"""Random headers, moves and entries: every name that a rewritten entry quotes is one of the result.

The oracle knows sets of names only. `remapkit/formats/name_map.py` answers by ranges of sorted lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.formats.name_map import NameMap, UnclearName
from remapkit.formats.quoted_names import LORA, QUANTIZATION, rewrite_entries

SEGMENTS = st.sampled_from(["a", "b", "q", "k", "0", "1", "layers", "é"])
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)
TENSORS = st.tuples(PATHS, st.sampled_from(["weight", "bias", "weight"])).map(".".join)


@st.composite
def moves(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Renames by segments, then splits, joins, drops and renames of single tensors."""
    fqns = draw(st.lists(TENSORS, unique=True, min_size=1, max_size=8))
    segments = draw(st.dictionaries(SEGMENTS, st.sampled_from(["a", "k", "x", "x.y", "query"]), max_size=4))
    targets = {fqn: (".".join(segments.get(each, each) for each in fqn.split(".")),) for fqn in fqns}
    for fqn in draw(st.lists(st.sampled_from(fqns), max_size=3)):
        module, leaf = targets[fqn][0].rpartition(".")[::2] if targets[fqn] else ("m", "weight")
        targets[fqn] = draw(
            st.sampled_from([(), (f"{module}1.{leaf}", f"{module}2.{leaf}"), (f"joined.{leaf}",), (f"{module}.u",)])
        )
    return targets


def list_names(fqns: Iterator[str] | Sequence[str]) -> set[str]:
    """Tensors, and every module that they are in."""
    parts = (fqn.split(".") for fqn in fqns)
    return {".".join(each[: count + 1]) for each in parts for count in range(len(each))}


def list_modules(fqns: Iterator[str] | Sequence[str]) -> set[str]:
    fqns = list(fqns)
    return list_names([fqn.rpartition(".")[0] for fqn in fqns])


def list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from list_texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from list_texts(each)


@st.composite
def entries(draw: st.DrawFn, targets: Mapping[str, Sequence[str]]) -> tuple[str, Any]:
    name = draw(st.sampled_from([QUANTIZATION, LORA, "other"]))
    known = sorted(list_names(list(targets)))
    texts = st.sampled_from([*known, "nothing", "layers.9", "x.y.q"])
    if name == QUANTIZATION:
        return name, {
            "format_version": "1.0",
            "layers": draw(st.dictionaries(texts, st.sampled_from([{}, {"f": 1}]))),
        }
    if name == LORA:
        ends = draw(st.lists(texts.map(lambda text: text.split(".", 1)[-1]), max_size=4))
        return name, {"r": 4, draw(st.sampled_from(["target_modules", "a.target_modules"])): ends}
    leaves = st.one_of(texts, st.integers(), st.none())
    return name, draw(
        st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
    )


@settings(max_examples=200)
@given(data=st.data())
def test_every_name_of_a_rewritten_entry_is_one_of_the_result(data: st.DataObject) -> None:
    targets = data.draw(moves())
    name, value = data.draw(entries(targets))
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
    before, after = list_names(list(targets)), list_names([new for each in targets.values() for new in each])
    entry = rewrite_entries({name: text}, NameMap(targets)).get(name)
    new = text if entry is None else entry.text
    if entry is not None and entry.unclear:
        assert new == text and all(each in text or "\\u" in text for each in entry.unclear)
        return
    if name != LORA:
        quoted = set(value["layers"]) if name == QUANTIZATION else set(list_texts(value))
        said = json.loads(new)
        said = set(said["layers"]) if name == QUANTIZATION else set(list_texts(said))
        stale = {each for each in said if each in before and each not in after}
        assert not stale, "a name that exists no more"
        assert quoted & before or new == text, "what quotes nothing stays"
        if () not in targets.values():  # a value goes with its key
            assert {each for each in quoted if each not in before} <= said, "what is no name stays"
        assert name != "other" or said <= quoted | after
    if name == QUANTIZATION:
        old, now = value["layers"], json.loads(new)["layers"]
        for module, each in old.items():
            for fqn, made in targets.items():
                if fqn.startswith(f"{module}.") and "." not in fqn[len(module) + 1 :]:
                    assert all(now[target.rpartition(".")[0]] == each for target in made)


@settings(max_examples=120)
@given(data=st.data())
def test_ends_say_the_modules_that_they_said(data: st.DataObject) -> None:
    targets = data.draw(moves())
    end = data.draw(st.sampled_from(sorted(list_modules(list(targets))))).split(".", 1)[-1]
    names = NameMap(targets)

    def matched(ends: Sequence[str], modules: set[str]) -> set[str]:
        return {each for each in modules for end in ends if f".{each}".endswith(f".{end}")}

    try:
        ends = names.find_ends(end)
        places = [names.find(module) or () for module in matched([end], list_modules(list(targets)))]
    except UnclearName:
        return
    assert ends is not None
    made = list_modules([new for each in targets.values() for new in each])
    assert matched(ends, made) == {place for each in places for place in each}


@settings(max_examples=120)
@given(data=st.data())
def test_rules_and_their_inverse_give_the_entry_back(data: st.DataObject) -> None:
    """Segments that get new names, each its own: every byte comes back, spaces and numbers too."""
    fqns = data.draw(st.lists(TENSORS, unique=True, min_size=1, max_size=8))
    letters = data.draw(st.permutations(list("stuvwxyz")))
    new = dict(zip(["a", "b", "q", "k", "0", "1", "layers", "é"], letters, strict=True))
    there = {fqn: (".".join(new.get(each, each) for each in fqn.split(".")),) for fqn in fqns}
    back = {made[0]: (fqn,) for fqn, made in there.items()}
    name, value = data.draw(entries(there))
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2])))
    if name == QUANTIZATION:
        text = text.replace('{"f": 1}', '{ "f":1.50e+3 }')
    entry = rewrite_entries({name: text}, NameMap(there)).get(name)
    if entry is None or entry.unclear:
        return
    again = rewrite_entries({name: entry.text}, NameMap(back)).get(name)
    if again is not None and again.unclear and name != QUANTIZATION:
        return  # a word beside a text that happens to be one of the new names
    restored = entry.text if again is None else again.text
    assert json.loads(restored) == json.loads(text)
    if text.isascii() or "\\u" not in restored:
        assert restored == text
