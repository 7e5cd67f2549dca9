"""The data of a report: every key appears once on its side, and the counts add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import remapkit
from remapkit.cli import app
from remapkit.picture.model import fold_families, make_picture
from remapkit.picture.page import dump_safely
from remapkit.plans.check import find_interchangeable, make_check

SPEC = remapkit.TensorSpec("F32", (4,))
RULES = """
remapkit: 1
name: mixed
rules:
  - {id: a, path: 'a.{n:int}.{x}', to: 'b.{n}.{x}'}
keep: ['keep.{n:int}']
drop: ['drop.{n:int}']
"""
KEYS = st.sets(
    st.builds(
        "{}.{}{}".format,
        st.sampled_from(["a", "b", "keep", "drop", "other"]),
        st.integers(0, 12),
        st.sampled_from(["", ".w", ".v.0"]),
    ),
    max_size=20,
)


@given(KEYS, KEYS)
def test_every_key_appears_once_and_the_counts_add_up(source: set[str], target: set[str]) -> None:
    rules = remapkit.loads(RULES)
    plan = rules.plan(dict.fromkeys(sorted(source), SPEC))
    header = remapkit.header(dict.fromkeys(sorted(target), SPEC))
    picture = make_picture(plan, make_check(plan, header), rules.prove(), name="mixed")
    made = {move.target for move in plan.moves}
    assert sorted(picture.source.keys) == sorted(source)
    assert sorted(picture.target.keys) == sorted(target | made)
    for side in (picture.source, picture.target):
        positions = [number for _, numbers in side.families for number in numbers]
        assert sorted(positions) == list(range(len(side.keys)))
        assert len(side.states) == len(side.keys)
    counts = picture.counts
    assert counts["moved"] + counts["dropped"] + counts["undetermined"] == len(source)
    states = dict(zip(picture.target.keys, picture.target.states, strict=True))
    assert {key for key, state in states.items() if state == "missing"} == target - made
    assert {key for key, state in states.items() if state == "unexpected"} == made - target
    assert {key for key, state in states.items() if state == "matched"} == made & target
    assert counts["interchangeable"] == len(find_interchangeable(header))
    states = dict(zip(picture.source.keys, picture.source.states, strict=True))
    assert {key for key, state in states.items() if state == "moved"} == {
        key for each in plan.moves for key in each.sources
    }
    assert {key for key, state in states.items() if state == "dropped"} == {each.fqn for each in plan.dropped}
    dropped = {picture.source.keys[key]: picture.rules[rule] for key, rule in picture.drops}
    assert dropped == {each.fqn: each.rule.id for each in plan.dropped}
    moves = {move.target: (move.sources, move.rule.id) for move in plan.moves}
    drawn = {
        picture.target.keys[pair[1]]: (tuple(picture.source.keys[key] for key in pair[0]), picture.rules[pair[2]])
        for pair in picture.pairs
    }
    assert drawn == moves and len(picture.pairs) == len(moves)


@given(st.sets(st.text(alphabet="a.09", min_size=1), max_size=12))
def test_families_hold_every_key_once(keys: set[str]) -> None:
    families = fold_families(sorted(keys))
    assert sorted(number for _, numbers in families for number in numbers) == list(range(len(keys)))
    assert all(name == sorted(keys)[numbers[0]] for name, numbers in families if len(numbers) == 1)


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_data_survives_and_never_ends_its_element(data: object) -> None:
    text = dump_safely(data)
    assert text.isascii() and not set(text) & set("<>&")
    assert json.loads(text) == data


def test_the_command_fails_as_check_does(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    page = tmp_path / "r.html"
    assert app.main(["report", "wan22_pth", "-o", str(page)]) == 0
    assert "196 pairs" in capsys.readouterr().out
    assert app.main(["report", "wan22_pth", "-o", str(page)]) == 2
    assert app.main(["report", "wan22_pth", "-o", str(page), "--force"]) == 0
    broken = tmp_path / "broken.yaml"
    broken.write_text("remapkit: 1\nname: broken\nrules:\n  - {id: a, path: 'a.{n', to: 'b'}\n", encoding="utf-8")
    assert app.main(["report", str(broken), "-o", str(tmp_path / "b.html")]) == 1
    assert "not compiled" in (tmp_path / "b.html").read_text(encoding="utf-8")
    assert app.main(["report", str(broken), "-o", str(broken), "--force"]) == 2
    save_file({"a": np.full(4, -1.5, np.float32)}, tmp_path / "weights.safetensors")
    assert app.main(["report", str(tmp_path / "weights.safetensors"), "-o", str(tmp_path / "w.html")]) == 1
    assert "is a checkpoint, not a rule file" in "".join(capsys.readouterr()) and not (tmp_path / "w.html").exists()
    assert "a.{n" in broken.read_text(encoding="utf-8")


def test_a_refuted_proof_shows_its_witness() -> None:
    rules = remapkit.loads(
        "remapkit: 1\nname: two\nrules:\n  - {id: a, path: 'a', to: 'c'}\n  - {id: b, path: 'b', to: 'c'}\n"
    )
    found = remapkit.report(rules, keys={"b": SPEC})
    assert not found.ok and found.counts["pairs"] == 1
    assert any(each.code.startswith("RK2") for each in found.diagnostics)
    assert '"verdict":"refuted"' in found.html and '"fault":' in found.html


def test_a_source_must_be_named() -> None:
    rules = remapkit.loads("remapkit: 1\nname: one\nrules:\n  - {id: a, path: 'a', to: 'b'}\n")
    with pytest.raises(remapkit.UsageError, match="It declares no source"):
        remapkit.report(rules)


def test_the_exit_status_is_that_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over sources and targets that fit, lack keys, have more, have another shape, another size, or other dtypes."""
    manifests = {
        "fits": {"a.0.w": [4], "a.1.w": [4]},
        "less": {"a.0.w": [4]},
        "more": {"a.0.w": [4], "a.1.w": [4], "a.2.w": [4]},
        "foreign": {"a.0.w": [4], "a.1.w": [4], "other": [4]},
        "shape": {"a.0.w": [4], "a.1.w": [5]},
        "rank": {"a.0.w": [4], "a.1.w": [4, 1]},
        "small": {"a.0.w": [8]},
    }
    for name, keys in manifests.items():
        for side, prefix in (("source", "a"), ("target", "b")):
            entries = {key.replace("a.", f"{prefix}."): {"dtype": "F32", "shape": list(s)} for key, s in keys.items()}
            (tmp_path / f"{side}-{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    rules = tmp_path / "r.yaml"
    declared = "source: {keys: source-fits.json}\ntarget: {keys: target-fits.json}\n"
    rules.write_text(
        f"remapkit: 1\nname: r\n{declared}rules:\n  - {{id: a, path: 'a.{{n:int}}.w', to: 'b.{{n}}.w'}}\n"
    )
    seen, absent = set(), 0
    for source in manifests:
        for target in (None, *manifests):
            words = [str(rules), "--keys", str(tmp_path / f"source-{source}.json")]
            words += [] if target is None else ["--target-keys", str(tmp_path / f"target-{target}.json")]
            made = app.main(["report", *words, "-o", "-"])
            page = capsys.readouterr().out
            assert made == app.main(["check", *words]), (source, target)
            counts = json.loads(page.split('type="application/json" id="data">')[1].split("</script>")[0])["counts"]
            faults = counts["missing"] + counts["unexpected"] + counts["mismatch"] + counts["undetermined"]
            assert bool(faults) == bool(made), (source, target)
            seen.add((made, target is None))
            absent += counts["absent"]
            capsys.readouterr()
    assert seen == {(0, True), (1, True), (0, False), (1, False)}
    assert absent == 1, "of the small one, which has one layer where the manifest has two, and is no part of it"


def test_a_checkpoint_of_another_layout_is_told_so() -> None:
    found = remapkit.report("flux_bfl", keys="rules/keys/gpt2_hf.json")
    (first, *_) = [each for each in found.diagnostics if each.code == "RK301"]
    assert any("packs gpt2_hf" in help for help in first.help) and not found.ok
    data = json.loads(found.html.split('type="application/json" id="data">')[1].split("</script>")[0])
    assert (data["source"]["layout"], data["target"]["layout"]) == ("flux/bfl", "flux/diffusers")


def test_without_a_target_nothing_is_said_to_fit() -> None:
    rules = remapkit.loads("remapkit: 1\nname: one\nrules:\n  - {id: a, path: 'a', to: 'b'}\n")
    found = remapkit.report(rules, keys={"a": SPEC})
    assert found.ok and [each.code for each in found.diagnostics] == ["RK360"]
    assert '"checked":"no"' in found.html and found.counts["matched"] == 1
