"""Headers and bytes are handled without torch: each such command runs with a torch that cannot be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import remapkit

ROOT = Path(remapkit.__file__).parent.parent
PACKS = ROOT / "rules"
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["lint"],
        ["test", "{wan22_pth}"],
        ["packs"],
        ["schema"],
        ["explain", "wan22_pth", "conv1.weight"],
        ["invert", "wan22_pth"],
        ["inspect", "{tiny}"],
        ["check", "wan22_pth", "--ckpt", "{tiny}", "--target-keys", "{converted}"],
        ["apply", "wan22_pth", "{tiny}", "-o", "{out}"],
        ["diff", "{tiny}", "{tiny}"],
        ["new", "mine", "--from", "{tiny}", "-o", "-"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_imports_torch_for_headers_and_bytes(arguments: list[str], tmp_path: Path) -> None:
    """Run as a process of its own, with a `torch` that fails on import."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    converted = tmp_path / "converted.safetensors"
    pack = tmp_path / "wan22_pth.yaml"
    # A pack without its target model: the model is what would rightly import torch.
    text = (PACKS / "wan22_pth.yaml").read_text(encoding="utf-8")
    pack.write_text(text.replace('target: {model: "wan.vae:WanVAE"}', ""))
    shutil.copytree(PACKS / "keys", tmp_path / "keys")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(trap), str(ROOT)])}
    if "{converted}" in arguments:
        command = [sys.executable, "-m", "remapkit", "apply", "wan22_pth", str(TINY), "-o", str(converted)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    places = {"{tiny}": TINY, "{out}": tmp_path / "out.safetensors", "{converted}": converted, "{wan22_pth}": pack}
    command = [sys.executable, "-m", "remapkit", *(str(places.get(word, word)) for word in arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch was imported" not in done.stderr
