"""Names that `__metadata__` quotes are those of the file that it is written to, however that is read and written.

Kinds: one file, several outputs, shards, renamed in place, a root, files joined below prefixes, and dry runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import remapkit
from remapkit.diagnostics.errors import FailedCheck

QUANT = "_quantization_metadata"
RULES = """
remapkit: 1
name: t
rules:
  - {id: q, path: '{m:**}.q.{x}', to: '{m}.query.{x}'}
unmatched: keep
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES, encoding="utf-8")
    return path


def save(path: Path, *modules: str, **metadata: str) -> Path:
    save_file({f"{each}.weight": torch.ones(4, 4) for each in modules}, path, metadata=metadata or None)
    return path


def quant(*modules: str, **more: Any) -> dict[str, str]:
    return {QUANT: json.dumps({"layers": {each: {"format": "float8_e4m3fn"} for each in modules}, **more})}


def read(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return dict(opened.metadata())


def layers(path: Path) -> list[str]:
    """The modules that an entry names; each of them must be in the file."""
    found = list(json.loads(read(path)[QUANT])["layers"])
    with safe_open(path, "pt") as opened:
        assert {f"{each}.weight" for each in found} <= set(opened.keys())
    return found


def codes(written: remapkit.Written) -> list[str]:
    return [each.code for each in written.diagnostics if each.code in ("RK369", "RK740", "RK741")]


def test_one_file_and_a_dry_run_of_it(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "a.q", "a.k", **quant("a.q", "a.k"))
    dry = remapkit.apply(rules, source, dry_run=True)
    written = remapkit.apply(rules, source, tmp_path / "o.safetensors", verify=True)
    assert codes(dry) == codes(written) == ["RK740"]
    assert layers(tmp_path / "o.safetensors") == ["a.query", "a.k"]
    assert read(source)[QUANT] == quant("a.q", "a.k")[QUANT], "the source stays"


def test_a_file_renamed_in_place(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "a.q", "a.k", **quant("a.q", "a.k"))
    assert codes(remapkit.apply(rules, source, in_place=True)) == ["RK740"]
    assert layers(source) == ["a.query", "a.k"]


def test_every_output_has_the_names_of_its_own_tensors(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "a.q", "a.k", "b.q", "c", **quant("a.q", "b.q", "a.k", "c"))
    outputs = {"a.": tmp_path / "a.safetensors", "b.": tmp_path / "b.safetensors", "": tmp_path / "c.safetensors"}
    written = remapkit.apply(rules, source, {prefix: str(path) for prefix, path in outputs.items()})
    assert [layers(path) for path in outputs.values()] == [["query", "k"], ["query"], ["c"]]
    assert set(codes(written)) == {"RK740"}
    parts: list[str] = [f"{prefix}={path}" if prefix else str(path) for prefix, path in outputs.items()]
    keep = tmp_path / "keep.yaml"
    keep.write_text("remapkit: 1\nname: keep\nunmatched: keep\n", encoding="utf-8")
    again = remapkit.apply(keep, parts, tmp_path / "again.safetensors", metadata_from=str(outputs[""]))
    assert codes(again) == []
    assert sorted(layers(tmp_path / "again.safetensors")) == ["a.k", "a.query", "b.query", "c"]


def test_an_entry_that_one_output_cannot_have_is_reported_with_its_name(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "a.q", "b.q", main='{"main": "a.q"}')
    outputs = {"a.": str(tmp_path / "a.safetensors"), "b.": str(tmp_path / "b.safetensors")}
    written = remapkit.apply(rules, source, outputs)
    (found,) = [each for each in written.diagnostics if each.code == "RK369"]
    assert found.place == outputs["b."] and read(Path(outputs["b."]))["main"] == '{"main": "a.q"}'
    assert read(Path(outputs["a."]))["main"] == '{"main": "query"}'


def test_every_output_that_keeps_an_old_name_is_named(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "a.q", "b.q", "c.q", main='{"main": "c.q"}')
    outputs = {f"{name}.": str(tmp_path / f"{name}.safetensors") for name in "abc"}
    written = remapkit.apply(rules, source, outputs)
    stale = [each.place for each in written.diagnostics if each.code == "RK369"]
    assert stale == [outputs["a."], outputs["b."]]


def test_every_shard_has_the_new_names(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "a.q", "a.k", "b.q", **quant("a.q", "a.k", "b.q"))
    remapkit.apply(rules, source, tmp_path / "o.safetensors", shard_size=100)
    shards = sorted(tmp_path.glob("o-*.safetensors"))
    assert len(shards) == 3
    assert {tuple(json.loads(read(shard)[QUANT])["layers"]) for shard in shards} == {("a.query", "a.k", "b.query")}


def test_shards_with_entries_of_their_own_say_it_all_together(rules: Path, tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, module in zip(names, ("a.q", "b.q"), strict=True):
        save(tmp_path / name, module, **quant(module), who=name)
    index = tmp_path / "m.safetensors.index.json"
    weight_map = dict(zip(("a.q.weight", "b.q.weight"), names, strict=True))
    index.write_text(json.dumps({"metadata": {"total_size": 128}, "weight_map": weight_map}), encoding="utf-8")
    written = remapkit.apply(rules, index, tmp_path / "o.safetensors")
    assert layers(tmp_path / "o.safetensors") == ["a.query", "b.query"]
    (note,) = [each for each in written.diagnostics if each.code == "RK431"]
    assert note.notes == ("who",) and read(tmp_path / "o.safetensors")["who"] == names[1]


def test_below_a_root_the_names_lose_it_too(rules: Path, tmp_path: Path) -> None:
    full = [f"model.diffusion_model.{each}" for each in ("a.q", "a.k")]
    source = save(tmp_path / "s.safetensors", *full, "vae.q", **quant(*full, "vae.q"))
    written = remapkit.apply(rules, source, tmp_path / "o.safetensors", root="model.diffusion_model")
    assert layers(tmp_path / "o.safetensors") == ["a.query", "a.k"] and codes(written) == ["RK740"]


@pytest.mark.parametrize("strip", ["module", "net"])
def test_a_stripped_segment_is_stripped_in_metadata(strip: str, rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", f"{strip}.a.q", **quant(f"{strip}.a.q"), main=f'["{strip}.a.q"]')
    remapkit.apply(rules, source, tmp_path / "o.safetensors", strip=[strip])
    assert layers(tmp_path / "o.safetensors") == ["a.query"]
    assert read(tmp_path / "o.safetensors")["main"] == '["a.query"]'


JOINED: dict[str, tuple[Mapping[str, str], Mapping[str, str], list[str] | None]] = {
    "each its own": (quant("q"), quant("q"), ["x.query", "y.query"]),
    "one has none": (quant("q"), {}, ["x.query"]),
    "other spaces": ({QUANT: '{"v": 1, "layers": {}}'}, {QUANT: '{"layers":{ },"v":1}'}, []),
    "another field": (quant("q", v=1), quant("q", v=2), None),
    "not the same kind": (quant("q"), {QUANT: "[]"}, None),
    "no layers in the first": (quant(), quant("q"), ["y.query"]),
}


@pytest.mark.parametrize(("one", "other", "wanted"), list(JOINED.values()), ids=list(JOINED))
def test_files_below_prefixes_have_their_names_below_them(
    one: dict[str, str], other: dict[str, str], wanted: list[str] | None, rules: Path, tmp_path: Path
) -> None:
    """What two files say of different modules is no contradiction; what cannot be one entry is refused by name."""
    sources = [
        f"x.={save(tmp_path / 'x.safetensors', 'q', **one)}",
        f"y.={save(tmp_path / 'y.safetensors', 'q', **other)}",
    ]
    if wanted is not None:
        remapkit.apply(rules, sources, tmp_path / "o.safetensors")
        assert layers(tmp_path / "o.safetensors") == wanted
        return
    with pytest.raises(FailedCheck) as caught:
        remapkit.apply(rules, sources, tmp_path / "o.safetensors")
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK431" and QUANT in problem.notes[0]
    remapkit.apply(rules, sources, tmp_path / "o.safetensors", metadata_from=str(tmp_path / "x.safetensors"))
    assert layers(tmp_path / "o.safetensors") == ["x.query"]


def test_a_layer_with_two_formats_is_a_contradiction(tmp_path: Path) -> None:
    from remapkit.formats.quoted_names import merge_entries

    first = '{"layers": {"a": {"format": "f8"}, "b": 1}}'
    assert merge_entries(QUANT, first, '{"layers": {"a": {"format": "f4"}, "c": 1}}') is None
    both = '{"layers": {"a": {"format": "f8"}, "b": 1, "c" : 2}}'
    assert merge_entries(QUANT, first, '{"layers": {"a":{"format":"f8"}, "c" : 2}}') == both


def test_what_cannot_be_read_below_a_root_is_said(rules: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.safetensors", "net.a.q", "ema.q", main='{"main": "ema.q"}')
    written = remapkit.apply(rules, source, tmp_path / "o.safetensors", root="net")
    (found,) = [each for each in written.diagnostics if each.code == "RK369"]
    assert found.values["names"] == ["ema.q"]
