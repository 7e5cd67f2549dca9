"""A checkpoint under a root and without segments, against an oracle that flattens dicts and splits names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.files.errors import FileFault
from remapkit.formats import Reader, open_checkpoint
from remapkit.formats.options import ReadOptions
from remapkit.formats.renamed import rename_keys
from remapkit.rulefile.read import read_text
from remapkit.sources.open import open_source
from remapkit.tensors.roots import list_roots

NUMBERS = itertools.count()


def tensor() -> torch.Tensor:
    return torch.full((2, 3), float(next(NUMBERS)))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The oracle: every tensor of nested dicts under its joined name."""
    for key, child in value.items():
        if isinstance(child, dict):
            yield from flatten(child, f"{prefix}{key}.")
        elif isinstance(child, torch.Tensor):
            yield prefix + key, child


def read_all(reader: Reader) -> dict[str, bytes]:
    return {fqn: b"".join(bytes(chunk) for chunk in reader.chunks(fqn)) for fqn in reader.header()}


def bytes_of(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {fqn: value.numpy().tobytes() for fqn, value in tensors.items()}


def refuse(path: Path, **options: Any) -> Any:
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(path, **options)
    (found,) = caught.value.diagnostics
    return found


WORDS = ["a", "b", "net", "net.unet"]
TREES = st.recursive(
    st.builds(tensor),
    lambda inner: st.dictionaries(st.sampled_from(WORDS), inner, min_size=1, max_size=3),
    max_leaves=7,
).filter(lambda value: isinstance(value, dict))


@settings(max_examples=40)
@given(tree=TREES)
def test_a_root_shows_exactly_what_lies_below_it(tree: dict[str, Any], tmp_path_factory: Any) -> None:
    """Of a pickle of nested dicts, of a safetensors file with the same names, and of none other."""
    folder = tmp_path_factory.mktemp("m")
    pairs = list(flatten(tree))
    flat = dict(pairs)
    if len(flat) < len(pairs):  # {"net": {"unet": ...}, "net.unet": ...} may hold one name twice
        return
    torch.save(tree, folder / "m.pth")
    save_file(flat, folder / "m.safetensors")
    segments = [fqn.split(".") for fqn in flat]
    roots = {".".join(each[:cut]) for each in segments for cut in range(1, len(each))}
    for root in ("", *sorted(roots)):
        prefix = f"{root}." if root else ""
        wanted = {fqn[len(prefix) :]: value for fqn, value in flat.items() if fqn.startswith(prefix)}
        for name in ("m.safetensors", "m.pth"):
            with open_checkpoint(folder / name, root=root or ".") as reader:
                found = read_all(reader)
                assert found == bytes_of(wanted)
                assert reader.root == root
    for root in ("zzz", *(f"{root}.zzz" for root in roots)):
        for name in ("m.safetensors", "m.pth"):
            assert refuse(folder / name, root=root).code == "RK416"


SEGMENTS = st.sampled_from(["module", "modules", "xmodule", "_orig_mod", "a", "b", "0"])
KEYS = st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), unique=True, min_size=1, max_size=8)


@given(keys=KEYS, strip=st.lists(st.sampled_from(["module", "_orig_mod", "b"]), unique=True, max_size=3))
def test_strip_takes_out_whole_segments_and_joins_no_keys(keys: list[str], strip: list[str]) -> None:
    """The oracle is a regular expression that replaces one segment at a time until none is left."""
    wanted: dict[str, str] = {}
    clash = False
    for key in keys:
        name = f".{key}."
        for segment in strip:
            while f".{segment}." in name:
                name = re.sub(rf"\.{segment}\.", ".", name, count=1)
        clash |= name == "." or name in wanted
        wanted[name] = key
    if clash:
        with pytest.raises(FileFault) as caught:
            rename_keys(keys, "", strip)
        assert caught.value.code == "RK417"
        return
    found = rename_keys(keys, "", strip)
    assert found.names == {name.strip("."): key for name, key in wanted.items()}
    assert list(found.names.values()) == keys
    counts = {segment: sum(segment in key.split(".") for key in keys) for segment in strip}
    assert found.stripped == {segment: count for segment, count in counts.items() if count}


@given(keys=KEYS)
def test_roots_are_the_prefixes_with_the_keys_below_them(keys: list[str]) -> None:
    prefixes = {
        ".".join(segments[:cut])
        for segments in (key.split(".") for key in keys)
        for cut in range(1, len(segments))
        if "0" not in segments[:cut]
    }
    wanted = {prefix: sum(key.startswith(f"{prefix}.") for key in keys) for prefix in prefixes}
    found = list_roots(keys)
    assert {root.path: root.keys for root in found} == wanted
    assert [root.keys for root in found] == sorted(wanted.values(), reverse=True)


# --------------------------------------------------------------------------------------- what trainers save


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value), "b": torch.full((3,), value)}


def make_lightning() -> dict[str, Any]:
    score = {"best_model_score": torch.tensor(0.1), "best_k_models": {"epoch=1.ckpt": torch.tensor(0.1)}}
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "state_dict": weights(),
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": score},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": torch.ones(2)}],
    }


MEGATRON = {
    "args": {"layers": 2},
    "iteration": 100,
    "model": {
        "language_model": {
            "embedding": {"word_embeddings": {"weight": tensor()}},
            "encoder": {"layers.0.w": tensor(), "final.w": tensor()},
            "output_layer": {"weight": tensor()},
        }
    },
    "opt_param_scheduler": {"max_lr": torch.ones(1)},
    "rng_state": [{"torch_rng_state": torch.zeros(16, dtype=torch.uint8)}],
}


@pytest.mark.parametrize(
    ("value", "root", "keys", "outside"),
    [
        (
            make_lightning(),
            "state_dict",
            ["w", "b"],
            "3 tensors outside 'state_dict' were left out (callbacks: 2 and lr_schedulers: 1)",
        ),
        (
            {"model": weights(), "step": torch.tensor(3)},
            "model",
            ["w", "b"],
            "1 tensor outside 'model' was left out (step: 1)",
        ),
        (
            MEGATRON,
            "model.language_model",
            [
                "embedding.word_embeddings.weight",
                "encoder.layers.0.w",
                "encoder.final.w",
                "output_layer.weight",
            ],
            "2 tensors outside 'model.language_model' were left out (opt_param_scheduler: 1 and rng_state: 1)",
        ),
    ],
    ids=["Lightning with a callback's scalars", "a step", "Megatron"],
)
def test_what_a_trainer_keeps_makes_no_choice(
    value: Any, root: str, keys: list[str], outside: str, tmp_path: Path
) -> None:
    torch.save(value, tmp_path / "m.pth")
    with open_checkpoint(tmp_path / "m.pth") as reader:
        assert (reader.root, list(reader.header())) == (root, keys)
        assert outside in [note.title for note in reader.notes]


@pytest.mark.parametrize(
    "value",
    [
        {"model": weights(), "ema": weights()},
        {"all": {"model": weights(), "ema": weights()}},
        {"all": {"scale": torch.tensor(1.0), "model": {"encoder": weights()}}, "other": {"x": torch.tensor(1)}},
    ],
    ids=["at the top", "copies in a mapping", "a scalar above the weights"],
)
def test_several_state_dicts_are_never_chosen_from(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "m.pth")
    assert refuse(tmp_path / "m.pth").code == "RK406"


def test_a_missing_root_names_the_nearest_and_no_optimizer(tmp_path: Path) -> None:
    save_file({f"model.diffusion_model.{n}.w": torch.zeros(1) for n in range(3)}, tmp_path / "m.safetensors")
    found = refuse(tmp_path / "m.safetensors", root="diffusion_model")
    assert found.title == "no tensors at --root diffusion_model"
    assert found.help == ("did you mean --root model.diffusion_model?",)
    torch.save({**make_lightning(), "ema": weights()}, tmp_path / "m.pth")
    for root in ("optimizer_stats", "callback", "zzz"):
        assert not re.search(r"optim|callbacks|schedul", " ".join(refuse(tmp_path / "m.pth", root=root).help))


def test_mappings_that_hold_themselves_or_each_other_often_end(tmp_path: Path) -> None:
    """40 levels of two names for one mapping are 2^40 names."""
    node: dict[str, Any] = weights()
    for _ in range(40):
        node = {"left": node, "right": node}
    torch.save({"model": node}, tmp_path / "m.pth")
    assert refuse(tmp_path / "m.pth", root="model").code == "RK404"
    loop: dict[str, Any] = weights()
    loop["again"] = loop
    torch.save({"model": loop}, tmp_path / "m.pth")
    assert refuse(tmp_path / "m.pth", root="model").code == "RK404"


# --------------------------------------------------------------------------------------------- wrappers' names


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)


def test_names_of_torchs_wrappers_go_by_themselves(tmp_path: Path) -> None:
    """Both are real: torch.compile renames the keys of the module, and of a module inside."""
    model = torch.nn.Module()
    model.plain, model.inner = Block(), torch.compile(Block())
    torch.save({"model": torch.compile(model).state_dict()}, tmp_path / "m.pth")
    with open_source(tmp_path / "m.pth") as reader, open_checkpoint(tmp_path / "m.pth") as plain:
        assert len(reader.header()) == len(plain.header()) == 8
        assert all("_orig_mod" in fqn for fqn in plain.header())
        wanted = bytes_of({fqn.replace("_orig_mod.", ""): value for fqn, value in model.state_dict().items()})
        assert read_all(reader) == wanted
        (note,) = [note.title for note in reader.notes if note.code == "RK418"]
        assert note == "names of wrappers were taken out: '_orig_mod' out of 8 keys"


def test_rules_that_speak_of_a_private_name_see_it(tmp_path: Path) -> None:
    save_file({"_orig_mod.h.w": torch.zeros(1)}, tmp_path / "m.safetensors")
    text = "remapkit: 1\nname: r\nrules: [{id: a, path: '%s', to: 'x.{r}'}]\n"
    for path, key in (("_orig_mod.{r:**}", "_orig_mod.h.w"), ("h.{r:**}", "h.w")):
        with open_source(tmp_path / "m.safetensors", rules=read_text(text % path)) as reader:
            assert list(reader.header()) == [key]


def test_keys_that_become_one_are_named(tmp_path: Path) -> None:
    save_file({"module.w": torch.zeros(1), "w": torch.zeros(2)}, tmp_path / "m.safetensors")
    found = refuse(tmp_path / "m.safetensors", strip=["module"])
    assert (found.code, found.title) == ("RK417", "module.w and w become one key without 'module'")


def test_tied_names_and_records_follow_their_tensors(tmp_path: Path) -> None:
    shared = torch.ones(2, 2)
    torch.save({"module.net.a": shared, "module.net.b": shared, "module.c": shared}, tmp_path / "m.pth")
    with open_checkpoint(tmp_path / "m.pth", root="module", strip=["net"]) as reader:
        assert reader.header().tied == (("a", "b", "c"),)
    with open_checkpoint(tmp_path / "m.pth", root="module.net") as reader:
        assert reader.header().tied == (("a", "b"),)
    metadata = {"net.head": "net.embed", "author": "net.embed", "ema.head": "net.embed", "format": "pt"}
    save_file({"net.embed": shared, "ema.w": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=metadata)
    with open_checkpoint(tmp_path / "m.safetensors", root="net") as reader:
        header = reader.header()
        assert dict(header.recorded) == {"head": "embed"}
        assert dict(header.metadata) == {
            "head": "embed",
            "author": "net.embed",
            "ema.head": "net.embed",
            "format": "pt",
        }
        assert b"".join(reader.chunks("head")) == shared.numpy().tobytes()


# -------------------------------------------------------------------------------------------------- rule files


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        ("root: model.unet", ["h.module.w"]),
        ("root: [nothing, model]", ["unet.h.module.w", "x.w"]),
        ("root: [nothing]", ["model.unet.h.module.w", "model.x.w", "vae.w"]),
        ("{root: model.unet, strip: [module]}", ["h.w"]),
        ("strip: [module]", ["model.unet.h.w", "model.x.w", "vae.w"]),
    ],
)
def test_a_rule_file_says_where_its_source_is(written: str, keys: list[str], tmp_path: Path) -> None:
    names = ["model.unet.h.module.w", "model.x.w", "vae.w"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "m.safetensors")
    source = written if written.startswith("{") else f"{{{written}}}"
    rules = read_text(f"remapkit: 1\nname: r\nunmatched: keep\nsource: {source}\n")
    with open_source(tmp_path / "m.safetensors", rules=rules) as reader:
        assert sorted(reader.header()) == sorted(keys)
    with open_source(tmp_path / "m.safetensors", ReadOptions("vae"), rules=rules) as reader:
        assert list(reader.header()) == ["w"], "the caller's root wins"


# -------------------------------------------------------------------------------------- shards without an index


def save_shards(folder: Path, count: int, *, pickled: bool = False) -> dict[str, torch.Tensor]:
    tensors = {f"net.{n}.w": tensor() for n in range(count)}
    for number, (fqn, value) in enumerate(tensors.items(), 1):
        name = f"m-{number:05d}-of-{count:05d}"
        if pickled:
            torch.save({"model": {fqn: value}}, folder / f"{name}.bin")
        else:
            save_file({fqn: value}, folder / f"{name}.safetensors")
    return tensors


@pytest.mark.parametrize("pickled", [False, True])
def test_a_complete_set_of_shards_is_one_checkpoint(pickled: bool, tmp_path: Path) -> None:
    tensors = save_shards(tmp_path, 4, pickled=pickled)
    suffix = "bin" if pickled else "safetensors"
    for path in (tmp_path, tmp_path / f"m-00001-of-00004.{suffix}"):
        with open_source(path) as reader:
            assert read_all(reader) == bytes_of(tensors)
            assert reader.header().name == f"m.{suffix}"
            assert "RK419" in [note.code for note in reader.notes]
        with open_source(path, ReadOptions("model.net" if pickled else "net")) as reader:
            assert list(reader.header()) == ["0.w", "1.w", "2.w", "3.w"]
    with open_source(tmp_path / f"m-00002-of-00004.{suffix}") as reader:
        assert list(reader.header()) == ["net.1.w"], "a later shard is itself"


def test_a_prefix_that_only_some_shards_have(tmp_path: Path) -> None:
    for number, keys in enumerate((["net.a", "net.b"], ["ema.a"]), 1):
        torch.save({key: tensor() for key in keys}, tmp_path / f"m-{number:05d}-of-00002.bin")
    with open_checkpoint(tmp_path, root="net") as reader:
        assert list(reader.header()) == ["a", "b"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    save_shards(tmp_path, 4)
    (tmp_path / "m-00002-of-00004.safetensors").unlink()
    with pytest.raises(UnreadableCheckpoint, match=r"RK407.*shard 'm-00002-of-00004.safetensors' is missing"):
        open_source(tmp_path / "m-00001-of-00004.safetensors")
    (tmp_path / "m-00004-of-00004.safetensors").unlink()
    found = refuse(tmp_path)
    assert found.title.startswith("2 of 4 shards are missing: 'm-00002-of-00004.safetensors' and 'm-00004")


def test_one_key_in_two_shards(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"w": tensor()}, tmp_path / f"m-{number:05d}-of-00002.safetensors")
    assert "in two shards" in refuse(tmp_path).title
