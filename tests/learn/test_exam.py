"""What is learned is held against bytes and hidden truths, and not against what `learn` itself claims.

Kinds: one tensor changed, missing, more, cast; families with holes, swaps, nested and ragged indices; constants and
duplicates; odd names. Each planted fault (no replay, no proof, constants taken for certain) is killed.
"""

from __future__ import annotations

import pytest
from exam import Case, Memory, random_case, sit, unclean, wrong_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit import examples, pairing
from remapkit.diagnostic import UsageError
from remapkit.examples import learn
from remapkit.learn import new_rule_file
from remapkit.pairing import Pairing
from remapkit.rulefile import read_text
from remapkit.rules import compile_rules
from remapkit.ruletest import run_tests
from remapkit.scalars import in_quotes, quoted
from remapkit.spec import StateDictSpec, TensorSpec

FEW, MANY = 30, 2000


def faults(seed: int) -> list[str]:
    case = random_case(seed)
    try:
        learned = sit(case, source_ref="keys/a.json", target_ref="keys/b.json")
    except UsageError as error:
        assert [each.code for each in error.diagnostics] == ["RK625"]
        return []
    found = [*wrong_tensors(case, learned.text), *unclean(case, learned.text)]
    places = [learned.pairs, learned.undecided, learned.only_a, learned.unsaid]
    if sorted(fqn for each in places for fqn in each) != sorted(case.a.tensors):
        found.append("keys of A are not accounted for, each once")
    if sorted((*learned.pairs.values(), *learned.open_b, *learned.only_b)) != sorted(case.b.tensors):
        found.append("keys of B are not accounted for, each once")
    if sit(case, source_ref="keys/a.json", target_ref="keys/b.json") != learned:
        found.append("not deterministic")
    return found


def failing(seeds: range) -> dict[int, list[str]]:
    return {seed: found for seed in seeds if (found := faults(seed))}


def test_no_tensor_is_wrong_and_every_file_is_clean() -> None:
    assert failing(range(FEW)) == {}


@pytest.mark.slow
def test_no_tensor_is_wrong_in_thousands_of_pairs() -> None:
    assert failing(range(FEW, FEW + MANY)) == {}


def test_without_the_replay_the_exam_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_wrong", lambda rules, source, said, alike: set())
    assert any("other bytes" in each for found in failing(range(15)).values() for each in found)


def test_without_the_proof_the_exam_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_unproven", lambda rules, source, target: ([], set()))
    assert failing(range(15))


F4 = TensorSpec("F32", (4,))
ZEROS = (F4, bytes(16))


def value(number: int) -> tuple[TensorSpec, bytes]:
    return F4, bytes(range(number, number + 16))


def said(a: dict[str, tuple[TensorSpec, bytes]], b: dict[str, tuple[TensorSpec, bytes]]) -> examples.Learned:
    case = Case(Memory("a.pth", a), Memory("b.pth", b), {})
    learned = sit(case, source_ref="keys/a.json", target_ref="keys/b.json")
    assert wrong_tensors(case, learned.text) == unclean(case, learned.text) == []
    return learned


APART = (
    {"fc.weight": value(1), "fc.bias": ZEROS, "head.weight": value(2)},
    {"net.weight": value(1), "norm.bias": ZEROS, "out.weight": value(2)},
)


def test_a_key_whose_target_has_other_bytes_is_not_taken() -> None:  # A8
    a = {f"blocks.{n}.w": value(n) for n in range(3)}
    b = {"h.0.w": value(0), "h.1.w": value(1), "h.2.w": value(9)}
    learned = said(a, b)
    assert learned.pairs == {"blocks.0.w": "h.0.w", "blocks.1.w": "h.1.w"}
    assert (learned.only_a, learned.only_b) == (("blocks.2.w",), ("h.2.w",))


def test_a_constant_that_its_module_speaks_against_is_undetermined() -> None:  # A9
    learned = said(*APART)
    assert dict(learned.undecided) == {"fc.bias": ("norm.bias",)} and learned.open_b == ("norm.bias",)
    assert "nothing settles them" in learned.text and "fc.bias" not in learned.pairs


def test_constants_taken_for_certain_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pairing._content
    monkeypatch.setattr(pairing, "_content", lambda *given: real(*given)._replace(is_constant=False))
    assert said(*APART).pairs["fc.bias"] == "norm.bias"


def test_a_family_with_a_hole_in_the_target_is_taken_as_far_as_it_goes() -> None:  # A10
    a = {f"blocks.{n}.{leaf}": value(2 * n + (leaf == "b")) for n in range(3) for leaf in "wb"}
    b = {fqn.replace("blocks", "h"): tensor for fqn, tensor in a.items() if fqn != "blocks.1.w"}
    learned = said(a, b)
    assert learned.only_a == ("blocks.1.w",) and len(learned.pairs) == 5


def test_indices_of_ragged_blocks_become_rules_that_are_proven() -> None:  # A11
    names = {"i.4.skip": "d.1.r", "i.3.op": "d.0.s", "i.6.op": "d.1.s"}
    a = {fqn: value(number) for number, fqn in enumerate(names)}
    assert said(a, {names[fqn]: tensor for fqn, tensor in a.items()}).pairs == names


NAMES = st.one_of(
    st.sampled_from(["no", "1e3", "0x1", "y", "~", "it's", "{x}", "a|b", "\\d+", "*", "“w”", "#", "- a", ": b", "?"]),
    st.text(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"), min_size=1, max_size=8
    ),
)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_written_text_is_read_back(text: str) -> None:
    for written in (quoted(text), in_quotes(text)):
        file = read_text(f"remapkit: 1\nname: t\nsummary: {written}\nkeep: ['a']\n") if text else None
        assert file is None or (file.summary is not None and file.summary.value == text)


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_new_and_learn_write_files_that_read_back_to_the_same_names(words: list[str]) -> None:
    source = StateDictSpec(dict.fromkeys(words, F4), name="a.pth")
    rules = compile_rules(read_text(new_rule_file("t", source)))
    assert {fqn: [match.target for match in rules.match(fqn)] for fqn in words} == {fqn: [fqn] for fqn in words}
    pairs = {fqn: f"{fqn}.x" for fqn in words if fqn}
    target = StateDictSpec(dict.fromkeys(pairs.values(), F4), name="b.pth")
    try:
        learned = learn("t", source, target, Pairing(pairs, {}, (), ()))
    except UsageError as error:
        assert error.diagnostics[0].code == "RK625"
        return
    rules = compile_rules(read_text(learned.text))
    assert {fqn: rules.match(fqn)[0].target for fqn in learned.pairs} == learned.pairs and run_tests(rules).ok


@pytest.mark.parametrize("word", ["\U000e0001", "\ue000", "'", '"', "\\\\", "no", "é"])
def test_the_inverse_writes_every_name(word: str) -> None:  # A24
    rules = compile_rules(
        read_text(
            f"remapkit: 1\nname: t\nrules: [{{id: r, path: {in_quotes('a' + word + '.{n:int}')}, to: 'b.{{n}}'}}]\n"
        )
    )
    assert rules.inverse().match("b.3")[0].target == f"a{word}.3"
