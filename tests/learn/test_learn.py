"""Rules derived from examples say exactly the examples, few where the layouts are regular, and never guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring import generalize as module
from remapkit.authoring import learn as examples
from remapkit.authoring.learn import learn
from remapkit.authoring.pair_by_value import Pairing, pair_by_value
from remapkit.cli.app import main
from remapkit.diagnostics.errors import UsageError
from remapkit.formats import open_checkpoint
from remapkit.rulefile.read import read_text
from remapkit.rules.selftest import run_tests
from remapkit.tensors.spec import StateDictSpec, TensorSpec

SPEC = TensorSpec("F32", (2,))
words = st.sampled_from(["0", "1", "2", "3", "10", "q", "k", "norm", "weight", "bias", "", "a|b", "{x}", "é"])
keys = st.lists(words, min_size=1, max_size=4).map(".".join).filter(bool)
marked = st.sampled_from(["\0{", "\0#{0}", "\0=", "\0|", "\0"])
renamings = st.dictionaries(keys, keys, min_size=1, max_size=25).map(
    lambda found: {source: target for target, source in {target: source for source, target in found.items()}.items()}
)


def header(fqns: object, name: str = "a.pth") -> StateDictSpec:
    return StateDictSpec(dict.fromkeys(fqns, SPEC), name=name)  # type: ignore[call-overload]


def learned(pairs: dict[str, str], more: tuple[str, ...] = ()) -> RuleSet:
    text = learn("t", header([*pairs, *more]), header(pairs.values()), Pairing(pairs, {}, more, ())).text
    return compile_rules(read_text(text))


def said(rules: RuleSet, fqns: object) -> dict[str, list[str | None]]:
    return {fqn: [match.target for match in rules.match(fqn)] for fqn in fqns}  # type: ignore[attr-defined]


@given(renamings)
@example({"q.0": "0.0", "q.q": "0"})
@example({"bias.3": "0.0.norm.0", "0": "0", ".3": "0.norm.0", "{x}.a|b": "0.0"})
def test_the_rules_say_the_examples_and_their_own_tests_hold(pairs: dict[str, str]) -> None:
    rules = learned(pairs)
    assert said(rules, pairs) == {source: [target] for source, target in pairs.items()}, rules.file.source.text
    assert run_tests(rules).ok


@given(renamings, st.lists(keys, max_size=5))
def test_a_key_without_an_example_goes_nowhere_that_is_not_there(pairs: dict[str, str], more: list[str]) -> None:
    left = tuple(fqn for fqn in dict.fromkeys(more) if fqn not in pairs)
    rules = learned(pairs, left)
    targets = set(pairs.values())
    assert all(len(found) <= 1 and set(found) <= targets for found in said(rules, left).values())


@given(st.dictionaries(keys | st.lists(words | marked, min_size=1, max_size=3).map(".".join), keys, min_size=1))
def test_names_with_the_character_that_marks_our_own_words_are_keys_like_others(found: dict[str, str]) -> None:
    pairs = {source: target for target, source in {target: source for source, target in found.items()}.items()}
    pairs = {source: target for source, target in pairs.items() if source} or {"a": "b"}
    rules = learned(pairs)
    assert said(rules, pairs) == {source: [target] for source, target in pairs.items()}, rules.file.source.text


def test_a_planted_wrong_formula_does_not_get_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "_find_arithmetic", lambda wanted, columns, varying: module.ComputedSegment((1,), "{0}+1")
    )
    pairs = {f"h.{n}.w": f"layers.{n + 2}.w" for n in range(4)}
    rules = learned(pairs)
    assert said(rules, pairs) == {source: [target] for source, target in pairs.items()} and len(rules.rules) == 4


def test_a_planted_blindness_for_other_keys_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {f"h.{n}.w": f"layers.{n}.w" for n in range(4)}
    assert said(learned(pairs, ("h.7.w",)), ["h.7.w"]) == {"h.7.w": []}
    monkeypatch.setattr(examples, "_find_wrong_rules", lambda rules, source, target, pairs: set())
    assert said(learned(pairs, ("h.7.w",)), ["h.7.w"]) == {"h.7.w": ["layers.7.w"]}


def test_an_index_may_be_shifted_folded_and_unfolded() -> None:
    shifted = {f"h.{n}.w": f"layers.{n + 1}.w" for n in range(4)}
    folded = {f"s.{i}.{j}.w": f"flat.{i * 3 + j}.w" for i in range(4) for j in range(3)}
    cut = {f"z.{n}.w": f"grid.{n // 4}.{n % 4}.w" for n in range(12)}
    rules = learned(shifted | folded | cut)
    assert [rule.id for rule in rules.rules] == ["h.w", "s.w", "z.w"]
    assert rules.match("s.3.2.w")[0].target == "flat.11.w"


def test_a_deeper_model_is_read_by_what_was_learned_from_a_shallow_one() -> None:
    rules = learned({f"layers.{n}.{p}": f"blocks.{n}.{p}" for n in range(2) for p in ("q", "k")})
    assert rules.match("layers.31.q")[0].target == "blocks.31.q"


@pytest.mark.parametrize("pack", ["wan22_pth", "wan22_diffusers"])
def test_a_real_pack_is_found_again_from_its_pairs(pack: str) -> None:
    rules = remapkit.load(pack)
    assert rules.file.path is not None and rules.file.source_keys is not None
    source = remapkit.header(rules.file.path.parent / rules.file.source_keys.value)
    pairs = {move.sources[0]: move.target for move in rules.plan(source).moves}
    found = learned(pairs)
    assert said(found, pairs) == {fqn: [target] for fqn, target in pairs.items()}
    assert len(found.everything) <= 25


# ------------------------------------------------------------------------------------------------ values


def checkpoints(folder: Path, rename: dict[str, str], **values: torch.Tensor) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    state = {fqn: values.get(fqn.rpartition(".")[2], torch.rand(3, generator=generator)) for fqn in rename}
    one, other = folder / "one.safetensors", folder / "other.safetensors"
    save_file({fqn: tensor.clone() for fqn, tensor in state.items()}, one)
    save_file({rename[fqn]: tensor.clone() for fqn, tensor in state.items()}, other)
    return one, other


RENAME = {
    f"layers.{n}.{p}.{leaf}": f"h.{n}.{p}_proj.{leaf}" for n in range(3) for p in "qk" for leaf in ("w", "bias")
}


def test_keys_are_paired_by_their_values(tmp_path: Path) -> None:
    one, other = checkpoints(tmp_path, RENAME)
    with open_checkpoint(one) as a, open_checkpoint(other) as b:
        assert pair_by_value(a, b) == Pairing({fqn: RENAME[fqn] for fqn in sorted(RENAME)}, {}, (), ())


def test_equal_values_are_settled_by_their_module_or_not_at_all(tmp_path: Path) -> None:
    rename = {**RENAME, "stray.bias": "lost.bias", "other_stray.bias": "also_lost.bias"}
    one, other = checkpoints(tmp_path, rename, bias=torch.zeros(3))
    with open_checkpoint(one) as a, open_checkpoint(other) as b:
        found = learn("t", a.header(), b.header(), pair_by_value(a, b))
    assert found.pairs == {fqn: RENAME[fqn] for fqn in sorted(RENAME)}
    assert set(found.by_module) == {fqn for fqn in RENAME if fqn.endswith("bias")}
    assert set(found.undecided) == {"stray.bias", "other_stray.bias"}
    assert all(set(others) == {"lost.bias", "also_lost.bias"} for others in found.undecided.values())


def test_from_the_command_line_to_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = checkpoints(tmp_path, RENAME, bias=torch.zeros(3))
    pack = tmp_path / "mine.yaml"
    assert main(["learn", str(one), str(other), "--name", "mine", "-o", str(pack)]) == 0
    assert main(["lint", str(pack)]) == main(["test", str(pack)]) == main(["check", str(pack)]) == 0
    assert main(["apply", str(pack), str(one), "-o", str(tmp_path / "out.safetensors")]) == 0
    assert main(["diff", str(other), str(tmp_path / "out.safetensors")]) == 0
    assert (
        "6 pairs cannot be decided by value; paired because the rest of their module was paired this way"
        in capsys.readouterr().err
    )
    assert main(["learn", str(one), str(other), "--name", "mine", "-o", str(pack)]) == 2
    assert capsys.readouterr().err.count("use --force") == 3


def test_pairs_may_be_written_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = checkpoints(tmp_path, RENAME)
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(RENAME))
    assert main(["learn", str(one), str(other), "--pairs", str(pairs), "-o", "-"]) == 0
    assert "part: {k: k_proj, q: q_proj}" in capsys.readouterr().out
    pairs.write_text(json.dumps({"layers.0.q.w": "h.0.q_proj.w", "layers.0.k.w": "h.0.q_proj.w", "no": "nor"}))
    assert main(["learn", str(one), str(other), "--pairs", str(pairs), "-o", "-"]) == 2
    shown = capsys.readouterr().err
    assert "3 pairs cannot be" in shown and "both become h.0.q_proj.w" in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["{manifest}", "{other}"], "RK626"),
        (["{one}", "{unrelated}"], "RK625"),
        (["{one}", "{missing}"], "RK400"),
        (["{one}", "{other}", "--pairs", "{one}"], "RK611"),
        (["{one}", "{other}", "--name", "a b"], "RK623"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = checkpoints(tmp_path, RENAME)
    save_file({"x": torch.ones(7)}, tmp_path / "unrelated.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps({"w": {"dtype": "F32", "shape": [1]}}))
    places = {"one": one, "other": other, "unrelated": tmp_path / "unrelated.safetensors"}
    places |= {"manifest": tmp_path / "manifest.json", "missing": tmp_path / "missing.pth"}
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert main(["learn", *(word.format(**places) for word in arguments)]) == 2
    assert f"error[{code}]" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_without_keys_teaches_nothing() -> None:
    with pytest.raises(UsageError, match="holds no tensors"):
        learn("t", header([]), header(["a"]), Pairing({}, {}, (), ("a",)))


# ------------------------------------------------------------------------------------------------ what settles pairs


def write_sides(folder: Path, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    for side, name in ((a, "a"), (b, "b")):
        save_file({fqn: tensor.clone() for fqn, tensor in side.items()}, folder / f"{name}.safetensors")
    return folder / "a.safetensors", folder / "b.safetensors"


def test_norms_of_ones_go_where_all_of_their_layer_went(tmp_path: Path) -> None:
    a, b = {}, {}
    for n in range(3):
        for old, new in (("q", "attn.query"), ("up", "mlp.up")):
            a[f"model.layers.{n}.{old}.weight"] = b[f"h.{n}.{new}.weight"] = torch.rand(4, 3)
        a[f"model.layers.{n}.norm.weight"] = b[f"h.{n}.ln.weight"] = torch.ones(4)
    report = remapkit.learn(*write_sides(tmp_path, a, b))
    assert report.ok and report.learned.pairs["model.layers.1.norm.weight"] == "h.1.ln.weight"
    assert "all paired tensors around them went to one parent module" in report.text
    # Two that fit are no evidence.
    for n in range(3):
        a[f"model.layers.{n}.norm2.weight"] = b[f"h.{n}.ln2.weight"] = torch.ones(4)
    report = remapkit.learn(*write_sides(tmp_path, a, b))
    assert not report.ok and len(report.learned.undecided) == 6


def test_statistics_keep_their_names_below_a_module_that_kept_its_own(tmp_path: Path) -> None:
    a, b = {}, {}
    for n in range(2):
        a[f"net.{n}.conv.weight"] = b[f"body.block{n}.conv.weight"] = torch.rand(4, 3)
        for leaf, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            a[f"net.{n}.bn.{leaf}"] = b[f"body.block{n}.bn.{leaf}"] = torch.full((4,), float(value))
    report = remapkit.learn(*write_sides(tmp_path, a, b))
    assert report.ok and report.learned.pairs["net.1.bn.running_mean"] == "body.block1.bn.running_mean"


def test_a_bias_of_another_module_stays_undetermined(tmp_path: Path) -> None:
    one, other, zeros = torch.rand(3, 3), torch.rand(3, 3), torch.zeros(3)
    a = {"fc.weight": one, "fc.bias": zeros, "head.weight": other}
    b = {"net.weight": one, "norm.bias": zeros, "out.weight": other}
    report = remapkit.learn(*write_sides(tmp_path, a, b))
    assert set(report.learned.undecided) == {"fc.bias"}
    report = remapkit.learn(*write_sides(tmp_path, a, b), pairs={"fc.bias": "norm.bias"})
    assert report.ok and "because the given pairs say so" in report.text


def test_given_pairs_complete_what_values_say(tmp_path: Path) -> None:
    a = {f"l.{n}.w": torch.rand(4, 3) for n in range(3)} | {"l.m": torch.rand(5), "q.w": torch.rand(3, 2)}
    b = {f"h.{n}.w": a[f"l.{n}.w"] for n in range(3)} | {"m": 0.5 * a["l.m"], "k.w": a["q.w"].T.contiguous()}
    sides = write_sides(tmp_path, a, b)
    report = remapkit.learn(*sides, pairs={"l.m": "m", "l.0.w": "h.0.w"})
    assert report.ok and report.learned.pairs["l.2.w"] == "h.2.w" and len(report.learned.relations) == 1
    assert "1 key; because the given pairs say so, although their values differ" in report.text
    for pairs, said in (
        ({"l.m": "m", "l.0.w": "h.1.w"}, "l.0.w -> h.1.w: by value it is l.0.w -> h.0.w"),
        ({"l.0.w": "h.1.w", "l.1.w": "h.0.w"}, "2 given pairs contradict the values"),
    ):
        with pytest.raises(UsageError, match=said):
            remapkit.learn(*sides, pairs=pairs)
    a["r.w"] = b["s.w"] = torch.rand(2, 3)
    with pytest.raises(UsageError, match="an operation makes q"):
        remapkit.learn(*write_sides(tmp_path, a | {"o.w": torch.rand(2, 3)}, b), pairs={"o.w": "k.w"})


def test_pairs_of_manifests_are_all_there_is(tmp_path: Path) -> None:
    one, other = checkpoints(tmp_path, RENAME)
    assert main(["inspect", str(one), "--manifest", str(tmp_path / "a.json")]) == 0
    report = remapkit.learn(tmp_path / "a.json", other, pairs={"layers.0.q.w": "h.0.q_proj.w"})
    assert "by the given pairs" in report.text and "by value" not in report.text
    titles = [each.title for each in report.diagnostics]
    assert titles == ["11 keys of 12 are in no given pair"] * 2 and "equal tensor" not in report.text
