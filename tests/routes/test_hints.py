"""Every message about keys that rules do not match says what the keys are those of, also if packs only write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import remapkit
from remapkit.cli.app import main
from remapkit.registry.identify import describe_layouts

ROOT = Path(remapkit.__file__).parent.parent
KEYS = ROOT / "rules" / "keys"
GROUPED = "these keys are those of layout wan22-vae/grouped, which wan22_pth writes: they are converted already"
BACK = "`remapkit convert` leads back to wan21-vae/diffusers, wan21-vae/upstream, wan22-vae/diffusers and wan22-vae"


def test_a_layout_that_is_only_written_is_named() -> None:
    names = list(remapkit.header(KEYS / "wan.vae.WanVAE.json"))
    assert describe_layouts(names, "wan22_pth") == GROUPED
    said = describe_layouts((f"net.{fqn}" for fqn in names), "flux_bfl")
    assert said is not None and "wan21-vae/grouped and wan22-vae/grouped under root 'net', which packs" in said
    assert BACK in said and "--root" not in said
    assert describe_layouts([*names, "one.more"], "flux_bfl") is None


def test_the_way_back_that_is_named_leads_back(tmp_path: Path) -> None:
    tiny = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"
    remapkit.apply("wan22_pth", tiny, tmp_path / "grouped.safetensors")
    remapkit.convert(tmp_path / "grouped.safetensors", "wan22-vae/upstream", tmp_path / "back.pth")
    one, other = (torch.load(path, weights_only=True) for path in (tiny, tmp_path / "back.pth"))
    assert one.keys() == other.keys() and all(torch.equal(one[fqn], other[fqn]) for fqn in one)


def test_a_layout_that_the_rules_write_is_said_to_be_theirs() -> None:
    names = list(remapkit.header(KEYS / "flux_diffusers.json"))
    wanted = "these keys are those of layout flux/diffusers (pack flux_diffusers)"
    assert describe_layouts(names, "wan22_pth") == wanted
    assert describe_layouts(names, "flux_bfl") == f"{wanted}; flux_bfl writes it"
    assert describe_layouts([f"net.{fqn}" for fqn in names], "flux_bfl") == f"{wanted} under root 'net': --root net"


def test_a_layout_under_several_roots_is_named_with_each() -> None:
    names = list(remapkit.header(KEYS / "flux_bfl.json"))
    said = describe_layouts([f"{root}.{fqn}" for root in ("c", "a.b") for fqn in names], "wan22_pth")
    assert said is not None and said.endswith("under root 'c' and 1 other root: --root c or --root a.b")


def apply(path: Path) -> None:
    remapkit.apply("wan22_pth", path, path.with_name("out.safetensors"))


def load(path: Path) -> None:
    remapkit.load_into(torch.nn.Linear(1, 1), path, "wan22_pth")


WAYS = {
    "apply": apply,
    "check": lambda path: remapkit.check("wan22_pth", path).raise_for_problems(),
    "diff": lambda path: remapkit.diff(path, path, rules_a="wan22_pth"),
    "load_into": load,
    "in memory": lambda path: remapkit.load("wan22_pth")(torch.load(path, weights_only=True)),
    "in memory, with operations": lambda path: remapkit.load("flux_bfl")(torch.load(path, weights_only=True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_refusal_says_it(way: str, tmp_path: Path) -> None:
    path = tmp_path / "grouped.pth"
    torch.save({fqn: torch.zeros(1) for fqn in remapkit.header(KEYS / "wan.vae.WanVAE.json")}, path)
    with pytest.raises(remapkit.FailedCheck) as caught:
        WAYS[way](path)
    said = str(caught.value)
    assert (BACK if way == "in memory, with operations" else GROUPED) in said
    assert said.count("these keys are those of") == 1


def test_a_report_says_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    main(["report", "wan22_pth", "--ckpt", str(KEYS / "wan.vae.WanVAE.json"), "-o", str(page)])
    assert "they are converted already" in page.read_text(encoding="utf-8")
