"""Adapters on the command line: what is derived is said, what is wrong is refused, and nothing is then written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from remapkit.cli.app import main
from tests.adapters.command_kit import (
    ALPHAS,
    LEAVES,
    MODULES,
    PREFIXES,
    SOURCE,
    TARGET,
    Tiny,
    make_lora,
    make_tiny,
    name_module,
    write_peft,
)
from tests.adapters.effect import find_updates


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


Run = Callable[..., Said]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return make_tiny(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> Said:
        code = main([str(word) for word in words])
        read = capsys.readouterr()
        return Said(code, read.out, read.err)

    return run


def list_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def cut(weight: str, updates: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The update that a weight of the target must have, by the updates of the source."""
    if weight == "x_embedder.weight":
        return updates.get("img_in.weight")
    _, number, part, _ = weight.split(".")
    if part == "out":
        return updates.get(f"blocks.{number}.proj.weight")
    whole = updates.get(f"blocks.{number}.qkv.weight")
    at = ("to_q", "to_k", "to_v").index(part)
    return None if whole is None else whole[4 * at : 4 * at + 4]


# ------------------------------------------------------------------------------------------------ apply


@pytest.mark.parametrize("wanted", [None, *PREFIXES])
@pytest.mark.parametrize("format", PREFIXES)
def test_apply_derives_says_so_and_writes_the_same_updates(
    tiny: Tiny, run: Run, format: str, wanted: str | None
) -> None:
    lora = make_lora(format)
    path, out = tiny.write("lora.safetensors", lora), tiny.folder / "out" / "new.safetensors"
    out.parent.mkdir()
    words = ["--adapter-format", wanted] if wanted else []
    factor = 2.0 if format == "peft" else 0.5 if format in ALPHAS else 1.0
    words += ["--alpha", "4"] if format == "peft" else []
    said = run("apply", tiny.rules, path, "-o", out, *words)
    assert said.code == 0, said.text
    assert f"the file is an adapter of tiny/one ({format}): 5 modules" in said.text
    assert "were derived from those of tiny" in said.text
    style, made = wanted or format, load_file(out)
    assert all(fqn.startswith(PREFIXES[style]) for fqn in made)
    config = out.parent / "adapter_config.json"
    assert config.exists() == (style == "peft")
    factors = None
    if style == "peft":
        data = json.loads(config.read_text())
        assert f"wrote {config}" in said.out and data["target_modules"]
        factors = dict.fromkeys(
            (name_module(key.removesuffix(".weight"), style) for key in TARGET), data["lora_alpha"] / data["r"]
        )
    names = {key: name_module(key.removesuffix(".weight"), format) for key in SOURCE if key.endswith("weight")}
    weights = {key: torch.zeros(shape) for key, shape in SOURCE.items()}
    before = find_updates(lora, weights, names, dict.fromkeys(names.values(), factor))
    names = {key: name_module(key.removesuffix(".weight"), style) for key in TARGET if key.endswith("weight")}
    after = find_updates(made, {key: torch.zeros(shape) for key, shape in TARGET.items()}, names, factors)
    assert set(after) == {key for key, shape in TARGET.items() if len(shape) == 2}
    for weight, update in after.items():
        # Folding rounds once, in F32.
        torch.testing.assert_close(update, cut(weight, before), rtol=1e-6, atol=1e-6)


def test_fold_alpha_leaves_no_alpha(tiny: Tiny, run: Run) -> None:
    path, out = tiny.write("lora.safetensors", make_lora("kohya")), tiny.folder / "new.safetensors"
    assert run("apply", tiny.rules, path, "-o", out, "--fold-alpha").code == 0
    assert load_file(out) and not [fqn for fqn in load_file(out) if fqn.endswith(".alpha")]


def test_base_names_the_model_where_the_rules_declare_none(tiny: Tiny, run: Run) -> None:
    tiny.rules.write_text(tiny.rules.read_text().replace("source: {keys: source.json}\n", ""))
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    below = {f"model.diffusion_model.{key}": torch.zeros(shape) for key, shape in SOURCE.items()}
    for base in (tiny.source, tiny.write("base.safetensors", below)):
        said = run("apply", tiny.rules, path, "-o", tiny.folder / "new.safetensors", "--base", base, "--force")
        assert said.code == 0 and "5 modules" in said.text, said.text


def test_root_chooses_the_model_of_a_file_with_several(tiny: Tiny, run: Run) -> None:
    both = make_lora("kohya") | make_lora("diffusers")
    path, out = tiny.write("both.safetensors", both), tiny.folder / "new.safetensors"
    for root in ("lora_unet_", "lora_unet", "transformer.", "transformer"):
        said = run("apply", tiny.rules, path, "-o", out, "--root", root, "--force")
        assert said.code == 0 and "left out" in said.text, said.text
        assert all(fqn.startswith(root) for fqn in load_file(out))


@pytest.mark.parametrize("config", ["{", '{"peft_type": "LOHA"}', '{"peft_type": "LORA", "lora_alpha": 99, "r": 1}'])
def test_a_config_of_another_adapter_in_the_folder_is_not_read(tiny: Tiny, run: Run, config: str) -> None:
    (tiny.folder / "adapter_config.json").write_text(config)
    for format in ("kohya", "comfy", "diffusers"):
        lora = {fqn: each for fqn, each in make_lora(format).items() if not fqn.endswith(".alpha")}
        path, out = tiny.write(f"{format}.safetensors", lora), tiny.folder / f"{format}.new.safetensors"
        said = run("apply", tiny.rules, path, "-o", out)
        assert said.code == 0, said.text
        assert run("apply", tiny.rules, path, "-o", out, "--alpha", "3", "--force").code == 0


def test_an_empty_root_chooses_the_modules_without_a_prefix(tiny: Tiny, run: Run) -> None:
    bare = make_lora("comfy")
    both = make_lora("diffusers") | {fqn.removeprefix("diffusion_model."): each for fqn, each in bare.items()}
    path, out = tiny.write("both.safetensors", both), tiny.folder / "new.safetensors"
    said = run("apply", tiny.rules, path, "-o", out, "--root", "")
    assert said.code == 0 and "layers.0.to_q.lora_up.weight" in load_file(out), said.text


def test_a_root_leaves_out_the_modules_without_a_prefix(tiny: Tiny, run: Run) -> None:
    bare = {fqn.removeprefix("diffusion_model."): each for fqn, each in make_lora("comfy", ["img_in"]).items()}
    path = tiny.write("both.safetensors", make_lora("comfy", ["blocks.0.qkv"]) | bare)
    out = tiny.folder / "new.safetensors"
    said = run("apply", tiny.rules, path, "-o", out, "--root", "diffusion_model")
    assert said.code == 0 and "without a prefix left out" in said.text, said.text
    assert all(fqn.startswith("diffusion_model.") for fqn in load_file(out))


def test_a_root_that_is_a_prefix_of_weights_is_a_root(tiny: Tiny, run: Run) -> None:
    weights = {f"transformer.{key}": torch.zeros(shape) for key, shape in SOURCE.items()}
    path, out = tiny.write("weights.safetensors", weights), tiny.folder / "new.safetensors"
    assert run("apply", tiny.rules, path, "-o", out, "--root", "transformer.").code == 0
    assert set(load_file(out)) == set(TARGET)


def test_a_dry_run_shows_every_move_and_writes_nothing(tiny: Tiny, run: Run) -> None:
    folder = write_peft(tiny)
    before = list_files(tiny.folder)
    said = run("apply", tiny.rules, folder, "-o", tiny.folder / "new.safetensors", "--dry-run", "--format", "json")
    data = json.loads(said.out)
    assert said.code == 0 and len(data["moves"]) == 18 and list_files(tiny.folder) == before


def test_the_config_of_a_peft_adapter_is_written_beside_it_or_nothing_is(tiny: Tiny, run: Run) -> None:
    folder, out = write_peft(tiny, lora_alpha=6), tiny.folder / "new" / "adapter_model.safetensors"
    out.parent.mkdir()
    assert run("apply", tiny.rules, folder, "-o", out).code == 0
    config = out.parent / "adapter_config.json"
    data = json.loads(config.read_text())
    assert (data["r"], data["lora_alpha"]) == (2, 6) and "layers.0.to_q" in data["target_modules"]
    # An existing config stops the run before anything is written, even where the weights have another name.
    config.write_text("mine")
    other = out.parent / "other.safetensors"
    said = run("apply", tiny.rules, folder, "-o", other)
    assert said.code == 2 and f"{config} exists" in said.err and not other.exists()
    assert run("apply", tiny.rules, folder, "-o", other, "--force").code == 0
    assert json.loads(config.read_text()) == data
    # Weights that exist stop it too, and then there is no config.
    config.unlink()
    assert run("apply", tiny.rules, folder, "-o", out).code == 2 and not config.exists()
    # The config of the input is never replaced, by no option.
    own = (folder / "adapter_config.json").read_text()
    said = run("apply", tiny.rules, folder, "-o", folder / "other.safetensors", "--force")
    assert said.code == 2 and "is an input of this command" in said.err
    assert (folder / "adapter_config.json").read_text() == own and not (folder / "other.safetensors").exists()


def test_peft_without_alphas_is_written_without_a_config_and_that_is_said(tiny: Tiny, run: Run) -> None:
    path = tiny.write("in/lora.safetensors", make_lora("peft"))
    said = run("apply", tiny.rules, path, "-o", tiny.folder / "new.safetensors")
    assert said.code == 0 and "adapter_config.json is not written" in said.err
    assert not (tiny.folder / "adapter_config.json").exists()


def test_what_is_made_fits_the_target_as_it_is(tiny: Tiny, run: Run) -> None:
    out = tiny.folder / "new.safetensors"
    assert run("apply", tiny.rules, tiny.write("lora.safetensors", make_lora("kohya")), "-o", out).code == 0
    said = run("check", "--ckpt", out, "--target-keys", tiny.target)
    assert said.code == 0 and "no matrix of it is left as it is" in said.text


def test_there_and_back(tiny: Tiny, run: Run) -> None:
    lora = make_lora("kohya")
    path, there, back = (tiny.folder / f"{name}.safetensors" for name in ("lora", "there", "back"))
    tiny.write(path.name, lora)
    assert run("apply", tiny.rules, path, "-o", there).code == 0
    assert run("invert", tiny.rules, "-o", tiny.folder / "back.yaml").code == 0
    said = run("apply", tiny.folder / "back.yaml", there, "-o", back)
    assert said.code == 0 and "adapter of tiny/two" in said.text, said.text
    weights = {key: torch.zeros(shape) for key, shape in SOURCE.items()}
    names = {key: name_module(key.removesuffix(".weight"), "kohya") for key in SOURCE if key.endswith("weight")}
    before, after = find_updates(lora, weights, names), find_updates(load_file(back), weights, names)
    assert set(before) == set(after)
    for key, update in before.items():
        torch.testing.assert_close(after[key], update, rtol=1e-6, atol=1e-6)  # sums of three products, in F64


# ------------------------------------------------------------------------------------------------ check, diff, report


def test_check_says_what_is_not_touched(tiny: Tiny, run: Run) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya", ["img_in", "blocks.0.proj"]))
    said = run("check", tiny.rules, "--ckpt", path)
    assert said.code == 0 and "the adapter changes 2 modules of target.json; 7 matrices are left" in said.text
    said = run("check", "--ckpt", path, "--target-keys", tiny.source)
    assert said.code == 0 and "2 modules of source.json; 3 matrices" in said.text
    assert "blocks.*.qkv (2)" in said.text and "blocks.*.proj (1)" in said.text


def test_check_finds_the_model_below_a_root_of_its_checkpoint(tiny: Tiny, run: Run) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    below = {f"model.diffusion_model.{key}": torch.zeros(shape) for key, shape in SOURCE.items()}
    said = run("check", "--ckpt", path, "--target-keys", tiny.write("base.safetensors", below))
    assert said.code == 0 and "under root 'model.diffusion_model'" in said.text


def test_check_leaves_out_another_model_of_the_file_with_a_warning(tiny: Tiny, run: Run) -> None:
    other = {f"lora_te1_q.{leaf}": torch.zeros(2, 2) for leaf in LEAVES["kohya"]}
    path = tiny.write("lora.safetensors", make_lora("kohya") | other)
    said = run("check", "--ckpt", path, "--target-keys", tiny.source)
    assert said.code == 0 and "2 tensors under lora_te1_ are for another model, and not checked" in said.text


def test_diff_of_two_adapters_through_rules(tiny: Tiny, run: Run) -> None:
    path, out = tiny.write("lora.safetensors", make_lora("kohya")), tiny.folder / "new.safetensors"
    assert run("apply", tiny.rules, path, "-o", out, "--adapter-format", "diffusers").code == 0
    said = run("diff", path, out, "--rules-a", tiny.rules, "--adapter-format", "diffusers")
    assert said.code == 0 and "18 of 18 tensors identical" in said.out
    changed = load_file(out)
    next(iter(changed.values())).add_(1)
    words = ("--rules-a", tiny.rules, "--adapter-format", "diffusers")
    said = run("diff", path, tiny.write("changed.safetensors", changed), *words)
    assert said.code == 1 and "17 of 18 tensors identical" in said.out
    both = tiny.write("both.safetensors", make_lora("kohya") | make_lora("diffusers", rank=3))
    assert run("diff", both, out, *words, "--root-a", "lora_unet_").code == 0


def test_report_shows_the_adapter(tiny: Tiny, run: Run) -> None:
    path, page = tiny.write("lora.safetensors", make_lora("kohya")), tiny.folder / "page.html"
    said = run("report", tiny.rules, "--ckpt", path, "-o", page, "--format", "json")
    data = json.loads(said.out)
    assert said.code == 0 and data["counts"]["source"] == 15 and data["counts"]["matched"] == 27
    assert "lora_unet_layers_0_to_q.lora_up.weight" in page.read_text()


@st.composite
def broken(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], str]:
    """An adapter with one thing wrong, and what."""
    format = draw(st.sampled_from(list(PREFIXES)))
    modules = draw(st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
    lora = make_lora(format, modules, rank=draw(st.integers(1, 5)))
    down, up = (f"{name_module(draw(st.sampled_from(modules)), format)}.{leaf}" for leaf in LEAVES[format])
    fqn = draw(st.sampled_from([fqn for fqn in (down, up) if fqn in lora]))
    what = draw(st.sampled_from(["nothing", "columns or rows", "rank", "name", "half", "module", "alpha"]))
    if what in ("columns or rows", "rank"):
        at = int((fqn == down) == (what == "columns or rows"))
        grown = list(lora[fqn].shape)
        grown[at] += draw(st.integers(1, 3))
        lora[fqn] = torch.zeros(grown)
    elif what == "name":
        lora[fqn.replace(PREFIXES[format], PREFIXES[format] + "no", 1)] = lora.pop(fqn)
    elif what == "half":
        del lora[fqn]
    elif what == "module":
        lora |= make_lora(format, ["no"], shapes={"no.weight": (8, 6)})
    elif what == "alpha" and format in ALPHAS:
        lora[f"{fqn.rsplit('.', 2)[0]}.alpha"] = torch.ones(3)
    else:
        what = "nothing"
    return lora, what


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=broken())
def test_an_adapter_with_anything_wrong_fails_its_check_and_any_other_passes(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[dict[str, torch.Tensor], str]
) -> None:
    lora, what = made
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    code = main(["check", "--ckpt", str(tiny.write("lora.safetensors", lora)), "--target-keys", str(tiny.source)])
    assert code == (0 if what == "nothing" else 1), what


# ------------------------------------------------------------------------------------------------ wrong use

WRONG: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], list[str], int, list[str]]] = {
    "another layout": (
        lambda: make_lora("kohya", ["layers.0.out"], shapes=TARGET),
        [],
        2,
        ["RK720", "none of 3 tensors belongs to a module of the model"],
    ),
    "several prefixes": (
        lambda: make_lora("kohya") | make_lora("comfy"),
        [],
        2,
        ["RK722", "lora_unet_", "diffusion_model.", "--root "],
    ),
    "another size": (
        lambda: make_lora("kohya", ["img_in", "blocks.0.qkv"], shapes={**SOURCE, "blocks.0.qkv.weight": (15, 8)}),
        [],
        1,
        ["[12, 8]", "[15, 2]"],
    ),
    "a module that is not there": (
        lambda: make_lora("kohya", ["img_in"]) | make_lora("kohya", ["no"], shapes={"no.weight": (8, 5)}),
        [],
        1,
        ["RK728", "3 tensors", "lora_unet_no.alpha"],
    ),
    "alpha twice": (lambda: make_lora("kohya"), ["--alpha", "3"], 2, ["--alpha is for adapters without alphas"]),
    "an alpha of 0": (lambda: make_lora("peft"), ["--alpha", "0"], 2, ["alpha", "must be a positive number, got 0"]),
    "in place": (lambda: make_lora("kohya"), ["--in-place"], 2, ["--in-place cannot be used with an adapter"]),
    "a dtype": (lambda: make_lora("kohya"), ["--dtype", "fp16"], 2, ["--dtype cannot be used", "keeps the dtype"]),
    "partial": (lambda: make_lora("kohya"), ["--partial"], 2, ["--partial cannot be used", "leave out --partial"]),
    "not an adapter": (
        lambda: {key: torch.zeros(shape) for key, shape in SOURCE.items()},
        ["--adapter-format", "peft", "--fold-alpha"],
        2,
        ["--adapter-format and --fold-alpha are for adapters", "this is none"],
    ),
    "two outputs": (
        lambda: make_lora("kohya"),
        ["--adapter-format", "peft", "-o", "base_model.=one.safetensors"],
        2,
        ["adapter_config.json belongs beside one file"],
    ),
    "another target": (
        lambda: make_lora("kohya"),
        ["--target-keys", "source.json"],
        1,
        ["RK720", "--target-keys FILE"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_refused_and_nothing_is_written(
    tiny: Tiny, run: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words, code, expected = WRONG[name]
    monkeypatch.chdir(tiny.folder)
    path = tiny.write("lora.safetensors", make())
    content, before = path.read_bytes(), list_files(tiny.folder)
    output = [] if "--in-place" in words or "-o" in words else ["-o", "new.safetensors"]
    said = run("apply", tiny.rules, path, *output, *words)
    assert said.code == code, said.text
    assert not [each for each in expected if each not in said.err], said.err
    assert list_files(tiny.folder) == before and path.read_bytes() == content


def test_no_manifest_and_no_base(tiny: Tiny, run: Run) -> None:
    tiny.rules.write_text(tiny.rules.read_text().replace("source: {keys: source.json}\n", ""))
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    said = run("apply", tiny.rules, path, "-o", tiny.folder / "new.safetensors")
    assert said.code == 2 and "RK730" in said.err and "--base MODEL" in said.err
    assert not (tiny.folder / "new.safetensors").exists()


def test_an_adapter_needs_an_output_where_the_default_is_the_input(tiny: Tiny, run: Run) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    said = run("apply", tiny.rules, path)
    assert said.code == 2 and "name a file with -o OUT" in said.err and "--in-place" not in said.err
    assert run("apply", tiny.rules, path, "--dry-run").code == 0
    assert run("apply", tiny.rules, path, "--to-format", "pth").code == 0
    assert path.with_suffix(".pth").exists()


def test_a_format_that_does_not_exist(tiny: Tiny, run: Run) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    with pytest.raises(SystemExit) as left:
        run("apply", tiny.rules, path, "--adapter-format", "onnx")
    assert left.value.code == 2


def test_an_adapter_of_another_model_is_named(tmp_path: Path, run: Run) -> None:
    shapes = {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "single_blocks.1.linear1.weight": (21504, 3072)}
    lora = make_lora("kohya", [key.removesuffix(".weight") for key in shapes], rank=1, shapes=shapes)
    path = make_tiny(tmp_path).write("lora.safetensors", lora)
    said = run("apply", "flux_diffusers", path, "-o", tmp_path / "new.safetensors")
    assert said.code == 2 and "it is an adapter of flux/bfl, which the pack flux_bfl reads" in said.err
    said = run("convert", path, "--to", "flux/diffusers", "-o", tmp_path / "new.safetensors")
    assert said.code == 2 and "remapkit apply PACK LORA" in said.err
    assert not (tmp_path / "new.safetensors").exists()


def test_an_adapter_that_would_do_nothing_never_passes(tiny: Tiny, run: Run) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya", ["no"], shapes={"no.weight": (8, 5)}))
    for words in (["--target-keys", tiny.source], [tiny.rules]):
        said = run("check", *words, "--ckpt", path)
        assert said.code in (1, 2) and "RK720" in said.err, said.text


def test_options_of_adapters_need_rules_in_check_and_diff(tiny: Tiny, run: Run) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    said = run("check", "--ckpt", path, "--target-keys", tiny.source, "--fold-alpha")
    assert said.code == 2 and "--fold-alpha needs rules" in said.err
    said = run("diff", path, path, "--fold-alpha")
    assert said.code == 2 and "--fold-alpha needs the rules of a side" in said.err
    said = run("check", tiny.rules, "--fold-alpha")
    assert said.code == 2 and "--fold-alpha is for adapters" in said.err


def test_an_alpha_beside_one_in_metadata_is_refused(tiny: Tiny, run: Run) -> None:
    entry = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 16})
    path = tiny.folder / "lora.safetensors"
    save_file(make_lora("diffusers"), path, metadata={"lora_adapter_metadata": entry})
    said = run("apply", tiny.rules, path, "-o", tiny.folder / "new.safetensors", "--alpha", "4")
    assert said.code == 2 and "the metadata entry `lora_adapter_metadata`" in said.text, said.text


def test_differences_beside_a_few_matrices_are_an_adapter(tiny: Tiny, run: Run) -> None:
    lora = {fqn: each for fqn, each in make_lora("comfy", ["img_in"]).items() if not fqn.endswith(".alpha")}
    for key in ("blocks.0.qkv", "blocks.1.qkv"):
        lora[f"diffusion_model.{key}.diff"] = torch.ones(SOURCE[f"{key}.weight"])
    path, out = tiny.write("lora.safetensors", lora), tiny.folder / "new.safetensors"
    said = run("apply", tiny.rules, path, "-o", out)
    assert said.code == 0 and "is an adapter of" in said.text, said.text


@pytest.mark.parametrize("fault", ["half", "rank", "size"])
def test_a_misfit_of_a_direct_check_is_told_as_one_of_an_adapter(tiny: Tiny, run: Run, fault: str) -> None:
    lora = make_lora("comfy", ["img_in", "blocks.0.qkv"])
    up = "diffusion_model.blocks.0.qkv.lora_up.weight"
    if fault == "half":
        del lora[up]
    else:
        lora[up] = (lora[up][:, :1] if fault == "rank" else lora[up][:3]).contiguous()
    path = tiny.write("lora.safetensors", lora)
    model = tiny.write("model.safetensors", {key: torch.zeros(shape) for key, shape in SOURCE.items()})
    said = run("check", "--ckpt", path, "--target-keys", model)
    wanted = up.replace("up", "down") if fault == "rank" else up
    assert said.code == 1 and "RK735" in said.text and f"{wanted} " in said.text, said.text
    assert "RK310" not in said.text and "RK312" not in said.text, said.text


def test_check_fails_where_apply_warns_of_another_size(tiny: Tiny, run: Run) -> None:
    """What is only renamed follows, for a variant of the model; against the declared model it does not fit."""
    lora = make_lora("comfy", ["img_in"])
    up = "diffusion_model.img_in.lora_up.weight"
    lora[up] = lora[up][:3].contiguous()
    path = tiny.write("lora.safetensors", lora)
    said = run("apply", tiny.rules, path, "-o", tiny.folder / "new.safetensors")
    assert said.code == 0 and "RK738" in said.text, said.text
    assert run("check", tiny.rules, "--ckpt", path).code == 1
