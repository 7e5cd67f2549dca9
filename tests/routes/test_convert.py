"""identify and convert on files, by hand: right use, wrong use, and nothing written where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.api.identify import identify_header
from remapkit.cli.app import main
from remapkit.registry import layouts
from remapkit.registry.fit_layouts import Verdict, fit_layouts
from remapkit.tensors.spec import StateDictSpec, TensorSpec

ROOT = Path(remapkit.__file__).parent.parent
KEYS = ROOT / "rules" / "keys"
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"
ONE = TensorSpec("F32", (2, 2))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMAPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    layouts._KNOWN.clear()


MANIFESTS = {
    "flux_bfl": "flux/bfl",
    "llama3_ranks": "llama3/meta-ranks",
    "llama2_hf": "llama/transformers",
    "mixtral_fused": "mixtral/stacked",
    "wan.vae.WanVAE": "wan22-vae/grouped",
    "wan22_vae_upstream": "wan22-vae/upstream",
    "wan21_vae_diffusers": "wan21-vae/diffusers",
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_is_its_layout_exactly_under_any_root(manifest: str) -> None:
    header = remapkit.header(KEYS / f"{manifest}.json")
    (fit,) = fit_layouts(header).fits
    assert (fit.layout, fit.verdict, fit.root) == (MANIFESTS[manifest], Verdict.EXACT, "")
    below = StateDictSpec({**{f"net.model.{fqn}": spec for fqn, spec in header.items()}, "step": ONE})
    (fit,) = fit_layouts(below).fits
    assert (fit.layout, fit.verdict, fit.root, fit.outside) == (MANIFESTS[manifest], Verdict.EXACT, "net.model", 1)


def test_how_far_off_a_checkpoint_is() -> None:
    header = dict(remapkit.header(KEYS / "flux_bfl.json"))
    del header["img_in.weight"]
    (fit,) = fit_layouts(StateDictSpec(header)).fits
    assert (fit.verdict, fit.missing, fit.foreign) == (Verdict.PART, ("img_in.weight",), ())
    found = fit_layouts(StateDictSpec({**header, "extra.weight": ONE}))
    assert not found.known and not found.fits
    near = found.near[0]
    assert (near.layout, near.missing, near.foreign) == ("flux/bfl", ("img_in.weight",), ("extra.weight",))
    header["img_in.weight"] = ONE
    found = fit_layouts(StateDictSpec(header))  # the bias is as long as in no size
    assert not found.fits and found.near[0].shapes == ("img_in.weight",)
    assert [each.bias for each in found.near[0].contradicts] == ["img_in.bias"]
    header["img_in.weight"] = TensorSpec("F32", (3072, 99))
    (fit,) = fit_layouts(StateDictSpec(header)).fits
    assert (fit.verdict, fit.shapes) == (Verdict.OTHER_SIZE, ("img_in.weight",))
    assert "but for the shape of img_in.weight (" in str(identify_header(StateDictSpec(header)))


def test_models_in_one_file_are_each_named() -> None:
    flux, vae = (remapkit.header(KEYS / f"{name}.json") for name in ("flux_bfl", "wan21_vae_upstream"))
    both = {f"model.diffusion_model.{fqn}": spec for fqn, spec in flux.items()}
    both |= {f"first_stage_model.{fqn}": spec for fqn, spec in vae.items()}
    found = {fit.root: fit for fit in fit_layouts(StateDictSpec(both)).fits}
    assert {root: (fit.layout, fit.verdict) for root, fit in found.items()} == {
        "model.diffusion_model": ("flux/bfl", Verdict.EXACT),
        "first_stage_model": ("wan21-vae/upstream", Verdict.EXACT),
    }


@pytest.mark.parametrize(
    ("form", "prefix", "flat", "ends"),
    [
        ("PEFT", "base_model.model.", False, ("lora_A.weight", "lora_B.weight")),
        ("ComfyUI", "diffusion_model.", False, ("lora_down.weight", "lora_up.weight")),
        ("diffusers", "transformer.", False, ("lora_A.weight", "lora_B.weight")),
        ("kohya", "lora_unet_", True, ("lora_down.weight", "lora_up.weight")),
    ],
)
def test_adapters_are_named_as_such(form: str, prefix: str, flat: bool, ends: tuple[str, str]) -> None:
    modules = [fqn.removesuffix(".weight") for fqn in remapkit.header(KEYS / "flux_bfl.json") if "blocks" in fqn]
    modules = [each for each in modules if not each.endswith((".bias", ".scale"))]
    names = [prefix + (each.replace(".", "_") if flat else each) for each in modules]
    found = fit_layouts(StateDictSpec({f"{name}.{end}": ONE for name in names for end in ends}))
    assert found.known and not found.fits
    (adapter,) = [each for each in found.adapters if each.form == form]
    assert (adapter.layout, adapter.known, adapter.modules) == ("flux/bfl", len(modules), len(modules))
    names.append(f"{prefix}no_such_module")
    assert not fit_layouts(StateDictSpec({f"{name}.{end}": ONE for name in names for end in ends})).known


def test_scales_are_no_foreign_keys() -> None:
    header = dict(remapkit.header(KEYS / "flux_bfl.json"))
    weights = [fqn for fqn in header if fqn.endswith(".weight")]
    scaled = {**header, **{fqn: TensorSpec("F8_E4M3", header[fqn].shape) for fqn in weights}}
    scaled |= {f"{fqn.removesuffix('weight')}scale_weight": TensorSpec("F32", ()) for fqn in weights}
    found = fit_layouts(StateDictSpec(scaled))
    assert [(fit.layout, fit.verdict, fit.scales) for fit in found.fits] == [
        ("flux/bfl", Verdict.EXACT, len(weights))
    ]
    assert len(found.scaled) == len(weights)


# ---------------------------------------------------------------------------------------------------------- convert


def test_convert_by_the_direct_pack_and_via_the_grouped_layout(tmp_path: Path) -> None:
    direct = remapkit.convert(TINY, "wan22-vae/diffusers", tmp_path / "direct.safetensors")
    assert direct.route == "wan22-vae/upstream -> wan22-vae/diffusers (wan22_vae)"
    around = remapkit.convert(TINY, "wan22-vae/diffusers", tmp_path / "around.safetensors", via=["wan22-vae/grouped"])
    assert "the inverse of wan22_diffusers" in around.route
    one, other = load_file(tmp_path / "direct.safetensors"), load_file(tmp_path / "around.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[fqn], other[fqn]) for fqn in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["around.safetensors", "direct.safetensors"]
    back = remapkit.convert(tmp_path / "direct.safetensors", "wan22-vae/upstream", tmp_path / "back.pth", verify=True)
    assert back.written.verified
    state, again = (torch.load(path, weights_only=True) for path in (TINY, tmp_path / "back.pth"))
    assert state.keys() == again.keys() and all(torch.equal(state[fqn], again[fqn]) for fqn in state)


def test_convert_takes_the_root_that_it_found(tmp_path: Path) -> None:
    state = {f"first_stage_model.{fqn}": value for fqn, value in torch.load(TINY, weights_only=True).items()}
    save_file({**state, "step": torch.zeros(1)}, tmp_path / "in.safetensors")
    done = remapkit.convert(tmp_path / "in.safetensors", "wan22-vae/grouped", tmp_path / "out.safetensors")
    assert [each.code for each in done.diagnostics][:1] == ["RK414"]
    assert set(load_file(tmp_path / "out.safetensors")) == set(remapkit.header(KEYS / "wan.vae.WanVAE.json"))


WRONG = {
    "an unknown layout": (["--to", "wan22-vae/groupd"], 2, "RK660", "did you mean 'wan22-vae/grouped'?"),
    "no route": (["--to", "flux/bfl"], 2, "RK661", "no route leads from wan22-vae/upstream"),
    "the layout that it has": (["--to", "wan22-vae/upstream"], 2, "RK664", "there is nothing to convert"),
    "via nothing": (["--to", "wan22-vae/grouped", "--via", "flux_bl"], 2, "RK660", "did you mean 'flux_bfl'?"),
    "via elsewhere": (["--to", "wan22-vae/grouped", "--via", "flux/bfl"], 2, "RK661", "via flux/bfl"),
    "a param of no pack": (["--to", "wan22-vae/grouped", "--param", "heads=3"], 2, "RK640", "has a param 'heads'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_message_and_writes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, code, problem, words = WRONG[case]
    assert main(["convert", str(TINY), *options, "-o", str(tmp_path / "out.safetensors")]) == code
    said = capsys.readouterr().err
    assert problem in said and words in said and said.count("error[") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_of_no_layout_and_an_adapter_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x.y": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert main(["identify", str(tmp_path / "x.safetensors")]) == 1
    assert "no installed pack knows this layout" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "x.safetensors"), "--to", "flux/bfl", "-o", str(tmp_path / "o.pth")]) == 2
    assert "RK663" in capsys.readouterr().err
    lora = {f"diffusion_model.double_blocks.0.img_mod.lin.lora_{end}.weight": torch.zeros(2, 2) for end in "AB"}
    save_file(lora, tmp_path / "lora.safetensors")
    assert main(["convert", str(tmp_path / "lora.safetensors"), "--to", "flux/diffusers", "-o", "o.pth"]) == 2
    assert "is an adapter (LoRA) of flux/bfl" in capsys.readouterr().err


PACK = "remapkit: 1\nname: {name}\nfrom: m/{a}\nto: m/{b}\nsource: {{keys: {a}.json}}\ntarget: {{keys: {b}.json}}\n"
TRANSPOSED = "rules: [{{id: r, path: '{a}.w', ops: [transpose], to: '{b}.w'}}]\n"
PLAIN = "rules: [{{id: r, path: '{a}.w', to: '{b}.w'}}]\n"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, packs: dict[str, tuple[str, str, str]]) -> Path:
    """Install packs of square matrices instead of the shipped ones; return a checkpoint in layout `m/a`."""
    files = []
    for letter in "abc":
        names = ["a.w", "a.mask"] if letter == "a" and any("drop" in body for *_, body in packs.values()) else []
        names = names or [f"{letter}.w"]
        entries = {name: {"dtype": "F32", "shape": [2, 2]} for name in names}
        (folder / f"{letter}.json").write_text(json.dumps(entries))
    for name, (a, b, body) in packs.items():
        path = folder / f"{name}.yaml"
        path.write_text((PACK + body).format(name=name, a=a, b=b))
        files.append(layouts.PackFile(name, path, "test"))
    monkeypatch.setattr(layouts, "packs", lambda: tuple(files))
    monkeypatch.setattr("remapkit.registry.installed.packs", lambda: tuple(files))
    names = json.loads((folder / "a.json").read_text())
    save_file({name: torch.arange(4.0).reshape(2, 2) for name in names}, folder / "in.safetensors")
    return folder / "in.safetensors"


def test_routes_with_different_plans_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long way transposes once, the direct one does not; twice would be the same again."""
    source = install(
        tmp_path,
        monkeypatch,
        {"direct": ("a", "c", PLAIN), "one": ("a", "b", TRANSPOSED), "two": ("b", "c", PLAIN)},
    )
    out = tmp_path / "out.safetensors"
    with pytest.raises(remapkit.UsageError) as caught:
        remapkit.convert(source, "m/c", out)
    assert "RK662" in str(caught.value) and "m/a -> m/b (one) -> m/c (two)" in str(caught.value)
    assert not out.exists()
    remapkit.convert(source, "m/c", out, via=["m/b"])
    assert torch.equal(load_file(out)["c.w"], torch.arange(4.0).reshape(2, 2).T)
    remapkit.convert(source, "m/c", out, via=["direct"], force=True)
    assert torch.equal(load_file(out)["c.w"], torch.arange(4.0).reshape(2, 2))


def test_routes_with_one_plan_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = {"direct": ("a", "c", PLAIN), "one": ("a", "b", PLAIN), "two": ("b", "c", PLAIN)}
    source = install(tmp_path, monkeypatch, packs)
    done = remapkit.convert(source, "m/c", tmp_path / "out.safetensors")
    assert done.route == "m/a -> m/c (direct)"


def test_a_loss_needs_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = install(tmp_path, monkeypatch, {"one": ("a", "b", PLAIN + "drop: ['a.mask']\n")})
    out = tmp_path / "out.safetensors"
    with pytest.raises(remapkit.FailedCheck, match=r"RK665[\s\S]*one drops 1 key: a\.mask"):
        remapkit.convert(source, "m/b", out)
    assert not out.exists()
    done = remapkit.convert(source, "m/b", out, partial=True)
    assert "RK665" in [each.code for each in done.diagnostics]
    assert set(load_file(out)) == {"b.w"}


def test_files_beside_the_weights_are_listed_and_copied_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = install(tmp_path, monkeypatch, {"one": ("a", "b", PLAIN)})
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    source.rename(folder / "model.safetensors")
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "tokenizer.model").write_bytes(b"\0\1")
    done = remapkit.convert(folder, "m/b", out / "model.safetensors")
    (note,) = [each for each in done.diagnostics if each.code == "RK667"]
    assert "config.json" in str(note.notes) and not (out / "config.json").exists()
    done = remapkit.convert(folder, "m/b", out / "m2.safetensors", with_files=True)
    assert [path.name for path in done.beside] == ["config.json", "tokenizer.model"]
    assert (out / "tokenizer.model").read_bytes() == b"\0\1"
    with pytest.raises(remapkit.OutputExists):
        remapkit.convert(folder, "m/b", out / "m3.safetensors", with_files=True)
    assert not (out / "m3.safetensors").exists()


def test_the_graph_as_text_and_as_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packs", "--graph"]) == 0
    assert "  wan22_vae -> wan22-vae/diffusers\n" in capsys.readouterr().out
    assert main(["packs", "--graph", "-o", str(tmp_path / "packs.svg")]) == 0
    import xml.etree.ElementTree as ElementTree

    drawn = ElementTree.parse(tmp_path / "packs.svg").getroot()
    words = ["".join(each.itertext()) for each in drawn.iter() if each.tag.endswith("}text")]
    graph = remapkit.packs(graph=True)
    assert {*(layout.name for layout in graph.layouts), *(step.pack for step in graph.steps)} <= set(words)
    assert main(["packs", "--graph", "-o", str(tmp_path / "packs.svg")]) == 2
    assert main(["packs", "-o", str(tmp_path / "other.svg")]) == 2
    assert main(["packs", "--graph", "-o", str(tmp_path / "packs.png")]) == 2
    assert main(["packs", "--force"]) == main(["packs", "--graph", "--force"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["packs.svg"]
