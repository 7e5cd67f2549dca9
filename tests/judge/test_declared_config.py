"""`target: {config: FILE}`: the class that a config names, built with it; only a trusted file may choose it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import remapkit
from remapkit.api.packs import Pack
from remapkit.authoring.invert import invert
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.formats.manifest import manifest_json
from remapkit.models import target as targets
from remapkit.models.target import find_declared_target, read_target_header

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 12,
    "n_positions": 6,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
}
AUTOENCODER = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}
RULES = """remapkit: 1
name: there
source: {keys: source.json}
target: %s
rules: [{id: all, path: 'model.{rest:**}', to: '{rest}'}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, config: Any, target: str = "{config: configs/model.json}") -> Path:
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "model.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "there.yaml").write_text(RULES % target)
    return folder / "there.yaml"


def build(config: dict[str, Any]) -> Any:
    import diffusers
    import transformers

    if "_class_name" in config:
        return diffusers.AutoencoderTiny.from_config(config)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict(config))


def write_source(folder: Path, model: Any) -> None:
    header = remapkit.header(model)
    moved = type(header)({f"model.{key}": spec for key, spec in header.items()})
    (folder / "source.json").write_text(manifest_json(moved))


@pytest.mark.parametrize("config", [GPT2, AUTOENCODER], ids=["transformers", "diffusers"])
def test_a_pack_is_checked_against_the_class_of_its_config(
    config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed pack is trusted as what it was installed with."""
    path = write(folder, config)
    write_source(folder, build(config))
    monkeypatch.setattr(targets, "_is_installed", lambda path: True)
    report = remapkit.check(path)
    assert report.ok
    (check,) = report.checks
    assert dict(check.target) == dict(remapkit.header(build(config)))
    write(folder, {**config, "n_layer": 3} if "n_layer" in config else {**config, "num_decoder_blocks": [1, 2]})
    assert not remapkit.check(path).ok


@pytest.mark.parametrize("config", [GPT2, AUTOENCODER], ids=["transformers", "diffusers"])
def test_apply_holds_the_result_against_the_class_of_a_config(
    config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not installed is not built, and that is said."""
    path, model = write(folder, config), build(config)
    write_source(folder, model)
    monkeypatch.setattr(targets, "_is_installed", lambda path: True)
    torch.save({f"model.{fqn}": value for fqn, value in model.state_dict().items()}, folder / "a.pth")
    written = remapkit.apply(path, folder / "a.pth", folder / "o.safetensors")
    assert written.checked == "exact" and written.check is not None
    assert dict(written.check.target) == dict(remapkit.header(model))
    (folder / "there.yaml").write_text((RULES % "{config: configs/model.json}").replace("'{rest}'", "'x.{rest}'"))
    with pytest.raises(FailedCheck, match="RK310"):
        remapkit.apply(path, folder / "a.pth", folder / "p.safetensors")
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    written = remapkit.apply(path, folder / "a.pth", folder / "p.safetensors")
    assert written.checked == "no" and "not checked against a target" in str(written)
    (note,) = [each for each in written.diagnostics if each.code == "RK360"]
    assert note.title.endswith("fusers is not installed" if "_class_name" in config else "formers is not installed")


def test_another_class_can_be_named_for_a_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, GPT2, "{model: 'py:transformers:GPT2Model', config: configs/model.json}")
    monkeypatch.setattr(targets, "_is_installed", lambda path: True)
    reference = find_declared_target(remapkit.load(path))
    assert reference is not None
    assert "wte.weight" in read_target_header(reference)


def test_another_file_may_not_choose_what_is_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the help is the command that says that the user trusts it."""
    path = write(folder, GPT2)
    write_source(folder, build(GPT2))
    assert main(["check", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "RK612" in shown
    option = "--model py:transformers:GPT2LMHeadModel --model-config "
    assert f"{option}FILE" in shown
    assert main(["check", str(path), *option.split(), str(folder / "configs" / "model.json")]) == 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "there is no such file"),
        ("[1]", "it is not a JSON object"),
        ('{"secret": 1', "it is not a JSON object"),
        ({"model_type": "secret"}, "does not name the class"),
        ({"architectures": ["os.secret()"]}, "does not name the class"),
        ({"architectures": []}, "does not name the class"),
    ],
)
def test_a_config_that_names_nothing(config: Any, said: str, folder: Path) -> None:
    path = write(folder, config if config is not None else {})
    if config is None:
        (folder / "configs" / "model.json").unlink()
    with pytest.raises(UsageError) as caught:
        find_declared_target(remapkit.load(path))
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK611"
    assert said in problem.title
    assert problem.span is not None and problem.span.text == "configs/model.json"
    assert "secret" not in str(caught.value), "the content of a file that a rule file names is not shown"
    listed = Pack("there", path, "a test").describe().problems
    assert [(each.code, each.title) for each in listed] == [(problem.code, problem.title)]


def test_a_config_outside_the_folder_is_not_read(folder: Path) -> None:
    (folder.parent / "outside.json").write_text(json.dumps(GPT2))
    path = write(folder, GPT2, "{config: ../outside.json}")
    with pytest.raises(UsageError, match="RK424"):
        find_declared_target(remapkit.load(path))


def test_the_inverse_names_it_in_a_comment(folder: Path) -> None:
    rules = remapkit.load(write(folder, GPT2))
    assert "# The source is what the model of 'configs/model.json' saves." in invert(rules)
