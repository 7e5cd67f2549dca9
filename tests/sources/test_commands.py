"""Every command and function reads a checkpoint under a root, without segments, and as shards without an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from remapkit.plugins.wan.vae import WanVAE
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main

RULES = """\
remapkit: 1
name: mine
rules:
  - {id: a, path: 'layers.{n:int}.{leaf:weight|bias}', to: 'h.{n}.{leaf}'}
"""
NAMES = [f"layers.{n}.{leaf}" for n in range(3) for leaf in ("weight", "bias")]


def make_weights() -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 2), float(n)) for n, name in enumerate(NAMES)}


def save_plain(folder: Path) -> Path:
    save_file(make_weights(), folder / "m.safetensors")
    return folder / "m.safetensors"


def save_prefixed(folder: Path) -> Path:
    tensors = {f"model.diffusion_model.{name}": value for name, value in make_weights().items()}
    save_file({**tensors, "first_stage_model.w": torch.zeros(3)}, folder / "m.safetensors")
    return folder / "m.safetensors"


def save_nested_prefix(folder: Path) -> Path:
    tensors = {f"diffusion_model.{name}": value for name, value in make_weights().items()}
    torch.save({"model": {**tensors, "sigma": torch.zeros(2, 2)}, "step": torch.tensor(1)}, folder / "m.pth")
    return folder / "m.pth"


def save_wrapped_names(folder: Path) -> Path:
    tensors = {name.replace("layers", "layers._orig_mod"): value for name, value in make_weights().items()}
    torch.save({f"module._orig_mod.{name}": value for name, value in tensors.items()}, folder / "m.pth")
    return folder / "m.pth"


def save_with_optimizer(folder: Path) -> Path:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}
    torch.save({"state_dict": make_weights(), "optimizer": optimizer}, folder / "m.pth")
    return folder / "m.pth"


def save_shards(folder: Path) -> Path:
    tensors = list(make_weights().items())
    for number in range(3):
        part = dict(tensors[2 * number : 2 * number + 2])
        save_file(part, folder / f"m-{number + 1:05d}-of-00003.safetensors")
    return folder / "m-00001-of-00003.safetensors"


FORMS: list[tuple[Callable[[Path], Path], str | None, list[str]]] = [
    (save_plain, None, []),
    (save_prefixed, "model.diffusion_model", []),
    (save_nested_prefix, "model.diffusion_model", []),
    (save_wrapped_names, None, ["module"]),
    (save_with_optimizer, None, []),
    (save_shards, None, []),
]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(RULES)
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(("save", "root", "strip"), FORMS)
def test_one_pack_reads_every_form(
    save: Callable[[Path], Path], root: str | None, strip: list[str], rules: Path, tmp_path: Path
) -> None:
    """apply, check and load_into alike, by options, by keywords, and by what the rule file says."""
    (tmp_path / "in").mkdir()
    source, out = save(tmp_path / "in"), tmp_path / "out.safetensors"
    wanted = {name.replace("layers", "h"): value for name, value in make_weights().items()}
    target = {name: remapkit.TensorSpec("F32", (2, 2)) for name in wanted}
    options = [*(("--root", root) if root else ()), *(part for name in strip for part in ("--strip", name))]
    assert main(["apply", str(rules), str(source), "-o", str(out), *options]) == 0
    assert same(load_file(out), wanted)
    assert remapkit.check(rules, source, target_keys=target, root=root, strip=strip).ok
    model = torch.nn.Module()
    model.h = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    for layer in model.h:
        layer.bias = torch.nn.Parameter(torch.zeros(2, 2))
    remapkit.load_into(model, source, rules, root=root, strip=strip)
    assert same(dict(model.state_dict()), wanted)
    declared = f"source: {{{f'root: {root}, ' if root else ''}{f'strip: {strip}' if strip else ''}}}\n"
    rules.write_text(RULES + (declared if options else ""))
    assert main(["apply", str(rules), str(source), "-o", str(out), "--force"]) == 0
    assert same(load_file(out), wanted)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_what_only_looks_on_reads_the_same(rules: Path, tmp_path: Path) -> None:
    source = save_prefixed(tmp_path)
    found = remapkit.inspect(source, root="model.diffusion_model")
    assert found.root == "model.diffusion_model" and sorted(found.header) == sorted(NAMES)
    assert [note.title for note in found.diagnostics] == [
        "1 tensor outside 'model.diffusion_model' was left out (first_stage_model: 1)"
    ]
    save_file(make_weights(), tmp_path / "plain.safetensors")
    assert remapkit.diff(source, tmp_path / "plain.safetensors", root_a="model.diffusion_model").ok
    assert not remapkit.diff(source, tmp_path / "plain.safetensors").ok
    assert "layers.{" in remapkit.new("mine", source, root="model.diffusion_model").text
    learned = remapkit.learn(source, tmp_path / "plain.safetensors", root_a="model.diffusion_model")
    assert learned.learned.pairs["layers.1.bias"] == "layers.1.bias"
    verified = remapkit.verify(
        rules,
        oracle=lambda state: {name.replace("layers", "h"): value for name, value in state.items()},
        keys=source,
        root="model.diffusion_model",
    )
    assert verified.ok and len(verified.verdicts[0].tensors) == 6


def test_in_place_keeps_to_the_rest_of_the_file(rules: Path, tmp_path: Path) -> None:
    tensors = {f"module.{name}": value for name, value in make_weights().items()}
    save_file(tensors, tmp_path / "m.safetensors")
    remapkit.apply(rules, tmp_path / "m.safetensors", in_place=True, strip=["module"])
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        assert torch.equal(opened.get_tensor("h.1.bias"), make_weights()["layers.1.bias"])
    before = save_prefixed(tmp_path).read_bytes()
    with pytest.raises(remapkit.UnwritableOutput, match=r"cannot drop tensors \(first_stage_model.w\)"):
        remapkit.apply(rules, tmp_path / "m.safetensors", in_place=True, root="model.diffusion_model")
    assert (tmp_path / "m.safetensors").read_bytes() == before


def test_the_vae_is_loaded_from_below_a_prefix(tmp_path: Path) -> None:
    vae = WanVAE(dim=8, dec_dim=12)
    state = {f"first_stage.module.{name}": value for name, value in vae.state_dict().items()}
    torch.save({"state_dict": {**state, "other.w": torch.zeros(2, 2)}}, tmp_path / "m.pth")
    found = WanVAE.from_checkpoint(tmp_path / "m.pth", root="state_dict.first_stage", strip=["module"])
    assert same(dict(found.state_dict()), dict(vae.state_dict()))


def test_a_state_dict_in_memory_has_roots_and_segments_too() -> None:
    linear = torch.nn.Linear(2, 2)
    state = {f"net.module.{name}": value for name, value in torch.nn.Linear(2, 2).state_dict().items()}
    remapkit.load_into(linear, {**state, "step": torch.tensor(1)}, root="net", strip=["module"])
    assert torch.equal(linear.weight, state["net.module.weight"])
    with pytest.raises(remapkit.UsageError, match=r"RK416.*no tensors at root='nett'"):
        remapkit.load_into(linear, state, root="nett")


def remove_a_shard(folder: Path) -> Path:
    source = save_shards(folder)
    (folder / "m-00002-of-00003.safetensors").unlink()
    return source


def save_clash(folder: Path) -> Path:
    save_file({"layers.0.weight": torch.zeros(1), "module.layers.0.weight": torch.ones(1)}, folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("save", "options", "said"),
    [
        (save_prefixed, ["--root", "diffusion_model"], "did you mean --root model.diffusion_model?"),
        (save_plain, ["--root", "model"], "no tensors at --root model"),
        (save_clash, ["--strip", "module"], "become one key without 'module'"),
        (save_plain, ["--strip", "layers.0"], "--strip layers.0 must be one segment of a key, without dots"),
        (remove_a_shard, [], "shard 'm-00002-of-00003.safetensors' is missing"),
    ],
)
def test_wrong_use_is_one_message_and_nothing_written(
    save: Any, options: list[str], said: str, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "out.safetensors"
    assert main(["apply", str(rules), str(save(tmp_path / "in")), "-o", str(out), *options]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("error[") == 1 and not out.exists()


def test_a_root_of_one_side_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(save_prefixed(tmp_path))
    assert main(["diff", source, source, "--root-b", "diffusion_model"]) == 2
    assert "did you mean --root-b model.diffusion_model?" in capsys.readouterr().err


def test_the_page_on_the_language_is_true(tmp_path: Path) -> None:
    page = (Path(remapkit.__file__).parent.parent / "docs" / "rule-language.md").read_text(encoding="utf-8")
    (text,) = [block for block in page.split("```yaml\n")[1:] if block.startswith("remapkit: 1\nname: unet\n")]
    (tmp_path / "unet.yaml").write_text(text.partition("```")[0])
    for key in ("model.diffusion_model.module.in.weight", "in.weight"):
        save_file({key: torch.ones(2)}, tmp_path / "m.safetensors")
        out = remapkit.apply(
            tmp_path / "unet.yaml", tmp_path / "m.safetensors", tmp_path / "o.safetensors", force=True
        )
        assert [move.target for move in out.moves] == ["input.weight"]
