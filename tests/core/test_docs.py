"""What the pages show is true: rule files in them compile, what they link to exists, messages they quote are ours."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.cli.app import main
from remapkit.diagnostics.errors import InvalidRules
from remapkit.rulefile.read import read_text

ROOT = Path(remapkit.__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def rule_files() -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", text)
        for page in PAGES
        for number, (kind, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
        if kind == "yaml" and re.search(r"^remapkit: 1\b", text, re.MULTILINE)
    ]


@pytest.mark.parametrize(("name", "text"), rule_files(), ids=[name for name, _ in rule_files()])
def test_a_rule_file_on_a_page_compiles_and_passes_its_own_tests(name: str, text: str) -> None:
    rules = compile_rules(read_text(text, name))
    for test in rules.tests:
        (match,) = rules.match(test.source.value)
        assert match.target == (test.target.value if test.target is not None else None)


def test_the_pages_hold_rule_files() -> None:
    assert {name.partition("-")[0] for name, _ in rule_files()} >= {"README.md", "rule"}


def test_every_file_that_a_page_names_exists() -> None:
    named = {
        (page.name, path)
        for page in PAGES
        for path in re.findall(
            r"`((?:docs|tests|benchmarks|examples|rules|plugins)/[\w./-]+\.\w+)`", page.read_text()
        )
        if "*" not in path
    }
    assert named
    assert not [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()]


def test_the_message_on_the_first_page_is_what_the_program_says() -> None:
    quoted = next(text for _, text in FENCE.findall((ROOT / "README.md").read_text()) if text.startswith("error["))
    text = (
        "remapkit: 1\nname: wan_vae\ntables:\n  slot: {0: norm1, 2: conv1, 3: norm1, 6: conv2}\nrules:\n"
        "  - {id: r, path: 'a.{slot:slot}', to: 'b.{slot|slot}'}\n"
    )
    with pytest.raises(InvalidRules) as caught:
        compile_rules(read_text(text, "wan-vae.yaml"))
    assert str(caught.value).strip() == quoted.strip()


def test_every_command_of_the_first_page_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    table = re.findall(r"^\| `(\w+)[^|]*\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert "apply" in table
    main([])
    listed = set(re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE))
    shown = set(table) | {"schema"}
    assert shown == listed


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the Python on the pages takes for granted, in small: files in the current folder, a model, tensors."""
    from remapkit.plugins.wan.vae import Wan21VAE, WanVAE

    monkeypatch.chdir(tmp_path)
    model = WanVAE(dim=8, dec_dim=12)
    for name in ("Wan2.2_VAE.pth", "upstream.pth"):
        shutil.copyfile(ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth", name)
    torch.save(Wan21VAE(dim=8, dec_dim=8).state_dict(), "Wan2.1_VAE.pth")
    vae = tmp_path / "Wan2.2-TI2V-5B-Diffusers" / "vae"
    vae.mkdir(parents=True)
    (vae.parent / "model_index.json").write_text("{}")
    save_file(model.state_dict(), vae / "diffusion_pytorch_model.safetensors")
    return {
        "torch": torch,
        "model": model,
        "state_dict": torch.load("upstream.pth", weights_only=True),
        "video": torch.zeros(1, 3, 5, 32, 32),
        "clip": [torch.zeros(1, 3, 5, 32, 32), torch.zeros(1, 3, 4, 32, 32)],
        "latents": torch.zeros(1, 16, 2, 4, 4),
        "show": lambda chunk: None,
    }


@pytest.mark.parametrize("page", ["README.md", "docs/loading.md", "docs/wan.md"])
def test_the_python_on_a_page_runs(page: str, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    """The snippets of a page one after the other, each with what those before it have defined."""
    snippets = [text for kind, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if kind == "python"]
    assert snippets
    for snippet in snippets:
        exec(snippet.replace('device="cuda"', 'device="cpu"'), names)
    if page == "docs/loading.md":
        shown = re.search(r"^# (upstream.pth -> .*?) \d", "".join(snippets), re.MULTILINE)
        assert shown is not None and shown.group(1) in capsys.readouterr().out
