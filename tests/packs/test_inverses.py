"""The inverse that is derived of every pack: as good as the pack that was written for the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack_kit import BY_NAME, CASES, FAULTS, KEYS, Case, Fault, differing, planted

import remapkit
from remapkit.api.ruleset import RuleSet
from remapkit.cli.app import main
from remapkit.proofs.model import Level

PACKS = [name for case in CASES for name in (case.pack, case.back)]


def case_of(name: str) -> Case:
    return next(case for case in CASES if name in (case.pack, case.back))


def mapping(rules: RuleSet, manifest: str) -> set[tuple[str, tuple[str, ...]]]:
    """Every target that a manifest leads to, with its sources."""
    plan = rules.plan(KEYS / f"{manifest}.json")
    plan.raise_for_problems()
    return {(move.target, move.sources) for move in plan.moves}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_inverse_of_a_pack_is_the_pack_for_the_way_back(case: Case) -> None:
    """The same moves on the real header, and the same bits on values; each way."""
    state = case.source_state()
    there, back = (remapkit.load(name, params=case.params) for name in (case.pack, case.back))
    assert mapping(remapkit.load(case.pack).inverse(), case.target) == mapping(remapkit.load(case.back), case.target)
    assert mapping(remapkit.load(case.back).inverse(), case.source) == mapping(remapkit.load(case.pack), case.source)
    ours = there(dict(state))
    assert differing(back.inverse()(dict(state)), ours) == []
    assert differing(there.inverse()(ours), state) == []


@pytest.mark.parametrize("name", PACKS)
def test_the_inverse_of_the_inverse_is_the_pack(name: str) -> None:
    case = case_of(name)
    rules = remapkit.load(name, params=case.params)
    twice = rules.inverse().inverse()
    assert twice.prove().level is Level.ALL
    source = case.source if name == case.pack else case.target
    assert mapping(remapkit.load(name).inverse().inverse(), source) == mapping(remapkit.load(name), source)
    state = case.source_state() if name == case.pack else case.oracle(case.source_state())
    assert differing(twice(dict(state)), rules(dict(state))) == []


@pytest.mark.parametrize("name", PACKS)
def test_the_written_inverse_stands_by_itself(name: str, tmp_path: Path) -> None:
    """It lints, its tests hold, and its manifests fit from end to end."""
    path = tmp_path / "inverse.yaml"
    assert main(["invert", name, "-o", str(path)]) == 0
    assert main(["lint", str(path)]) == 0
    assert main(["test", str(path)]) == 0
    assert remapkit.load(path).prove().level is Level.ALL


@pytest.mark.parametrize(
    "fault", [each for each in FAULTS if each.pack in ("gpt2_hf", "llama_meta", "mixtral_per_expert")], ids=str
)
def test_the_inverse_of_a_faulty_pack_is_not_the_way_back(fault: Fault, tmp_path: Path) -> None:
    """It undoes what it is derived of, the fault too: what the right pack made, it does not undo."""
    case = BY_NAME[fault.pack]
    state = case.source_state()
    wrong = remapkit.load(planted(fault.pack, fault.changes, tmp_path), params=case.params)
    assert differing(wrong.inverse()(wrong(dict(state))), state) == []
    assert differing(wrong.inverse()(remapkit.load(case.pack, params=case.params)(dict(state))), state)


def test_two_manifests_of_one_name_stay_two(tmp_path: Path) -> None:
    """Beside the inverse both would be `keys/keys.json`; what is no text is refused, unharmed."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in (("src", "a.w"), ("dst", "b.w")):
        (here / folder).mkdir(parents=True)
        (here / folder / "keys.json").write_text(f'{{"{name}": {{"dtype": "F32", "shape": [2]}}}}')
    rules = here / "r.yaml"
    rules.write_text(
        "remapkit: 1\nname: r\nsource: {keys: src/keys.json}\ntarget: {keys: dst/keys.json}\n"
        "rules: [{id: r, path: 'a.{l}', to: 'b.{l}'}]\n"
    )
    there.mkdir()
    inverse = there / "back.yaml"
    assert main(["invert", str(rules), "-o", str(inverse)]) == 0
    assert main(["test", str(inverse)]) == 0 and len(list((there / "keys").iterdir())) == 2
    taken = next((there / "keys").iterdir())
    taken.write_bytes(b"\xff")
    assert main(["invert", str(rules), "-o", str(inverse)]) == 2 and taken.read_bytes() == b"\xff"
    assert main(["invert", str(rules), "-o", str(inverse), "--force"]) == 0 and main(["test", str(inverse)]) == 0
