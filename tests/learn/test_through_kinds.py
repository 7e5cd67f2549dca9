"""The kinds of converters: functions and their arguments, tables of expressions, mappers like vLLM's, files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import remapkit
from remapkit.diagnostics.errors import UsageError
from remapkit.formats.manifest import write_manifest
from remapkit.models import converter as converters
from remapkit.models.converter import resolve_converter

STATE = {"layers.0.q.weight": 1, "layers.1.q.bias": 2, "lm_head.weight": 3, "visual.q.x": 4}


@dataclass
class Mapper:
    """A stand-in for vLLM's `WeightsMapper`, by what its documentation and users say.

    Expressions first, then substrings, prefixes and suffixes; each is replaced once, and None drops the weight.
    """

    orig_to_new_regex: Mapping[re.Pattern[str], str | None] = field(default_factory=dict)
    orig_to_new_substr: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_prefix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: Mapping[str, str | None] = field(default_factory=dict)

    def _map_name(self, key: str) -> str | None:
        for pattern, new in self.orig_to_new_regex.items():
            if pattern.search(key):
                if new is None:
                    return None
                key = pattern.sub(new, key)
        for old, new in self.orig_to_new_substr.items():
            if old in key:
                if new is None:
                    return None
                key = new.join(key.split(old, 1))
        for old, new in self.orig_to_new_prefix.items():
            if key.startswith(old):
                if new is None:
                    return None
                key = new + key.removeprefix(old)
        for old, new in self.orig_to_new_suffix.items():
            if key.endswith(old):
                if new is None:
                    return None
                key = key.removesuffix(old) + new
        return key

    def apply(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        return ((new, data) for name, data in weights if (new := self._map_name(name)) is not None)

    def apply_list(self, values: list[str]) -> list[str]:
        return [new for name in values if (new := self._map_name(name)) is not None]


MAPS: list[dict[str, Any]] = [
    {"orig_to_new_prefix": {"layers.": "model.layers.", "visual.": None}},
    {"orig_to_new_prefix": {"layers.": "model.", "model.": "language_model.model.", "lm_head.": "head."}},
    {
        "orig_to_new_substr": {".q.": ".q_proj.", "weight": "w"},
        "orig_to_new_suffix": {".w": ".kernel", ".bias": None},
    },
    {"orig_to_new_regex": {re.compile(r"layers\.(\d)"): r"blocks.\1", re.compile("visual"): None}},
    {"orig_to_new_regex": {re.compile("[aeiou]"): "_"}, "orig_to_new_substr": {"_": "o"}},
    {"orig_to_new_substr": {"e": "E"}},
    {"orig_to_new_substr": {"l": "L"}, "orig_to_new_prefix": {"Layers": "x"}, "orig_to_new_suffix": {"t": "T"}},
]


def place(monkeypatch: pytest.MonkeyPatch, value: object, name: str = "value") -> str:
    monkeypatch.setattr(converters, "resolve_value", lambda reference: value)
    return f"py:module:{name}"


@pytest.mark.parametrize("parts", MAPS)
def test_mappers_with_and_without_a_method(monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]) -> None:
    mapper = Mapper(**parts)
    wanted = dict(mapper.apply(STATE.items()))
    assert list(wanted) == mapper.apply_list(list(STATE)) and list(wanted) != list(STATE)
    assert resolve_converter(place(monkeypatch, mapper)).call(dict(STATE)) == wanted
    bare = SimpleNamespace(**vars(mapper))
    assert resolve_converter(place(monkeypatch, bare)).call(dict(STATE)) == wanted


def test_the_method_of_a_mapper_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Mapper):
        def _map_name(self, key: str) -> str | None:
            return f"own.{key}"

    found = resolve_converter(place(monkeypatch, Own(orig_to_new_prefix={"layers.": "no."}))).call({"layers.w": 1})
    assert found == {"own.layers.w": 1}


TABLE = {"^layers": "h", r"h\.(\d)": r"b.\1", "^lm_head": "head", "weight$": "w"}


def test_expressions_one_after_the_other_or_the_first_that_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (TABLE, list(TABLE.items()), tuple(TABLE.items())):
        found = resolve_converter(place(monkeypatch, value)).call(dict(STATE))
        assert found == {"b.0.q.w": 1, "b.1.q.bias": 2, "head.w": 3, "visual.q.x": 4}
    name = "Model._checkpoint_conversion_mapping"
    found = resolve_converter(place(monkeypatch, TABLE, name)).call(dict(STATE))
    assert found == {"h.0.q.weight": 1, "h.1.q.bias": 2, "head.weight": 3, "visual.q.x": 4}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"(": "x"}, "entry 1 is no pair of a regular expression and its replacement"),
        ({"a": "b", "c": 3}, "entry 2 is no pair"),
        ([("a", "b"), "abc"], "entry 2 is no pair"),
        ([], "is a list, which converts no state dict"),
        (3, "is an int, which converts no state dict"),
        (None, "converts no state dict"),
    ],
)
def test_what_is_no_converter(monkeypatch: pytest.MonkeyPatch, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        resolve_converter(place(monkeypatch, value))
    assert raised.value.diagnostics[0].code == "RK668"


@pytest.mark.parametrize("value", [TABLE, Mapper(), SimpleNamespace(orig_to_new_prefix={"a": "b"})])
def test_a_table_takes_no_arguments(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    with pytest.raises(UsageError, match="which takes no") as raised:
        resolve_converter(place(monkeypatch, value), {"x": 1})
    assert raised.value.diagnostics[0].code == "RK668"


def config_first(config: Any, state_dict: Any, *, deep: bool = False) -> Any:
    return {"got": (config, state_dict, deep)}


def state_first(things: Any, config: Any = None, **more: Any) -> Any:
    return {"got": (things, config, more)}


def positional(sd: Any, /, x: int = 0) -> Any:
    return {"got": (sd, x)}


def only_star(*args: Any) -> Any:
    return {"got": args}


def no_state() -> Any: ...


@pytest.mark.parametrize(
    ("function", "args", "wanted"),
    [
        (config_first, {"config": [1]}, ([1], STATE, False)),
        (config_first, {"config": None, "deep": True}, (None, STATE, True)),
        (state_first, {}, (STATE, None, {})),
        (state_first, {"config": 1, "other": 2}, (STATE, 1, {"other": 2})),
        (positional, {"x": 2}, (STATE, 2)),
        (only_star, {}, (STATE,)),
    ],
)
def test_where_the_state_dict_goes(
    monkeypatch: pytest.MonkeyPatch, function: Any, args: dict[str, Any], wanted: object
) -> None:
    assert resolve_converter(place(monkeypatch, function), args).call(STATE) == {"got": wanted}


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (config_first, {}, "also needs config"),
        (config_first, {"config": 1, "deeep": 1}, "takes no argument 'deeep'"),
        (config_first, {"state_dict": 1, "config": 2}, "takes no state dict"),
        (no_state, {}, "takes no state dict"),
        (positional, {"sd": 1}, "takes no argument 'sd'"),
        (only_star, {"x": 1}, "takes no argument 'x'"),
    ],
)
def test_arguments_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, function: Any, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        resolve_converter(place(monkeypatch, function), args)
    assert raised.value.diagnostics[0].code == "RK607"


def test_every_run_gets_arguments_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(sd: Any, config: Any) -> Any:
        return {config.pop(): value for value in sd.values()}

    converter = resolve_converter(place(monkeypatch, convert), {"config": ["a"]})
    assert [converter.call({"x": 1}) for _ in range(3)] == [{"a": 1}] * 3


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "names_of_this_test.py").write_text("PREFIX = 'm.'\nLATE = 'l.'\n")
    (tmp_path / "convert.py").write_text(
        "from names_of_this_test import PREFIX\n"
        "def convert(sd):\n"
        "    from names_of_this_test import LATE\n"
        "    return {LATE + PREFIX + k: v for k, v in sd.items()}\n"
        "class Holder:\n    TABLE = {'a': 'b'}\n"
    )
    assert resolve_converter(f"{tmp_path}/convert.py:convert").call({"a": 1}) == {"l.m.a": 1}
    assert resolve_converter(f"{tmp_path}/convert.py:Holder.TABLE").call({"a": 1}) == {"b": 1}


def test_a_mapper_becomes_rules(tmp_path: Path) -> None:
    (tmp_path / "mapper.py").write_text(
        "class M:\n"
        "    orig_to_new_prefix = {'model.': 'language_model.model.', 'skip.': None}\n"
        "    orig_to_new_suffix = {'.gamma': '.weight'}\n"
        "hf_to_vllm_mapper = M()\n"
    )
    names = [*(f"model.layers.{n}.norm.gamma" for n in range(3)), "skip.w"]
    write_manifest(
        remapkit.StateDictSpec(dict.fromkeys(names, remapkit.TensorSpec("F32", (4,)))), tmp_path / "a.json"
    )
    found = remapkit.learn_through(f"{tmp_path}/mapper.py:hf_to_vllm_mapper", tmp_path / "a.json")
    assert found.learned.pairs == {
        f"model.layers.{n}.norm.gamma": f"language_model.model.layers.{n}.norm.weight" for n in range(3)
    }
    assert found.vanished == ("skip.w",)
