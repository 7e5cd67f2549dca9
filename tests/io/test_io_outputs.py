"""Several outputs in one run: who takes which key, files read back by torch and safetensors, all or nothing."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from io_kit import chosen, everything_in, leftovers, raw, read_back, rules
from nursery import Nursery
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import OutputExists, UnwritableOutput, UsageError
from remapkit.files import atomic
from remapkit.plans.moves import Move, RuleRef
from remapkit.tensors.spec import TensorSpec
from remapkit.write.outputs import divide_moves, read_outputs
from remapkit.write.targets import find_same_output

KEEP = "remapkit: 1\nname: keep\nunmatched: keep\nkeep: ['{all:**}']\n"
RANKS = """remapkit: 1
name: ranks
rules:
  - {id: row, path: '{m:**}.wo.weight', split: {dim: 1, by: t, count: 2, sizes: equal}, to: 'tp{t}.{m}.wo.weight'}
  - {id: column, path: '{m:**}.wq.weight', split: {dim: 0, by: t, count: 2, sizes: equal}, to: 'tp{t}.{m}.wq.weight'}
  - {id: norm, path: '{m:**}.norm.weight', copy: {by: t, count: 2}, to: 'tp{t}.{m}.norm.weight'}
"""


@pytest.fixture
def keep(tmp_path: Path) -> remapkit.RuleSet:
    return remapkit.loads(KEEP)


def bytes_of(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {fqn: raw(tensor) for fqn, tensor in state.items()}


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


# ------------------------------------------------------------------------------------------------ all or nothing


@pytest.fixture
def case(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
    """A source of 3 x 100 kB, and three outputs of which the second is in another folder."""
    source = tmp_path / "in.safetensors"
    save_file({f"{part}.w": torch.randn(25_000) for part in "abc"}, source)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    places = {"a.": "one/a.pth", "b.": "two/b.safetensors", "c.": "one/c.pth"}
    yield source, {prefix: tmp_path / place for prefix, place in places.items()}


def see(outputs: Mapping[str, Path]) -> list[dict[str, bytes]]:
    return [everything_in(folder) for folder in sorted({path.parent for path in outputs.values()})]


def stop_in_second(error: BaseException) -> Callable[[int, int], None]:
    """A progress that raises within the second of three files."""

    def progress(done: int, total: int) -> None:
        if 0.45 * total < done < 0.6 * total:
            raise error

    return progress


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"RK504.*no space left on .*/two after 1\d\d of 30\d kB"),
        (OSError(errno.EIO, "Input/output error"), "RK509"),
        (KeyboardInterrupt(), None),
    ],
)
def test_an_error_in_the_second_file_changes_nothing(
    old: bool, error: BaseException, match: str | None, case: Any, keep: remapkit.RuleSet, monkeypatch: Any
) -> None:
    from remapkit.files import copy as copying

    monkeypatch.setattr(copying, "STEP", 10_000)
    source, outputs = case
    if old:
        remapkit.apply(keep, source, outputs)
        save_file({f"{part}.w": torch.randn(25_000) for part in "abc"}, source)
    before = see(outputs)
    with pytest.raises(UnwritableOutput if match else KeyboardInterrupt) as caught:
        remapkit.apply(keep, source, outputs, force=old, progress=stop_in_second(error))
    if match:
        assert re.search(match, str(caught.value))
    assert see(outputs) == before


def refuse_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    rename, count = atomic.NewFile.rename, itertools.count(1)

    def refused(self: atomic.NewFile) -> None:
        if next(count) == number:
            raise OSError(errno.EIO, "Input/output error")
        rename(self)

    monkeypatch.setattr(atomic.NewFile, "rename", refused)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_rename_that_the_system_refuses_is_undone(
    number: int, old: bool, shards: bool, case: Any, keep: remapkit.RuleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outputs = case
    options: dict[str, Any] = {"shard_size": 1000} if shards else {}
    if shards:
        outputs = {prefix: path.with_suffix(".safetensors") for prefix, path in outputs.items()}
        save_file({f"{part}.{n}": torch.randn(200) for part in "abc" for n in range(2)}, source)
    if old:
        remapkit.apply(keep, source, outputs, **options)
    before = see(outputs)
    refuse_rename(monkeypatch, number)
    with pytest.raises(UnwritableOutput, match="RK509"):
        remapkit.apply(keep, source, outputs, force=old, **options)
    assert see(outputs) == before


def test_without_hard_links_the_message_names_what_was_replaced(
    case: Any, keep: remapkit.RuleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outputs = case
    remapkit.apply(keep, source, outputs)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    refuse_rename(monkeypatch, 3)
    with pytest.raises(UnwritableOutput) as caught:
        remapkit.apply(keep, source, outputs, force=True)
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK514" and problem.title.startswith("2 of 3 files were replaced")
    assert problem.notes == (f"{outputs['a.']}\n{outputs['b.']}",)
    assert all(read_back([path]) for path in outputs.values()), "each one is whole"


def test_existing_outputs_are_all_named_and_none_is_touched(case: Any, keep: remapkit.RuleSet) -> None:
    source, outputs = case
    for prefix in ("a.", "b."):
        outputs[prefix].write_text("old")
    before = see(outputs)
    with pytest.raises(OutputExists) as caught:
        remapkit.apply(keep, source, outputs)
    assert str(outputs["a."]) in str(caught.value) and str(outputs["b."]) in str(caught.value)
    assert "2 of 3 outputs exist" in str(caught.value)
    outputs["b."].unlink()
    with pytest.raises(OutputExists, match=r"a\.pth exists"):
        remapkit.apply(keep, source, outputs)
    outputs["a."].unlink()
    assert see(outputs) == [{}, {}] and before[0] == {"a.pth": b"old"}


def test_missing_folders_are_all_named(case: Any, keep: remapkit.RuleSet) -> None:
    source, outputs = case
    for folder in {path.parent for path in outputs.values()}:
        shutil.rmtree(folder)
    with pytest.raises(UnwritableOutput, match=r"one and .*two") as caught:
        remapkit.apply(keep, source, outputs)
    assert "mkdir -p" in str(caught.value)


WRONG = [
    (["a.=1.pth", "b.=2.pth"], "RK515", "1 of 3 keys goes to no output"),
    (["a.=1.pth", "b.=2.pth", "c.=3.pth", "d.=4.pth"], "RK516", "no key begins with 'd.'"),
    (["a.=1.pth", "b.=2.pth", "c.=3.pth", "rest.pth"], "RK516", "other outputs take every key"),
    (["a.=1.pth", "b.=./1.pth", "c.=2.pth"], "RK517", "would write 1.pth"),
    (["a=1.pth", "2.pth"], "RK518", "end the prefix with a dot"),
    (["a.w=1.pth", "2.pth"], "RK518", "1 key would have no name"),
    (["a.=1.gguf", "2.pth"], "RK511", "cannot tell the format"),
    (["a.={t}.pth", "2.pth"], "RK426", ""),
    (["a.=in.safetensors", "2.pth"], "RK501", "same file"),
    (["a.=", "2.pth"], "RK426", ""),
    (["a.=1.safetensors", "2.pth", "--shard-size", "1MB"], "RK505", "2.pth"),
    (["a.=1.pth", "2.safetensors", "--to-format", "pth"], "RK511", "2.safetensors"),
    (["a.=in.pth", "2.pth", "--in-place"], "RK609", "--output"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG)
@pytest.mark.parametrize("dry", [False, True])
def test_wrong_outputs_have_one_message_and_write_nothing(
    arguments: list[str], code: str, said: str, dry: bool, case: Any, monkeypatch: Any, capsys: Any
) -> None:
    source, _ = case
    monkeypatch.chdir(source.parent)
    pack = str(rules(source.parent, KEEP))
    before = everything_in(source.parent)
    cut = next((n for n, text in enumerate(arguments) if text.startswith("--")), len(arguments))
    outputs, options = [f"-o{text}" for text in arguments[:cut]], arguments[cut:]
    if dry and code in ("RK501", "RK505"):
        return  # a dry run looks at names, not at the disk or the layout
    assert main(["apply", pack, source.name, *outputs, *options, *(["--dry-run"] if dry else [])]) == 2
    errors = capsys.readouterr().err
    assert f"error[{code}]" in errors and said in errors and errors.count("error[") == 1
    assert everything_in(source.parent) == before


def test_a_target_without_the_prefixes_is_named_as_such(case: Any, keep: remapkit.RuleSet) -> None:
    source, outputs = case
    target = {"w": remapkit.TensorSpec("F32", (25_000,))}
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.apply(keep, source, outputs, target_keys=target)
    problems = {each.code: each for each in caught.value.diagnostics}
    assert set(problems) == {"RK310", "RK311"}
    assert "before the prefixes of the outputs (a., b. and c.) are taken off" in problems["RK311"].help[0]
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.apply(keep, source, source.with_name("o.pth"), target_keys=target)
    assert "prefixes of the outputs" not in str(caught.value)


def test_a_dry_run_says_what_goes_where(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, outputs = case
    options = [f"-o{prefix}={path}" for prefix, path in outputs.items()]
    assert main(["apply", str(rules(source.parent, KEEP)), str(source), *options, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(f"{path}: 1 tensor" in said for path in outputs.values())
    assert see(outputs) == [{}, {}]


# ------------------------------------------------------------------------------------------------ killed


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    process = Nursery()
    yield process
    process.close()


def make_killed(folder: Path, *, old: bool, nursery: Nursery) -> tuple[list[object], Callable[[], None], Any, Any]:
    """A command, what puts its folder back, and the content of each output before and after."""
    inputs, out = folder / "in", folder / "out"
    inputs.mkdir()
    out.mkdir()
    save_file({f"{part}.w": torch.randn(2000) for part in "abc"}, inputs / "m.safetensors")
    files = [f"-o{part}.={out}/{part}.safetensors" for part in "abc"]
    arguments: list[object] = ["apply", rules(inputs, KEEP), inputs / "m.safetensors", *files]
    before = {}
    if old:
        before = {f"{part}.safetensors": part.encode() for part in "abc"}
        arguments.append("--force")

    def reset() -> None:
        for path in out.iterdir():
            path.unlink()
        for name, data in before.items():
            (out / name).write_bytes(data)

    reset()
    assert nursery.run(*arguments)["code"] == 0
    return arguments, reset, before, everything_in(out)


def killed_at(
    numbers: list[int], arguments: Any, reset: Any, before: Any, after: Any, out: Path, run: Any
) -> set[str]:
    """Kill the run at each step: every file is whole; the next run ends, and nothing is left over."""
    seen = set()
    for number in numbers:
        reset()
        assert run(*arguments, die_at=number)["killed"]
        found = {name: data for name, data in everything_in(out).items() if not name.startswith(".remapkit-")}
        states = {name: found.get(name) for name in after}
        for name, data in states.items():
            assert data in (before.get(name), after[name]), f"{name} is neither old nor new at step {number}"
        new = sum(data == after[name] for name, data in states.items())
        seen.add("old" if new == 0 else "new" if new == len(after) else "between")
        done = run(*arguments, *([] if "--force" in arguments else ["--force"]))
        assert done["code"] == 0 and everything_in(out) == after, done["out"]
        assert leftovers(out) == []
    return seen


@pytest.mark.parametrize("old", [False, True])
def test_killed_at_some_steps(old: bool, memory_path: Path, nursery: Nursery) -> None:
    arguments, reset, before, after = make_killed(memory_path, old=old, nursery=nursery)
    reset()
    steps = nursery.run(*arguments)["steps"]
    seen = killed_at(chosen(steps, 24, 30), arguments, reset, before, after, memory_path / "out", nursery.run)
    assert seen == {"old", "between", "new"}, "a machine that dies between two renames leaves whole files"


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_every_step(old: bool, memory_path: Path, nursery: Nursery) -> None:
    arguments, reset, before, after = make_killed(memory_path, old=old, nursery=nursery)
    reset()
    steps = nursery.run(*arguments)["steps"]
    killed_at([*range(1, steps + 1)], arguments, reset, before, after, memory_path / "out", nursery.run)


def test_a_killed_run_is_resumed(memory_path: Path, nursery: Nursery) -> None:
    arguments, reset, _, after = make_killed(memory_path, old=False, nursery=nursery)
    out = memory_path / "out"
    reset()
    for number in range(nursery.run(*arguments)["steps"], 0, -1):
        reset()
        nursery.run(*arguments, die_at=number)
        names = everything_in(out)
        if len([name for name in names if len(name) > 40]) == 2 and not after.keys() & names.keys():
            break
    done = nursery.run(*arguments, "--verify")
    assert "resume: 2 of 3 files kept" in done["out"] and everything_in(out) == after
