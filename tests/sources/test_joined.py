"""Several files as one checkpoint, against an oracle that joins dicts; and every command on several files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, RemapkitError, UnreadableCheckpoint, UsageError
from remapkit.formats import Reader
from remapkit.formats.options import ReadOptions
from remapkit.sources.joined import Member, merge_metadata
from remapkit.sources.open import open_source

NUMBERS = itertools.count()
PASS = "remapkit: 1\nname: pass\nrules: [{id: all, path: '{r:**}', to: '{r}'}]\n"
RANKS = """remapkit: 1
name: ranks
source: {files: ['tp{t}.=c.{t}.pth']}
rules:
- {id: q, path: 'tp{t:int}.layers.{i:int}.q', to: 'layers.{i}.q', concat: {by: t, dim: 0}}
- {id: o, path: 'tp{t:int}.layers.{i:int}.o', to: 'layers.{i}.o', concat: {by: t, dim: 1}}
- {id: n, path: 'tp{t:int}.norm', to: norm, merge: {by: t}}
"""


def tensor(rows: int = 2) -> torch.Tensor:
    return torch.full((rows, 3), float(next(NUMBERS)))


def read_all(reader: Reader) -> dict[str, bytes]:
    """The bytes of every tensor, by both ways of reading: in pieces, and as a range of a file."""
    found = {}
    for fqn in reader.header():
        found[fqn] = b"".join(bytes(chunk) for chunk in reader.chunks(fqn))
        extent = reader.extent(fqn)
        if extent is not None:
            assert extent.source.read(extent.offset, extent.length) == found[fqn]
    return found


def bytes_of(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {fqn: value.numpy().tobytes() for fqn, value in tensors.items()}


def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata)
    else:
        torch.save(tensors, path)
    return path


KEYS = st.lists(st.sampled_from(["w", "b", "a.w", "net.w", "net.b"]), unique=True, min_size=1, max_size=4)
FILES = st.lists(
    st.tuples(st.sampled_from(["", "x.", "x.net.", "y"]), KEYS, st.sampled_from([".pth", ".safetensors"])),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40)
@given(files=FILES)
def test_joined_files_have_the_keys_of_all_under_their_prefixes(files: Any, tmp_path_factory: Any) -> None:
    """A key that is in two files is an error that counts all of them and names both files."""
    folder = tmp_path_factory.mktemp("m")
    wanted: dict[str, torch.Tensor] = {}
    twice, source = [], []
    for number, (prefix, keys, suffix) in enumerate(files):
        tensors = {key: tensor() for key in keys}
        path = save(tensors, folder / f"f{number}{suffix}")
        source.append(f"{prefix}={path}" if prefix else str(path))
        twice += [prefix + key for key in keys if prefix + key in wanted]
        wanted |= {prefix + key: value for key, value in tensors.items()}
    if twice:
        with pytest.raises(UnreadableCheckpoint) as caught:
            open_source(source)
        (problem,) = caught.value.diagnostics
        said = "\n".join((problem.title, *problem.notes))
        assert problem.code == "RK430"
        assert sum(f"{key} is in f" in said for key in twice) >= min(len(twice), 5)
        assert problem.title.startswith(f"{len(twice)} keys are in two files: ") == (len(twice) > 1)
        return
    with open_source(source) as reader:
        assert read_all(reader) == bytes_of(wanted)
    with remapkit.open_checkpoint(source) as reader:
        assert set(reader.header()) == set(wanted)
        reader.check_unchanged()
        reader.check_sums()


@settings(max_examples=60)
@given(
    files=st.lists(
        st.dictionaries(st.sampled_from(["format", "who", "remapkit.rules"]), st.sampled_from("ab")),
        min_size=1,
        max_size=3,
    ),
    chosen=st.integers(-1, 2),
)
def test_equal_metadata_merge_and_others_are_named(files: Any, chosen: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("m")
    members = []
    for number, metadata in enumerate(files):
        path = save({f"w{number}": tensor()}, folder / f"f{number}.safetensors", metadata)
        members.append(Member("", path.name, remapkit.open_checkpoint(path)))
    pick = members[chosen] if 0 <= chosen < len(members) else None
    merged, contradictions = merge_metadata(members, pick)
    values = {name: {each[name] for each in files if name in each} for each in files for name in each}
    differ = {name for name, each in values.items() if len(each) > 1}
    wanted = {name: next(iter(each)) for name, each in values.items() if len(each) == 1}
    if pick is not None:
        wanted |= {name: files[chosen][name] for name in differ if name in files[chosen]}
    assert merged == wanted
    # What an earlier run wrote about itself is replaced anyway.
    assert {each.name for each in contradictions} == (set() if pick else differ - {"remapkit.rules"})
    for each in contradictions:
        assert {value for _, value in each.values} == values[each.name]
    for member in members:
        member.reader.close()


@settings(max_examples=30)
@given(ranks=st.integers(1, 3), root=st.sampled_from(["", "model", "model.net"]), named=st.booleans())
def test_the_root_lies_behind_the_prefix_of_a_mount(
    ranks: int, root: str, named: bool, tmp_path_factory: Any
) -> None:
    """Of nested dicts and of prefixed keys alike, named or found."""
    folder = tmp_path_factory.mktemp("m")
    wanted: dict[str, torch.Tensor] = {}
    for rank in range(ranks):
        flat = {f"layers.{layer}.w": tensor() for layer in range(2)}
        wanted |= {f"{rank}.{fqn}": value for fqn, value in flat.items()}
        prefix = f"{root}." if root else ""
        save({prefix + fqn: value for fqn, value in flat.items()} | {"other.step": tensor()}, folder / f"f{rank}.pth")
    rules = "remapkit: 1\nname: r\nrules: [{id: r, path: '{m}.layers.{i:int}.w', to: '{m}.{i}.w'}]\n"
    rules = rules.replace("'{m}.layers", "'tp{m:int}.layers")
    if not root:
        rules += "drop: ['tp{m:int}.other.step']\n"
    out = folder / "out.safetensors"
    option = {"root": root or "."} if named else {}
    remapkit.apply(remapkit.loads(rules), f"tp{{t}}.={folder}/f{{t}}.pth", out, **option)  # type: ignore[arg-type]
    assert bytes_of(load_file(out)) == bytes_of({fqn.replace("layers.", ""): each for fqn, each in wanted.items()})


# ---------------------------------------------------------------------------------------------- ranks by value


@pytest.fixture
def ranks(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    full = {"layers.0.q": torch.randn(4, 4), "layers.0.o": torch.randn(4, 4), "norm": torch.randn(4)}
    for rank in range(2):
        part = {
            "layers.0.q": full["layers.0.q"].chunk(2, 0)[rank].clone(),
            "layers.0.o": full["layers.0.o"].chunk(2, 1)[rank].clone(),
            "norm": full["norm"].clone(),
        }
        torch.save(part, tmp_path / f"c.{rank:02d}.pth")
    (tmp_path / "ranks.yaml").write_text(RANKS)
    return tmp_path, full


def list_sources(folder: Path) -> list[Any]:
    files = [folder / "c.00.pth", folder / "c.01.pth"]
    return [
        f"tp{{t}}.={folder}/c.{{t}}.pth",
        [f"tp{rank}.={file}" for rank, file in enumerate(files)],
        {"tp0.": files[0], "tp1.": str(files[1])},
        {"tp{t}.": folder / "c.{t:02d}.pth"},
        folder,
    ]


@pytest.mark.parametrize("way", range(5))
def test_ranks_are_joined_by_value_however_they_are_named(
    way: int, ranks: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, full = ranks
    source, rules = list_sources(folder)[way], str(folder / "ranks.yaml")
    out = folder / "out.safetensors"
    written = remapkit.apply(rules, source, out, verify=True)
    assert bytes_of(load_file(out)) == bytes_of(full)
    assert written.diagnostics[0].code == "RK433"
    assert written.diagnostics[0].notes == ("tp0.=c.00.pth\ntp1.=c.01.pth",)
    with remapkit.open_checkpoint(out) as reader:
        assert reader.header().metadata["remapkit.source"] == "tp0.=c.00.pth, tp1.=c.01.pth"
    assert remapkit.check(rules, source, target_keys=out).ok
    assert remapkit.diff(source, out, rules_a=rules).ok
    module = torch.nn.Module()
    module.layers = torch.nn.ModuleList([torch.nn.Module()])
    module.layers[0].q, module.layers[0].o = (torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    module.norm = torch.nn.Parameter(torch.zeros(4))
    remapkit.load_into(module, source, rules)
    assert all(torch.equal(value, full[fqn]) for fqn, value in module.state_dict().items())
    if source != folder:
        assert list(remapkit.header(source)) == list(remapkit.inspect(source).header)
        assert next(iter(remapkit.header(source))) == "tp0.layers.0.q"
        assert "tp0.layers.0.q: tp0.layers.0.q" in remapkit.new("mine", source).text


def test_commands_take_several_files(ranks: tuple[Path, Any], monkeypatch: Any, capsys: Any) -> None:
    folder, full = ranks
    monkeypatch.chdir(folder)
    torch.save({"norm": full["norm"]}, "part0.pth")
    torch.save({fqn: each for fqn, each in full.items() if fqn != "norm"}, "part1.pth")
    torch.save(full, "full.pth")
    mounts = ["tp0.=c.00.pth", "tp1.=c.01.pth"]
    for arguments in (
        ["apply", "ranks.yaml", *mounts, "-o", "out.safetensors"],
        ["check", "ranks.yaml", "--ckpt", mounts[0], "--ckpt", mounts[1], "--target-keys", "full.pth"],
        ["inspect", *mounts],
        ["diff", "full.pth", "part0.pth", "--more-b", "part1.pth"],
        ["diff", "part1.pth", "full.pth", "--more-a", "part0.pth"],
        ["learn", "part0.pth", "full.pth", "--more-a", "part1.pth", "-o", "learned.yaml"],
        ["new", "mine", "--from", mounts[0], "--from", mounts[1], "-o", "mine.yaml"],
    ):
        assert main(arguments) == 0, capsys.readouterr().err
    assert bytes_of(load_file("out.safetensors")) == bytes_of(full)
    capsys.readouterr()
    assert main(["inspect", *mounts, "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 6


def test_nested_ranks_are_read_from_where_all_of_them_begin(tmp_path: Path) -> None:
    """One stage has an embedding and layers, the other only layers; trainers' data are never in the way."""
    parts = [
        {"embedding": {"w": tensor()}, "encoder": {"layers.0.w": tensor()}},
        {"encoder": {"layers.0.w": tensor()}},
    ]
    for rank, model in enumerate(parts):
        (tmp_path / f"mp_rank_0{rank}").mkdir()
        optimizer = {"state": {0: {"exp_avg": tensor(), "exp_avg_sq": tensor()}}, "param_groups": []}
        content = {
            "model": {"language_model": model},
            "optimizer": optimizer,
            "iteration": 3,
            "rng_state": [tensor()],
        }
        torch.save(content, tmp_path / f"mp_rank_0{rank}" / "model_optim_rng.pt")
    with open_source(f"s{{p}}.={tmp_path}/mp_rank_{{p}}/model_optim_rng.pt") as reader:
        assert reader.root == "model.language_model"
        assert list(reader.header()) == ["s0.embedding.w", "s0.encoder.layers.0.w", "s1.encoder.layers.0.w"]
        assert [note.code for note in reader.notes].count("RK433") == 1


def test_tied_names_stay_tied_under_a_prefix(tmp_path: Path) -> None:
    value = tensor()
    torch.save({"e": value, "h": value, "o": tensor()}, tmp_path / "a.pth")
    other = tensor()
    save({"e": other}, tmp_path / "b.safetensors", {"head": "e", "format": "pt"})
    with open_source({"x.": tmp_path / "a.pth", "y.": tmp_path / "b.safetensors"}) as reader:
        header = reader.header()
        assert header.tied == (("x.e", "x.h"),)
        assert header.recorded == {"y.head": "y.e"}
        assert header.metadata == {"y.head": "y.e", "format": "pt"}
        assert b"".join(map(bytes, reader.chunks("y.head"))) == bytes_of({"e": other})["e"]
        assert reader.extent("y.head") == reader.extent("y.e")


def test_shards_that_are_named_one_by_one_are_one_set(tmp_path: Path) -> None:
    files = [tmp_path / f"m-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for number, file in enumerate(files):
        save({f"w{number}": tensor()}, file)
    with open_source(files) as reader:
        assert list(reader.header()) == ["w0", "w1", "w2"]
    with open_source([*reversed(files), f"x.={files[1]}"]) as reader:
        assert list(reader.header()) == ["w0", "w1", "w2", "x.w1"]
    problem = refuse(files[:2])
    assert (problem.code, problem.title) == (
        "RK407",
        "2 shards of a set are named, but not m-00003-of-00003.safetensors",
    )
    files[2].unlink()
    assert refuse(files[:2]).title == "shard 'm-00003-of-00003.safetensors' is missing"


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    wanted = {f"r{rank}.w": tensor() for rank in range(80)}
    for rank in range(80):
        save({"w": wanted[f"r{rank}.w"]}, tmp_path / f"f{rank}.safetensors")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (70, limits[1]))
    try:
        with open_source(f"r{{t}}.={tmp_path}/f{{t}}.safetensors") as reader:
            assert read_all(reader) == bytes_of(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# ------------------------------------------------------------------------------------------------- wrong use


def refuse(source: Any, **options: Any) -> Any:
    with pytest.raises(RemapkitError) as caught:
        open_source(source, ReadOptions(**options))
    (problem,) = caught.value.diagnostics
    return problem


def refuse_apply(rules: Any, source: Any, **options: Any) -> Any:
    with pytest.raises(RemapkitError) as caught:
        remapkit.apply(rules, source, **options)
    (problem,) = caught.value.diagnostics
    return problem


def test_wrong_use_has_one_message_and_writes_nothing(ranks: tuple[Path, Any], monkeypatch: Any) -> None:
    folder, _ = ranks
    monkeypatch.chdir(folder)
    save({"w": tensor()}, Path("a.safetensors"), {"who": "a"})
    save({"net.w": tensor(), "module.w": tensor()}, Path("b.safetensors"), {"who": "b"})
    rules = remapkit.loads(PASS)
    before = sorted(path.name for path in folder.iterdir())
    out: dict[str, Any] = {"output": "out.safetensors"}
    found = [
        refuse_apply(rules, ["c.00.pth", "c.01.pth"], **out),
        refuse_apply(rules, ["a.safetensors", "a.safetensors"], **out),
        refuse_apply(rules, ["a.safetensors", "b.safetensors"], **out, strip=["module"]),
        refuse_apply(rules, ["a.safetensors", "b.safetensors"], **out, root="net"),
        refuse_apply(rules, ["a.safetensors", "b.safetensors"], **out),
        refuse_apply(rules, ["a.safetensors", "b.safetensors"], **out, metadata_from="c.00.pth"),
        refuse_apply(rules, ["a.safetensors", "b.safetensors"]),
        refuse_apply(rules, "x.=a.safetensors", in_place=True),
        refuse_apply(rules, "tp{t}.=d.{t}.pth", **out),
    ]
    assert [problem.code for problem in found] == [
        *("RK430", "RK430", "RK430", "RK416", "RK431", "RK609", "RK609", "RK609", "RK427")
    ]
    assert found[0].title == "3 keys are in two files: layers.0.q is in c.00.pth and in c.01.pth"
    assert found[1].help == ("name each file once",)
    assert found[2].title == "w is in a.safetensors and in b.safetensors (as module.w)"
    assert found[3].notes == ("the root is looked for in each of the 2 files; it is in b.safetensors only",)
    assert found[4].notes == ("who: 'a' in a.safetensors and 'b' in b.safetensors",)
    assert found[5].title == "--metadata-from c.00.pth is none of the files that are read"
    assert sorted(path.name for path in folder.iterdir()) == before
    remapkit.apply(rules, ["a.safetensors", "b.safetensors"], **out, metadata_from="b.safetensors")
    with remapkit.open_checkpoint("out.safetensors") as reader:
        assert reader.header().metadata["who"] == "b"


def test_ranks_that_disagree_are_named_with_their_files(ranks: tuple[Path, Any]) -> None:
    folder, _ = ranks
    part = torch.load(folder / "c.01.pth")
    part["norm"][2] += 0.5
    torch.save(part, folder / "c.01.pth")
    problem = refuse_apply(str(folder / "ranks.yaml"), folder, output=folder / "out.safetensors")
    assert problem.code == "RK347"
    assert problem.notes == (
        "tp1.norm (c.01.pth) differs from tp0.norm (c.00.pth) in 1 of 4 elements, by at most 0.5",
    )
    assert not (folder / "out.safetensors").exists()
    torch.save(part, folder / "c.03.pth")
    problem = refuse_apply(str(folder / "ranks.yaml"), folder, output=folder / "out.safetensors")
    assert (problem.code, problem.title) == ("RK428", "t = 2 is missing: there is no c.02.pth")


def test_state_dicts_under_two_roots_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": tensor()}, "step": 1}, tmp_path / "c0.pth")
    torch.save({"ema": {"w": tensor()}, "step": 1}, tmp_path / "c1.pth")
    problem = refuse(f"tp{{t}}.={tmp_path}/c{{t}}.pth")
    assert problem.code == "RK432"
    assert problem.title == "the state dict is under 'state_dict' in c0.pth, but under 'ema' in c1.pth"


def test_files_named_without_the_prefixes_of_the_rules_say_which(ranks: tuple[Path, Any]) -> None:
    folder, _ = ranks
    source = [folder / "c.00.pth", folder / "c.01.pth"]
    problem = refuse_apply(str(folder / "ranks.yaml"), source, output=folder / "out.safetensors")
    assert problem.code == "RK430"
    assert problem.help == (
        "these rules read files under prefixes, 'tp{t}.=c.{t}.pth': name their folder, or that mount with its path",
    )


def test_a_folder_without_the_declared_files_says_what_is_there(ranks: tuple[Path, Any], tmp_path: Path) -> None:
    folder, full = ranks
    plain = tmp_path / "plain"
    plain.mkdir()
    torch.save(full, plain / "full.pth")
    problem = refuse_apply(str(folder / "ranks.yaml"), plain, output=folder / "out.safetensors")
    assert problem.code == "RK427"
    assert problem.notes == (
        "here are: full.pth",
        "the rule file says which files of a folder it reads: tp{t}.=c.{t}.pth",
    )
    assert problem.help == ("to read full.pth instead, name it as the source",)
    # The user's word wins: the file itself is read as it is.
    with pytest.raises(FailedCheck):
        remapkit.apply(str(folder / "ranks.yaml"), plain / "full.pth", folder / "out.safetensors")


@pytest.mark.parametrize("written", ["tp{t}.=../c.{t}.pth", "/etc/passwd", "tp{t}=c.pth", "tp{t}.=c.{t"])
def test_declared_files_are_checked_where_they_are_written(written: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(PASS + f"source: {{files: ['{written}']}}\n")
    (file,) = remapkit.lint(path).files
    assert not file.ok
    problem = file.diagnostics[0]
    assert problem.code == "RK426"
    assert problem.span is not None
    assert problem.span.source.text[problem.span.start : problem.span.end] == written


@pytest.mark.parametrize("source", [[], [3], {"x.": 3}, b"x", None, [""]])
def test_what_is_no_source_is_an_error_at_once(source: Any) -> None:
    with pytest.raises((UsageError, UnreadableCheckpoint)):
        remapkit.inspect(source)


def test_a_path_with_an_equals_sign_that_does_not_exist_says_how_it_was_read(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = refuse("lr=0.1/m.pt")
    assert (problem.code, problem.title) == ("RK400", "no such file: 0.1/m.pt")
    assert problem.notes == ("'lr=0.1/m.pt' was read as PREFIX=FILE; no file has the whole name either",)
    Path("lr=0.1").mkdir()
    save({"w": tensor()}, Path("lr=0.1/m.pt"))
    with open_source("lr=0.1/m.pt") as reader:
        assert list(reader.header()) == ["w"]


def test_a_folder_of_numbered_files_proposes_the_mount(ranks: tuple[Path, Any]) -> None:
    folder, _ = ranks
    (help,) = refuse(folder).help
    mount = f"tp{{t}}.={folder}/c.{{t}}.pth"
    assert help == f"name one of them, or read all of them, each under a prefix: '{mount}'"
    with open_source(mount) as reader:
        assert len(reader.header()) == 6


def test_a_target_is_named_once(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["check", "r.yaml", "--target-keys", "a.pth", "--target-keys", "b.pth"])
    assert "--target-keys takes one file or one mount PREFIX=FILE, got two: a.pth, b.pth" in capsys.readouterr().err
