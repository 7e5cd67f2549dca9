"""Values compared: what is right passes, and planted faults are found where names and shapes see none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.registry.verified import read_witness, witness_path
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from remapkit.verification import make_random_state, verify_by_oracle, verify_forward, verify_oracle
from remapkit.verification.models import build_random_model

WIDTH = 8


class Fused(nn.Module):
    """Attention with one matrix for q, k and v, and a linear layer that keeps its weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        return {"sample": self.out((q @ k.transpose(-1, -2) / WIDTH).softmax(-1) @ v)}


class Apart(nn.Module):
    """The same in four matrices; `out` is written the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out_t = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.out_bias = nn.Parameter(torch.empty(WIDTH))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.q(x) @ self.k(x).transpose(-1, -2) / WIDTH).softmax(-1)
        return weights @ self.v(x) @ self.out_t + self.out_bias


RIGHT = """
remapkit: 1
name: apart
rules:
  - {id: qkv, path: 'qkv.{p:weight|bias}', split: {dim: 0, into: ['q.{p}', 'k.{p}', 'v.{p}']}}
  - {id: out, path: out.weight, ops: [transpose], to: out_t}
  - {id: bias, path: out.bias, to: out_bias}
keep: ['unused.{p:weight|bias}']
"""
WRONG = {
    "a swap of k and v": ("'k.{p}', 'v.{p}'", "'v.{p}', 'k.{p}'"),
    "a transpose left out": ("ops: [transpose], ", ""),
    "halves flipped": ("ops: [transpose]", "ops: [transpose, flip_halves]"),
}


def compiled(text: str) -> RuleSet:
    return compile_rules(read_text(text))


def models() -> tuple[nn.Module, nn.Module]:
    return build_random_model(Fused, "Fused", 0), build_random_model(Apart, "Apart", 1)


def test_what_is_right_is_verified_and_what_took_no_part_is_counted() -> None:
    verdict = verify_forward(compiled(RIGHT), *models(), "forward")
    assert verdict.ok and verdict.apart < 1e-5
    assert (len(verdict.tensors), verdict.total) == (8, 10)
    assert not any(fqn.startswith("unused") for fqn in verdict.tensors)


@pytest.mark.parametrize("fault", WRONG)
def test_a_fault_that_names_and_shapes_cannot_see_is_found(fault: str) -> None:
    rules = compiled(RIGHT.replace(*WRONG[fault]))
    source, target = models()
    assert rules.plan(source.state_dict()).check(target).ok
    verdict = verify_forward(rules, source, target, "forward")
    assert [problem.code for problem in verdict.problems] == ["RK715"]


class Chain(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x).tanh_()  # in place, so that what a module gave does not stay as it was
        return x


def test_where_two_models_part_is_named() -> None:
    text = "remapkit: 1\nname: t\ntables: {to: {a: a, b: c, c: b, d: d}}\nrules:\n"
    text += "  - {id: swapped, path: 'layers.{n:to}.{p}', to: 'layers.{n|to}.{p}'}\n"
    source, target = (build_random_model(lambda: Chain(("a", "b", "c", "d")), "Chain", seed) for seed in (0, 1))
    (problem,) = verify_forward(compiled(text), source, target, "forward").problems
    # b of the source computes what the second layer gives; in the target that is c, and so it is the first apart.
    assert problem.notes[0] == "they diverge at layers.b (from layers.c, by swapped), after layers.a"


class Causal(nn.Module):
    """Attention with a mask that it keeps in a buffer, if `persistent` in the state dict, or computes."""

    def __init__(self, persistent: bool, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.BatchNorm1d(WIDTH)
        mask = torch.ones(16, 16, dtype=torch.bool).tril()
        self.register_buffer("mask", mask.to(kind), persistent=persistent)
        self.register_buffer("ids", torch.arange(16).flip(0), persistent=persistent)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, WIDTH), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[-2]
        mask, ids = self.get_buffer("mask")[:length, :length], self.get_buffer("ids")[:length, None]
        weights = self.q(x) @ self.k(x).transpose(-1, -2)
        weights = weights.masked_fill(mask == 0, float("-inf")).softmax(-1)
        attended = (weights @ self.v(x) + ids / 16) * self.get_buffer("scale")
        out: torch.Tensor = self.out(self.norm(attended))
        return out


CAUSAL = """
remapkit: 1
name: causal
rules: [{id: all, path: '{m:q|k|v|out|norm}.{p}', to: '{m}.{p}'}]
drop: [mask, ids, scale]
"""


def causal(rules: RuleSet, kind: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    source = build_random_model(lambda: Causal(True, kind), "Causal", 0, rules)
    return source, build_random_model(lambda: Causal(False, kind), "Causal", 1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.uint8], ids=["A29", "A29-bool", "A29-integers"])
def test_buffers_that_the_rules_drop_keep_their_values(kind: torch.dtype) -> None:
    rules = compiled(CAUSAL)
    verdict = verify_forward(rules, *causal(rules, kind), "forward", written=f"7,{WIDTH}")
    assert verdict.ok, verdict.problems
    assert verdict.constants == ("mask", "ids", "scale") and verdict.to_json()["constants"] == [
        "mask",
        "ids",
        "scale",
    ]


def test_buffers_that_are_randomised_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remapkit.verification.models.find_constants", lambda *_: ())
    with pytest.raises(AssertionError):
        test_buffers_that_the_rules_drop_keep_their_values(torch.float32)


class Scaled(nn.Module):
    """A gain and the statistics of a norm: learned, or fixed at what they begin with."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        if learned:
            self.norm = nn.BatchNorm1d(WIDTH, affine=False)
            self.gain = nn.Parameter(torch.ones(WIDTH))
        self.learned = learned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.a(x)
        return self.norm(out) * self.gain if self.learned else out


@pytest.mark.parametrize("left", ["norm", "gain"])
def test_what_is_learned_is_no_constant(left: str) -> None:
    """One that is dropped is missed, though it begins with a value that changes nothing."""
    rules = compiled("remapkit: 1\nname: t\nkeep: ['a.{p}']\ndrop: ['norm.{p}', gain]\n")
    source = build_random_model(lambda: Scaled(True), "Scaled", 0, rules)
    with torch.no_grad():  # one of them as it begins
        if left == "norm":
            source.gain.fill_(1)  # type: ignore[operator, union-attr]
        else:
            source.norm.reset_running_stats()  # type: ignore[operator, union-attr]
    target = build_random_model(lambda: Scaled(False), "Scaled", 1)
    verdict = verify_forward(rules, source, target, "forward", written=f"7,{WIDTH}")
    assert [problem.code for problem in verdict.problems] == ["RK715"]


def test_a_difference_between_modules_blames_no_rule() -> None:
    rules = compiled(CAUSAL)
    source, target = causal(rules)
    target.get_buffer("scale").mul_(2)
    (problem,) = verify_forward(rules, source, target, "forward", written=f"7,{WIDTH}").problems
    assert problem.notes[0].startswith("they diverge between v and norm: its input differs already")
    assert "by all" not in str(problem)


class End(Chain):
    def __init__(self, factor: float) -> None:
        super().__init__(("a", "b"))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor


def test_a_difference_at_the_end_blames_no_rule() -> None:
    rules = compiled("remapkit: 1\nname: t\nrules: [{id: all, path: '{p:**}', to: '{p}'}]\n")
    source, target = build_random_model(lambda: End(1.0), "End", 0), build_random_model(lambda: End(2.0), "End", 1)
    (problem,) = verify_forward(rules, source, target, "forward").problems
    assert problem.notes[0].startswith("they diverge after layers.b: every module")
    assert "by all" not in str(problem) and "look at the rules" not in str(problem)


def test_a_method_that_ignores_the_weights_verifies_nothing() -> None:
    class Blind(nn.Linear):
        def size(self, x: torch.Tensor) -> torch.Tensor:
            return x.float() * 2

    rules = compiled("remapkit: 1\nname: t\nkeep: ['{p}']\n")
    source, target = (build_random_model(lambda: Blind(4, 4), "Blind", seed) for seed in (0, 1))
    (problem,) = verify_forward(rules, source, target, "size").problems
    assert problem.code == "RK716"


def test_rules_that_do_not_lead_to_the_model_are_refused_first() -> None:
    with pytest.raises(FailedCheck):
        verify_forward(compiled("remapkit: 1\nname: t\nkeep: ['{p:**}']\n"), *models(), "forward")


def test_no_input_and_no_method_are_said() -> None:
    with pytest.raises(UsageError, match="RK713"):
        verify_forward(compiled(RIGHT), *models(), "forward", written="2,3")
    with pytest.raises(UsageError, match="RK713"):
        verify_forward(compiled(RIGHT), *models(), "encode")


# ------------------------------------------------------------------------------------------------------ oracles


def oracle(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A converter by hand: the same as `RIGHT`."""
    new = {}
    for p in ("weight", "bias"):
        new[f"q.{p}"], new[f"k.{p}"], new[f"v.{p}"] = state.pop(f"qkv.{p}").chunk(3)
    new["out_t"], new["out_bias"] = state.pop("out.weight").t(), state.pop("out.bias")
    return {**new, **state}


def state() -> dict[str, torch.Tensor]:
    return make_random_state(remapkit.header(Fused()), 0)


def test_an_oracle_agrees_bit_for_bit() -> None:
    verdict = verify_oracle(compiled(RIGHT), oracle, state(), "py:oracle")
    assert verdict.ok and len(verdict.tensors) == 10


@pytest.mark.parametrize("fault", WRONG)
def test_an_oracle_finds_each_fault(fault: str) -> None:
    (problem,) = verify_oracle(compiled(RIGHT.replace(*WRONG[fault])), oracle, state(), "py:oracle").problems
    assert problem.code == "RK711"
    if fault == "a transpose left out":
        assert problem.notes == ("out_t: transposed",)


def test_an_oracle_of_another_layout_fails_with_its_own_words() -> None:
    (problem,) = verify_oracle(compiled(RIGHT), lambda sd: sd["nothing"], state(), "py:oracle").problems
    assert problem.code == "RK714" and "KeyError" in problem.notes[0]
    (problem,) = verify_oracle(compiled(RIGHT), lambda sd: {"a": 1}, state(), "py:oracle").problems
    assert problem.code == "RK710"


MERGED = """
remapkit: 1
name: ranks
rules:
  - {id: w, path: 'tp{t:int}.w', concat: {dim: 0, by: t}, to: w}
  - {id: norm, path: 'tp{t:int}.norm.{i:int}', merge: {by: t}, stack: {dim: 0, by: i}, to: norms}
  - {id: head, merge: [head, tied], to: head}
"""


def join_ranks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The converter for `MERGED`; random parts stay different."""
    assert not torch.equal(state["tp0.w"], state["tp1.w"]) and not torch.equal(
        state["tp0.norm.0"], state["tp0.norm.1"]
    )
    norms = torch.stack([state["tp2.norm.0"], state["tp1.norm.1"]])
    return {"w": torch.cat([state[f"tp{t}.w"] for t in range(3)]), "norms": norms, "head": state["tied"].clone()}


def test_an_oracle_is_asked_about_ranks_that_agree() -> None:
    """Random copies of one tensor would differ. Those with other operations first stay random, and are refused."""
    shapes = {
        f"tp{t}.{name}": shape
        for t in range(3)
        for name, shape in (("w", (2, 3)), ("norm.0", (4,)), ("norm.1", (4,)))
    }
    shapes |= {"head": (3, 3), "tied": (3, 3)}
    header = StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()})
    verdict = verify_by_oracle(compiled(MERGED), join_ranks, "py:join_ranks", header, 0)
    assert verdict.ok and verdict.tensors == ("w", "norms", "head")
    with pytest.raises(FailedCheck, match="tied differs from head"):
        transposed = MERGED.replace("tied]", "{path: tied, ops: [transpose]}]")
        verify_by_oracle(compiled(transposed), join_ranks, "py:join_ranks", header, 0)


# -------------------------------------------------------------------------------------------- the command, witnesses


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "apart.yaml"
    path.write_text(RIGHT, encoding="utf-8")
    (tmp_path / "keys.json").write_text(
        json.dumps({k: {"dtype": v.dtype, "shape": list(v.shape)} for k, v in remapkit.header(Fused()).items()})
    )
    module = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    (tmp_path / "verified_models.py").write_text(module + "from test_verification import Apart, Fused, oracle\n")
    return path


def verify(pack: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "remapkit", "verify", str(pack), "--format", "json", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=pack.parent)


def test_the_command_keeps_a_witness_that_goes_stale(pack: Path) -> None:
    both = ["--source", "py:verified_models:Fused", "--target", "py:verified_models:Apart"]
    done = verify(pack, *both, "--write")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"][0]["tensors"] == 8
    done = verify(pack, "--oracle", "py:verified_models:oracle", "--keys", "keys.json", "--write")
    assert done.returncode == 0, done.stderr
    witness = read_witness(pack)
    assert witness is not None and witness.describe_state(remapkit.load(pack)) == "forward, oracle"
    assert {"remapkit", "torch"} <= set(witness.versions)
    pack.write_text(RIGHT + "# changed\n", encoding="utf-8")
    assert witness.describe_state(remapkit.load(pack)) == "forward, oracle"
    pack.write_text(RIGHT.replace(*WRONG["a transpose left out"]), encoding="utf-8")
    assert witness.describe_state(remapkit.load(pack)) == "stale"
    before = witness_path(pack).read_text()
    done = verify(pack, *both, "--write")
    assert done.returncode == 1 and witness_path(pack).read_text() == before


def test_a_witness_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    assert read_witness(path) is None
    witness_path(path).write_text("[1]")
    assert read_witness(path) is None


@pytest.mark.slow
def test_the_wan_vae_of_diffusers_by_value(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from remapkit.plugins.wan.config import WAN22_MEAN, WAN22_STD

    config = {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 48, "is_residual": True, "patch_size": 2}
    config |= {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    config |= {"latents_mean": list(WAN22_MEAN), "latents_std": list(WAN22_STD)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["verify", "wan22_diffusers", "--source", "py:diffusers:AutoencoderKLWan", "--target", "wan.vae:WanVAE"]
    command += [
        "--source-config",
        str(tmp_path / "config.json"),
        "--target-arg",
        "dim=8",
        "--target-arg",
        "dec_dim=12",
    ]
    assert main([*command, "--forward", "encode", "--forward", "decode", "--format", "json"]) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert [each["tensors"] for each in verified] == [86, 110]


def test_no_witness_that_is_shipped_is_stale() -> None:
    """Made again with `remapkit verify PACK ... --write`; PYTHONPATH=tests/packs for an oracle from there."""
    found = {pack.name: (read_witness(pack.path), remapkit.load(pack.path)) for pack in remapkit.packs()}
    states = {name: witness.describe_state(rules) for name, (witness, rules) in found.items() if witness is not None}
    assert states and "stale" not in states.values(), states
