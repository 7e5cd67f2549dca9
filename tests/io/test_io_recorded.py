"""Names that a safetensors file only records as tied: keys where somebody asks for them, records where nobody does.

Kinds covered: every command and function that reads a header, and metadata that only looks like a record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.plans import recorded
from remapkit.plans.recorded import add_recorded_moves
from remapkit.tensors.spec import StateDictSpec, TensorSpec

WEIGHT = torch.arange(12.0).view(3, 4)
ALL = "rules: [{id: all, path: '{r:**}', to: '{r}'}]"
NAMED = "rules: [{id: x, path: 'embed.weight', to: 'tok.weight'}, {id: y, path: 'head.weight', to: 'out.weight'}]"


def pack(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(f"remapkit: 1\nname: r\n{body}\n")
    return path


def tied(tmp_path: Path, name: str = "a.safetensors", **metadata: str) -> Path:
    save_file({"embed.weight": WEIGHT, "norm.weight": torch.ones(4)}, tmp_path / name, metadata=metadata or None)
    return tmp_path / name


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return dict(opened.metadata())


class Tied(torch.nn.Module):
    def __init__(self, embed: str = "embed", head: str = "head") -> None:
        super().__init__()
        self.norm = torch.nn.Module()
        self.norm.weight = torch.nn.Parameter(torch.zeros(4))
        for name in (embed, head):
            setattr(self, name, torch.nn.Linear(4, 3, bias=False))
        getattr(self, head).weight = getattr(self, embed).weight


# ------------------------------------------------------------------------------------------ keys like any other


def test_A33_plan_and_check(tmp_path: Path) -> None:
    source = tied(tmp_path, **{"head.weight": "embed.weight"})
    rules = remapkit.load(pack(tmp_path, NAMED + "\nkeep: [norm.weight]"))
    plan = rules.plan(source)
    assert {move.target for move in plan.moves} == {"tok.weight", "out.weight", "norm.weight"}
    assert plan.ok and plan.tied == (("tok.weight", "out.weight"),)
    assert plan.check(Tied("tok", "out")).ok


@pytest.mark.parametrize("rules", [None, ALL])
def test_A33_load_into_a_model_that_has_the_name(rules: str | None, tmp_path: Path) -> None:
    source = tied(tmp_path, **{"head.weight": "embed.weight", "author": "norm.weight"})
    model = Tied()
    remapkit.load_into(model, source, None if rules is None else pack(tmp_path, rules))
    assert torch.equal(model.head.weight, WEIGHT) and model.head.weight is model.embed.weight
    apart = torch.nn.ModuleDict(
        {"embed": torch.nn.Linear(4, 3, bias=False), "head": torch.nn.Linear(4, 3, bias=False)}
    )
    apart["norm"] = torch.nn.LayerNorm(4, bias=False)
    remapkit.load_into(apart, source)
    assert torch.equal(apart["head"].weight, WEIGHT)


def test_A33_inspect_and_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tied(tmp_path, **{"head.weight": "embed.weight"})
    assert main(["inspect", str(source), "--manifest", str(tmp_path / "m.json")]) == 0
    assert "recorded as tied: head.weight = embed.weight" in capsys.readouterr().out
    rules = remapkit.load(pack(tmp_path, NAMED + "\nkeep: [norm.weight]"))
    assert rules.plan(tmp_path / "m.json").target.tied == rules.plan(source).target.tied != ()


def test_A33_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tied(tmp_path, **{"head.weight": "embed.weight", "author": "norm.weight"})
    whole = {"embed.weight": WEIGHT, "head.weight": WEIGHT, "norm.weight": torch.ones(4)}
    torch.save(whole, tmp_path / "b.pth")
    assert main(["diff", str(source), str(tmp_path / "b.pth")]) == 0
    assert main(["diff", str(tmp_path / "b.pth"), str(source)]) == 0
    keep = str(pack(tmp_path, ALL))
    assert main(["diff", str(source), str(tmp_path / "b.pth"), "--rules-a", keep]) == 0
    torch.save(whole | {"head.weight": WEIGHT + 1}, tmp_path / "b.pth")
    assert main(["diff", str(source), str(tmp_path / "b.pth")]) == 1
    capsys.readouterr()


@pytest.mark.parametrize("other", ["pth", "safetensors"])
def test_A33_learn_then_apply_on_the_same_file(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tied(tmp_path, **{"head.weight": "embed.weight"})
    new = {"tok.weight": WEIGHT, "norm.weight": torch.ones(4)}
    if other == "pth":
        torch.save(new | {"out.weight": WEIGHT}, "b.pth")
    else:
        save_file(new, "b.safetensors", metadata={"out.weight": "tok.weight"})
    assert main(["learn", str(source), f"b.{other}", "-o", "l.yaml"]) == 0, capsys.readouterr().err
    assert main(["lint", "l.yaml"]) == 0
    if other == "safetensors":
        assert main(["test", "l.yaml"]) == 0
        assert main(["apply", "l.yaml", str(source), "-o", "o.safetensors", "--verify"]) == 0, capsys.readouterr().err
        assert metadata(tmp_path / "o.safetensors")["out.weight"] == "tok.weight"
    else:  # which of the two is which is as open as it is between two .pth, and is said alike
        assert "2 keys undetermined: constants, or bytes that other keys have" in capsys.readouterr().err
    assert main(["new", "n", "--from", str(source), "--to", str(source)]) == 0
    assert main(["apply", "n.yaml", str(source), "-o", "p.safetensors"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert metadata(tmp_path / "p.safetensors")["head.weight"] == "embed.weight"


def test_A33_a_target_that_only_records_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tied(tmp_path, **{"head.weight": "embed.weight"})
    save_file({"tok.weight": WEIGHT}, tmp_path / "t.safetensors", metadata={"out.weight": "tok.weight"})
    rules = str(pack(tmp_path, NAMED + "\ndrop: [norm.weight]"))
    common = [rules, "--target-keys", str(tmp_path / "t.safetensors")]
    assert main(["check", *common, "--ckpt", str(source)]) == 0, capsys.readouterr().err
    capsys.readouterr()


# ----------------------------------------------------------------------------------- metadata that looks like it


@pytest.mark.parametrize(
    "rules",
    [
        ALL,
        "rules: [{id: all, path: '{r:**}', to: 'm.{r}'}]",
        "unmatched: keep\nrules: []",
        "keep: ['{r:**}']",
        "rules: [{id: x, path: 'embed.weight', to: 'e'}, {id: n, path: 'norm.weight', to: 'n'}]",
        "rules: [{id: x, match: '(?P<n>.*)', to: 'e.{n}'}]",
    ],
)
@pytest.mark.parametrize("out", [["o.safetensors"], ["o.pth"], ["o.safetensors", "--untie"]])
def test_D6_no_tensor_and_no_error(
    rules: str, out: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tied(tmp_path, author="norm.weight", license="embed.weight")
    arguments = ["apply", str(pack(tmp_path, rules)), str(source), "-o", str(tmp_path / out[0]), *out[1:]]
    assert main(arguments) == 0, capsys.readouterr().err
    assert "note[RK420]" in capsys.readouterr().err
    if out[0].endswith(".pth"):
        assert len(torch.load(tmp_path / out[0])) == 2
        return
    assert len(load_file(tmp_path / out[0])) == 2
    found = metadata(tmp_path / out[0])
    assert (found["author"], found["license"]) == ("norm.weight", "embed.weight")


def test_D6_check_and_load_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tied(tmp_path, author="norm.weight", **{"head.weight": "embed.weight"})
    (tmp_path / "t.json").write_text(
        json.dumps({fqn: {"dtype": "F32", "shape": [3, 4]} for fqn in ("embed.weight", "head.weight")})
    )
    rules = str(pack(tmp_path, "drop: [norm.weight]\nkeep: ['{r:**}.weight']".replace("{r:**}", "{r:embed|head}")))
    assert main(["check", rules, "--ckpt", str(source), "--target-keys", str(tmp_path / "t.json")]) == 0
    capsys.readouterr()


# ------------------------------------------------------------------------------------------------- the property

SEGMENTS = st.lists(st.sampled_from(["a", "weight", "0", "Author", "ü"]), min_size=1, max_size=3).map(".".join)


def takes_anything(fqn: str) -> None:
    """A rule that takes anything never makes a key of a record; a rule that says the name does."""
    header = StateDictSpec({"w.x.y.z": TensorSpec("F32", (2,))}, recorded={fqn: "w.x.y.z"})
    for body in (ALL, "unmatched: keep\nrules: []", "keep: ['{r:**}']", "drop: ['{r:**}']"):
        plan = compiled(body).plan(header)
        # A plan that drops all there is has that one problem.
        assert [each.code for each in plan.problems] == (["RK368"] if "drop" in body else [])
        assert len(plan.moves) + len(plan.dropped) == 1
        assert list(plan.source.recorded) == [fqn]
        assert len(add_recorded_moves(plan, {fqn}).moves) == (0 if "drop" in body else 2)
    plan = compiled(f"rules: [{{id: n, path: '{fqn}', to: 'new'}}]\nkeep: ['w.x.y.z']").plan(header)
    assert (plan.ok and plan.tied == (("new", "w.x.y.z"),)) or plan.tied == (("w.x.y.z", "new"),)


def compiled(body: str) -> Any:
    from remapkit.api.ruleset import compile_rules
    from remapkit.rulefile.read import read_text

    return compile_rules(read_text(f"remapkit: 1\nname: t\n{body}\n"))


@given(fqn=SEGMENTS)
def test_only_who_says_the_name_makes_a_key_of_it(fqn: str) -> None:
    takes_anything(fqn)


def test_a_record_that_is_a_key_without_being_asked_for_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: whatever a rule matches is a key."""
    monkeypatch.setattr(recorded, "is_specific_match", lambda rule, fqn: rule.match(fqn) is not None)
    with pytest.raises(AssertionError):
        takes_anything("author")
