"""Several outputs in one run: who takes which key, files read back by torch and safetensors, ties."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from io_kit import KEEP, bytes_of, everything_in, raw, read_back, rules
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnwritableOutput, UsageError
from remapkit.plans.moves import Move, RuleRef
from remapkit.tensors.spec import TensorSpec
from remapkit.write.outputs import divide_moves, read_outputs
from remapkit.write.targets import find_same_output

RANKS = """remapkit: 1
name: ranks
rules:
  - {id: row, path: '{m:**}.wo.weight', split: {dim: 1, by: t, count: 2, sizes: equal}, to: 'tp{t}.{m}.wo.weight'}
  - {id: column, path: '{m:**}.wq.weight', split: {dim: 0, by: t, count: 2, sizes: equal}, to: 'tp{t}.{m}.wq.weight'}
  - {id: norm, path: '{m:**}.norm.weight', copy: {by: t, count: 2}, to: 'tp{t}.{m}.norm.weight'}
"""


# ------------------------------------------------------------------------------------------------ who takes what

SEGMENTS = st.sampled_from(["vae", "unet", "tp0", "tp1", "tp10", "tp01", "w", "b"])
KEYS = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)
PREFIXES = {
    "": "",
    "vae.": r"vae\.",
    "vae.w.": r"vae\.w\.",
    "tp{t}.": r"tp(0|[1-9]\d*)\.",
    "tp1.": r"tp1\.",
    "u": "u",
}
PREFIXES |= {"unet.tp{t}.": r"unet\.tp(0|[1-9]\d*)\.", "tp{t}.vae.": r"tp(0|[1-9]\d*)\.vae\."}


def expect(prefixes: list[str], fqn: str) -> tuple[str, str] | None:
    """The mount that takes a key, and the prefix in the key: every one is tried, the longest wins, then a literal."""
    found = [(len(m[0]), "{" not in p, p, m[0]) for p in prefixes if (m := re.match(PREFIXES[p], fqn))]
    return max(found)[2:] if found else None


@settings(max_examples=300)
@given(
    st.lists(KEYS, min_size=1, max_size=12, unique=True),
    st.lists(st.sampled_from(sorted(PREFIXES)), min_size=1, max_size=4, unique=True),
)
def test_every_key_goes_to_the_longest_prefix_and_nothing_is_lost(keys: list[str], prefixes: list[str]) -> None:
    mounts = [
        f"{prefix}=f{n}-{{t}}.pth" if "{" in prefix else f"{prefix}=f{n}.pth" for n, prefix in enumerate(prefixes)
    ]
    moves = [Move(key, (key,), (), RuleRef("all"), TensorSpec("F32", (1,))) for key in keys]
    taken = {key: expect(prefixes, key) for key in keys}
    problems = set()
    if prefixes != [""]:
        problems |= {"RK515"} if None in taken.values() else set()
        wrong = {t[0] for k, t in taken.items() if t and k[len(t[1]) :][:1] in ("", ".")}
        problems |= {"RK518"} if wrong else set()
        problems |= {"RK516"} if set(prefixes) - {each[0] for each in taken.values() if each} else set()
    if problems:
        with pytest.raises(UnwritableOutput) as caught:
            divide_moves(read_outputs(mounts), moves)
        assert {each.code for each in caught.value.diagnostics} == problems
        return
    outputs = divide_moves(read_outputs(mounts), moves)
    together = [(output.prefix + move.target, move.sources) for output in outputs for move in output.moves]
    assert sorted(together) == sorted((key, (key,)) for key in keys)
    place = {key: number for number, key in enumerate(keys)}
    for output in outputs:
        order = [place[output.prefix + move.target] for move in output.moves]
        assert order == sorted(order), "the order of the plan"
        assert {taken[output.prefix + move.target] for move in output.moves} == {
            (prefixes[int(output.path.name[1])], output.prefix)
        }
        number = re.search(r"\d+", output.prefix.removeprefix("f"))
        assert "-" not in output.path.name or (number and output.path.name.endswith(f"-{number[0]}.pth"))
    assert len({(output.path, output.prefix) for output in outputs}) == len(outputs)


def test_outputs_are_in_the_order_of_mounts_and_numbers() -> None:
    keys = ["tp10.w", "tp2.w", "vae.w", "tp0.w"]
    moves = [Move(key, (key,), (), RuleRef("all"), TensorSpec("F32", (1,))) for key in keys]
    outputs = divide_moves(read_outputs({"vae.": "v.pth", "tp{t}.": Path("r/{t:02d}.pth")}), moves)
    assert [str(output.path) for output in outputs] == ["v.pth", "r/00.pth", "r/02.pth", "r/10.pth"]


@pytest.mark.parametrize(
    ("given", "mounts"),
    [
        ("out.pth", ["=out.pth"]),
        (Path("a=b.pth"), ["=a=b.pth"]),
        ("runs/lr=0.1/m.pth", ["=runs/lr=0.1/m.pth"]),
        ("vae.=a/b=c.pth", ["vae.=a/b=c.pth"]),
        ("=out.pth", ["=out.pth"]),
        ({"": "rest.pth", "a.": Path("a.pth")}, ["=rest.pth", "a.=a.pth"]),
        (("a.=a.pth", Path("r.pth")), ["a.=a.pth", "=r.pth"]),
    ],
)
def test_what_names_an_output(given: Any, mounts: list[str]) -> None:
    assert [str(mount) for mount in read_outputs(given)] == mounts


def test_an_existing_folder_or_file_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(read_outputs("lr=0.1/m.pth")[0].prefix) == "lr"
    Path("lr=0.1").mkdir()
    Path("a=b.pth").touch()
    assert [str(read_outputs(name)[0].prefix) for name in ("lr=0.1/m.pth", "a=b.pth")] == ["", ""]


@pytest.mark.parametrize(
    "given", [[], {}, ["a.pth", "b.pth"], ["a.=1.pth", "a.=2.pth"], ["", "a.=1.pth"], "-", [5], {"a.": 5}, {5: "a"}]
)
def test_outputs_that_cannot_be_are_refused_before_anything_is_read(given: Any, keep: remapkit.RuleSet) -> None:
    with pytest.raises(UsageError) as caught:
        remapkit.apply(keep, "not there.pth", given)
    assert caught.value.diagnostics[0].code == "RK609"


NAMES = ["m.safetensors", "m.safetensors.index.json", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("names", "same"),
    [
        ([NAMES[0], NAMES[2]], True),
        ([NAMES[2], NAMES[0]], True),
        ([NAMES[2], NAMES[3]], False),
        ([NAMES[2], NAMES[3], NAMES[0]], True),
        (["m.pth", NAMES[0]], False),
        (["a/m.pth", "b/m.pth"], False),
        (["link/m.pth", "a/m.pth"], True),
        (["a/same.pth", "a/n.pth"], True),
    ],
)
def test_two_outputs_that_are_one(names: list[str], same: bool, tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "same.pth").symlink_to("n.pth")
    paths = [tmp_path / name for name in names]
    assert (find_same_output(paths, [path.name for path in paths]) is not None) == same


# ------------------------------------------------------------------------------------------------ files by value

DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int64)


def make_state(seed: int, keys: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = itertools.cycle([(3, 4), (), (0, 2), (7,)])
    return {
        key: torch.randint(0, 200, shape, generator=generator).to(DTYPES[n % 4])
        for n, (key, shape) in enumerate(zip(keys, shapes, strict=False))
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=9, unique=True), st.data())
def test_the_files_together_are_the_plan_by_value(keys: list[str], data: Any) -> None:
    state = make_state(len(keys), [f"{key}.x" for key in keys])
    suffix = st.sampled_from([".safetensors", ".pth"])
    shards = data.draw(st.booleans())
    mounts = {}
    for n, head in enumerate(dict.fromkeys(key.partition(".")[0] + "." for key in keys)):
        if n == 0 or data.draw(st.booleans()):
            mounts[head] = f"o{n}" + (".safetensors" if shards else data.draw(suffix))
    if any(not key.startswith(tuple(mounts)) for key in state):
        mounts[""] = "rest" + (".safetensors" if shards else data.draw(suffix))
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name, "in.safetensors"), Path(name, "out")
        folder.mkdir()
        save_file(state, source)
        written = remapkit.apply(
            remapkit.loads(KEEP),
            source,
            {prefix: folder / file for prefix, file in mounts.items()},
            shard_size=60 if shards else None,
            verify=True,
        )
        together: dict[str, torch.Tensor] = {}
        for path, names in written.outputs.items():
            files = [
                file for file in written.files if file.name.startswith(f"{path.stem}-") or file.stem == path.stem
            ]
            files += [file for file in written.files if file.name == f"{path.name}.index.json"]
            prefix = next(prefix for prefix, file in mounts.items() if folder / file == path)
            content = {prefix + fqn: tensor for fqn, tensor in read_back(files).items()}
            assert set(content) == set(names)
            together |= content
        assert sorted(together) == sorted(state)
        assert bytes_of(together) == {fqn: raw(state[fqn]) for fqn in together}
        assert {fqn: tensor.dtype for fqn, tensor in together.items()} == {f: state[f].dtype for f in together}
        assert sorted(everything_in(folder)) == sorted(path.name for path in written.files)


PARTS = {"vae": ["a.w", "b.w"], "unet": ["a.w", "c.bias"], "text_encoder": ["embed.w"]}


def make_pipeline(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    state = {f"{part}.{key}": torch.randn(30, 50) for part, keys in PARTS.items() for key in keys}
    save_file(state, folder / "all.safetensors", metadata={"author": "me"})
    for part in PARTS:
        (folder / part).mkdir()
    return folder / "all.safetensors", state


def test_one_file_becomes_a_pipeline_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, state = make_pipeline(tmp_path)
    options = [f"-o{part}.={tmp_path}/{part}/model.safetensors" for part in PARTS]
    assert main(["apply", str(rules(tmp_path, KEEP)), str(source), *options, "--verify"]) == 0
    said = capsys.readouterr().out
    for part, keys in PARTS.items():
        found = load_file(tmp_path / part / "model.safetensors")
        assert bytes_of(found) == {key: raw(state[f"{part}.{key}"]) for key in keys}
        assert f"wrote {tmp_path}/{part}/model.safetensors ({len(keys)} tensor" in said
        with remapkit.open_checkpoint(tmp_path / part / "model.safetensors") as reader:
            metadata = reader.header().metadata
        assert metadata["author"] == "me" and metadata["remapkit.source"] == source.name
        assert metadata["remapkit.rules"] == "keep"
    assert "5 tensors" in said and "all 5 tensors equal" in said


def test_a_pipeline_folder_becomes_one_file_again(tmp_path: Path, keep: remapkit.RuleSet) -> None:
    source, state = make_pipeline(tmp_path)
    parts = {f"{part}.": tmp_path / part / "model.safetensors" for part in PARTS}
    remapkit.apply(keep, source, parts)
    back = remapkit.apply(keep, parts, tmp_path / "back.safetensors", verify=True)
    assert bytes_of(load_file(back.files[0])) == bytes_of(state)
    one = remapkit.apply(keep, tmp_path / "back.safetensors", {"": tmp_path / "x.safetensors"}, target_keys=source)
    assert bytes_of(load_file(one.files[0])) == bytes_of(state)


def test_two_files_with_the_same_keys_become_one_and_two_again(tmp_path: Path, keep: remapkit.RuleSet) -> None:
    files = {f"{name}.": tmp_path / f"{name}_noise.safetensors" for name in ("high", "low")}
    states = {prefix: {"blocks.0.w": torch.randn(8, 8), "blocks.0.b": torch.randn(8)} for prefix in files}
    for prefix, path in files.items():
        save_file(states[prefix], path)
    remapkit.apply(keep, files, tmp_path / "both.pth")
    assert sorted(torch.load(tmp_path / "both.pth", weights_only=True)) == sorted(
        prefix + fqn for prefix, state in states.items() for fqn in state
    )
    again = {prefix: path.with_name(f"again_{path.name}") for prefix, path in files.items()}
    remapkit.apply(keep, tmp_path / "both.pth", again)
    for prefix, path in again.items():
        assert bytes_of(load_file(path)) == bytes_of(states[prefix])


def test_the_order_is_that_of_the_target(tmp_path: Path, keep: remapkit.RuleSet) -> None:
    source, state = make_pipeline(tmp_path)
    order = sorted(state, reverse=True)
    outputs = {f"{part}.": tmp_path / part / "m.pth" for part in PARTS}
    remapkit.apply(keep, source, outputs, target_keys={fqn: remapkit.TensorSpec("F32", (30, 50)) for fqn in order})
    for part in PARTS:
        found = torch.load(tmp_path / part / "m.pth", weights_only=True)
        assert [f"{part}.{fqn}" for fqn in found] == [fqn for fqn in order if fqn.startswith(part)]


def test_a_source_is_opened_once_and_copied_by_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"{part}.w": torch.randn(200, 300) for part in "abc"}
    source = tmp_path / "m.safetensors"
    save_file(state, source)
    opened, calls = os.open, []

    def counted(path: Any, *args: Any, **options: Any) -> int:
        calls.append(os.fspath(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", counted)
    outputs = {f"{part}.": tmp_path / f"{part}.safetensors" for part in "abc"}
    written = remapkit.apply(remapkit.loads(KEEP), source, outputs)
    assert [Path(call).name for call in calls].count("m.safetensors") == 1
    assert set(written.how) <= {"reflink", "copy_file_range", "sendfile"}
    assert bytes_of(load_file(tmp_path / "b.safetensors")) == {"w": raw(state["b.w"])}


def test_one_file_becomes_ranks_and_one_file_again(tmp_path: Path) -> None:
    state = {f"layers.{n}.{m}.weight": torch.randn(4, 6) for n in range(2) for m in ("wo", "wq", "norm")}
    torch.save(state, tmp_path / "m.pth")
    ranks = remapkit.loads(RANKS)
    written = remapkit.apply(
        ranks, tmp_path / "m.pth", f"tp{{t}}.={tmp_path}/consolidated.{{t:02d}}.pth", verify=True
    )
    assert [path.name for path in written.files] == ["consolidated.00.pth", "consolidated.01.pth"]
    together = {}
    for rank, path in enumerate(written.files):
        found = torch.load(path, weights_only=True)
        assert torch.equal(found["layers.1.wo.weight"], state["layers.1.wo.weight"][:, 3 * rank : 3 * rank + 3])
        assert torch.equal(found["layers.1.wq.weight"], state["layers.1.wq.weight"][2 * rank : 2 * rank + 2])
        together |= {f"tp{rank}.{fqn}": tensor for fqn, tensor in found.items()}
    assert bytes_of(ranks.inverse()(together)) == bytes_of(state)
    mount = f"tp{{t}}.={tmp_path}/consolidated.{{t}}.pth"
    back = remapkit.apply(ranks.inverse(), mount, tmp_path / "back.pth", verify=True)
    assert bytes_of(torch.load(back.files[0], weights_only=True)) == bytes_of(state)
    # And from several files to several files, in one run.
    twice = remapkit.apply(remapkit.loads(KEEP), mount, f"tp{{t}}.={tmp_path}/again.{{t}}.safetensors")
    assert bytes_of(load_file(twice.files[1])) == bytes_of(torch.load(written.files[1], weights_only=True))


# ------------------------------------------------------------------------------------------------ ties


def make_tied(folder: Path, suffix: str) -> Path:
    w = torch.randn(4, 4)
    source = folder / f"m{suffix}"
    if suffix == ".pth":
        torch.save({"a.x": w, "a.y": w, "b.x": w}, source)
    else:
        save_file({"a.x": w}, source, metadata={"a.y": "a.x", "b.x": "a.x"})
    return source


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("out", [".pth", ".safetensors"])
@pytest.mark.parametrize("untie", [False, True])
def test_ties_stay_within_a_file_and_are_copies_across(suffix: str, out: str, untie: bool, tmp_path: Path) -> None:
    source = make_tied(tmp_path, suffix)
    text = "remapkit: 1\nname: t\nrules: [{id: all, path: '{m:a|b}.{r:x|y}', to: '{m}.new.{r}'}]\n"
    one, two = tmp_path / f"one{out}", tmp_path / f"two{out}"
    written = remapkit.apply(remapkit.loads(text), source, {"a.": one, "b.": two}, untie=untie, verify=True)
    assert ("RK519" in {each.code for each in written.diagnostics}) == (not untie)
    if out == ".pth":
        first, second = (torch.load(path, weights_only=True) for path in (one, two))
        assert (first["new.x"].data_ptr() == first["new.y"].data_ptr()) == (not untie)
    else:
        first, second = load_file(one), load_file(two)
        with remapkit.open_checkpoint(one) as reader:
            assert reader.header().recorded == ({} if untie else {"new.y": "new.x"})
        assert sorted(first) == (["new.x", "new.y"] if untie else ["new.x"])
        assert dict(written.tied) == ({} if untie else {"a.new.y": "a.new.x"})
    assert torch.equal(first["new.x"], second["new.x"])


def test_names_that_are_only_recorded_go_with_their_tensor_or_become_copies(tmp_path: Path) -> None:
    source = make_tied(tmp_path, ".safetensors")
    text = "remapkit: 1\nname: t\nrules: [{id: all, path: '{r:**}', to: 'n.{r}'}]\n"
    outputs = {"n.a.": tmp_path / "a.safetensors", "n.b.": tmp_path / "b.pth"}
    written = remapkit.apply(remapkit.loads(text), source, outputs)
    assert {"RK420", "RK519"} <= {each.code for each in written.diagnostics}
    with remapkit.open_checkpoint(tmp_path / "a.safetensors") as reader:
        assert (list(reader.header()), reader.header().recorded) == (["x"], {"y": "x"})
    assert torch.equal(torch.load(tmp_path / "b.pth")["x"], load_file(source)["a.x"])


def test_ranks_that_all_have_both_names_tear_no_tie(tmp_path: Path) -> None:
    source = make_tied(tmp_path, ".pth")
    text = "remapkit: 1\nname: t\nrules: [{id: all, path: '{r:**}', copy: {by: t, count: 2}, to: 'tp{t}.{r}'}]\n"
    written = remapkit.apply(remapkit.loads(text), source, f"tp{{t}}.={tmp_path}/r{{t}}.pth")
    assert "RK519" not in {each.code for each in written.diagnostics}
    found = torch.load(tmp_path / "r1.pth", weights_only=True)
    assert len({tensor.data_ptr() for tensor in found.values()}) == 1 and len(found) == 3
