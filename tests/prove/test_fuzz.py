"""Random rule files, proven and held against every key: what is claimed is true, and a fault would be noticed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import yaml
from claims import disagreements
from fuzz import judge, run, shrink, without_fixes
from hypothesis import given, settings
from hypothesis import strategies as st
from key_oracle import Truths
from rule_maker import Maker, files, write_text
from rule_reader import read_rules

import remapkit
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs.model import Level, Proof

SLICE = 250
LEVELS = [level.value for level in Level if level is not Level.UNDECIDED]


@pytest.mark.parametrize("seed", range(0, 2000, SLICE))
def test_proofs_of_random_files_are_true(seed: int) -> None:
    with without_fixes() if seed else nullcontext():
        figures, found = run(seed, SLICE)
    assert [(number, judged.wrong) for number, judged in found if judged.wrong] == []
    assert figures["refused"] <= SLICE * 0.3
    assert figures["renames, undecided"] <= 1
    assert figures["with operations, undecided"] <= 2
    for level in LEVELS:
        assert figures[level] >= SLICE / 20, f"hardly any file is {level}: little would be tested"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_proofs_of_files_of_hypothesis_are_true(data: st.DataObject) -> None:
    made = Maker(lambda count: data.draw(st.integers(0, count - 1))).file()
    with without_fixes():
        assert judge(made, 1_500).wrong == (), write_text(made)


# ------------------------------------------------------------------------------------------------ what was found

RULE = "remapkit: 1\nname: t\nrules: [{id: r, %s}]\n"
ADD = "add: [{to: a, fill: zeros, shape: [1], dtype: F32}]\n"
LOSSY = "tables: {t: {lossy: true, entries: {a: '', b: '', ab: b}}}\n"
FOUND: dict[str, tuple[str, Level]] = {
    "a loss behind an admitted one, by two values of a lossy table": (
        RULE % "path: '{c:t}.{d:**}', to: '{c|t}{d}'" + LOSSY,
        Level.REFUTED,
    ),
    "the smallest that passes through, of several outputs": (
        RULE % "path: '{c:0..2}', copy: ['.b{c+9}', 'a{c}']" + "unmatched: keep\n",
        Level.KEYS,
    ),
    "the smallest loss beside an admitted one": (
        RULE % r"match: '(?P<a>\d)(?P<b>a?).*', to: '{a}', forget: [b]",
        Level.REFUTED,
    ),
    "an index read in two ways with one value": (
        RULE % "match: 'x.*(?P<e>0?1)', stack: {dim: 0, by: e}, to: b",
        Level.REFUTED,
    ),
    "an index read in two ways with two values": (
        RULE % "match: '(?P<e>1+)(?P<c>.*)', stack: {dim: 0, by: e}, to: b, forget: [c]",
        Level.REFUTED,
    ),
    "what passes through beside what is admitted": (
        RULE % "path: '{c:b|x}', to: b, forget: [c]" + ADD + "unmatched: keep\n",
        Level.KEYS,
    ),
    "an admitted loss between two outputs": (
        RULE % "path: '{c:0..9}', unstack: {dim: 0, by: k, count: 3}, to: '{k+c}', forget: [c]",
        Level.KEYS,
    ),
    "one between two outputs that is not, behind an admitted one": (
        RULE % "path: '{c:0..9}.{a:0|10|11}', unstack: {dim: 0, by: k, count: 2}, to: '{k+c+a}', forget: [c]",
        Level.REFUTED,
    ),
    "what passes through outside the domain": (
        "remapkit: 1\nname: t\nunmatched: keep\nsource: {domain: [b]}\n" + ADD,
        Level.DOMAIN,
    ),
}
"""The smallest files with which random files were judged falsely."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_judged_as_it_is(name: str) -> None:
    text, level = FOUND[name]
    judged = judge(yaml.safe_load(text))
    assert (judged.level, judged.wrong) == (level.value, ())


# ------------------------------------------------------------------------------------------------ the oracle itself

TRUE: dict[str, tuple[str, dict[tuple[str, bool], int]]] = {
    "nothing": (RULE % "path: 'a.{n}', to: 'b.{n}'", {}),
    "a loss": (RULE % r"match: 'a\d', to: b", {("within", False): 4}),
    "a loss that is admitted": (RULE % "path: 'a.{n:0..1}', to: b, forget: [n]", {("within", True): 6}),
    "one beside it that is not": (
        RULE % "match: 'a(?P<n>[01])b?', to: b, forget: [n]",
        {("within", True): 4, ("within", False): 5},
    ),
    "a cut": (RULE % "match: '(?P<a>a*)(?P<b>a*)', to: '{a}.{b}'", {("cut", False): 1}),
    "a cut that does not matter": (RULE % "match: '(?P<a>a*)(?P<b>a*)', to: '{a}{b}'", {}),
    "the index of a stack": (RULE % r"match: 'a(?P<e>\d+)', stack: {dim: 0, by: e}, to: b", {("within", False): 5}),
    "indices of a stack": (RULE % "path: 'a.{e:int}', stack: {dim: 0, by: e}, to: b", {}),
    "the index of an unstack": (
        RULE % "path: 'w{c}', unstack: {dim: 0, by: k}, to: '{k}{c}'",
        {("within", False): 5},
    ),
    "sources of one rule": (RULE % "concat: {dim: 0, from: ['a.{n}', 'b.{n}']}, to: 'c.{n}'", {}),
    "two outputs": (RULE % "path: 'a.{n}', copy: ['b.{n}', 'b.{n}']", {("within", False): 6}),
    "a number": (RULE % "path: '{n:0..3}', to: '{n//2}'", {("within", False): 2}),
    "two rules": (RULE % "path: a, to: x}, {id: s, path: b, to: x", {("across", False): 2}),
    "one key": (RULE % "path: 'a.{n}', to: 'b.{n}'}, {id: s, path: a.b, to: x", {("ambiguous", False): 3}),
    "what passes through": (RULE % "path: 'a.{n}', to: 'b.{n}'" + "unmatched: keep\n", {("open", False): 6}),
    "a domain": (RULE % r"match: 'a\d*', to: b" + "source: {domain: ['a', 'ab']}\n", {}),
    "what is added": (
        RULE % "path: '{n:0|1}', to: 'b{n}'" + "add: [{to: b1, fill: zeros, shape: [1], dtype: F32}]\n",
        {("added", False): 1},
    ),
    "a lossy table": (
        RULE % "path: '{c:t}.{d:**}', to: '{c|t}{d}'" + LOSSY,
        {("within", True): 6, ("within", False): 8},
    ),
}
"""The size of the smallest fault of each kind, worked out by hand; whether it is admitted."""


@pytest.mark.parametrize("name", TRUE)
def test_the_oracle_knows_what_is_true(name: str) -> None:
    text, expected = TRUE[name]
    remapkit.loads(text)
    truth = Truths(yaml.safe_load(text), 6_000).in_domain
    assert {(fault.kind, fault.admitted): fault.size for fault in truth.smallest.values()} == expected


def test_the_oracle_reads_every_surface() -> None:
    text = RULE % (
        "path: '{{x{''[0]''}.{a:t}.{b:0..2}', leaf: ['1', '2'], where: {a: [p, q]}, to: '{a|t}.{b*2+1}}}{''*''}'"
    )
    text += "tables: {t: {p: x, q: y, r: z}}\n"
    rules = remapkit.loads(text)
    (rule,) = read_rules(yaml.safe_load(text)).rules
    for key in ("{x[0].p.1", "{x[0].q.2", "{x[0].p.0", "{x[0].r.1", "x[0].p.1"):
        assert [made.target for made in rule.make(key)] == [match.target for match in rules.match(key)]
    assert [made.target for made in rule.make("{x[0].p.2")] == ["x.5}*"]


# ------------------------------------------------------------------------------------------------ planted faults


@pytest.fixture(scope="module")
def known() -> list[tuple[Truths, Proof]]:
    """Random files with what is true of them, and proofs that agree with it."""
    found = []
    for _, data in files(50_000, 160):
        try:
            with without_fixes():
                proof = remapkit.loads(write_text(data)).prove(header=data.get("header"))
        except InvalidRules:
            continue
        truths = Truths(data, 3_000)
        if not disagreements(truths, proof):
            found.append((truths, proof))
    return found


def without_first(proof: Proof) -> Proof:
    """Leave out a witness and its finding."""
    if len(proof.witnesses) < 2:
        return proof
    keys = list(proof.witnesses[0].keys)
    kept = [each for each in proof.findings if (each.values or {}).get("keys") != keys]
    return replace(proof, witnesses=proof.witnesses[1:], findings=tuple(kept))


def with_keys(proof: Proof, change: Callable[[str], str]) -> Proof:
    """Change the last key of each witness, in its finding too."""
    changed = {each.keys: (*each.keys[:-1], *map(change, each.keys[-1:])) for each in proof.witnesses}
    findings = [
        replace(each, values={**each.values, "keys": list(changed[tuple(each.values["keys"])])})
        if each.values and each.values.get("keys") and tuple(each.values["keys"]) in changed
        else each
        for each in proof.findings
    ]
    witnesses = tuple(replace(each, keys=changed[each.keys]) for each in proof.witnesses)
    return replace(proof, witnesses=witnesses, findings=tuple(findings))


def with_level(level: Level) -> Callable[[Proof], Proof]:
    return lambda proof: replace(proof, level=level, witnesses=(), findings=())


def admitted(proof: Proof) -> Proof:
    return replace(proof, witnesses=tuple(replace(each, admitted=not each.admitted) for each in proof.witnesses))


def of_targets(proof: Proof) -> Proof:
    return replace(proof, witnesses=tuple(replace(each, targets=("?", "?")) for each in proof.witnesses))


PLANTED: dict[str, tuple[Callable[[Proof], Proof], str]] = {
    "all is proven": (with_level(Level.ALL), "level"),
    "all is proven for the domain": (with_level(Level.DOMAIN), "level"),
    "refuted without a reason": (with_level(Level.REFUTED), "level"),
    "a weaker level without a reason": (with_level(Level.KEYS), "level"),
    "undecided without a question": (with_level(Level.UNDECIDED), "level"),
    "a refutation is called admitted": (lambda proof: replace(proof, level=Level.KEYS), "level"),
    "a longer key": (lambda proof: with_keys(proof, lambda key: f"{key}a"), "witness"),
    "another key": (lambda proof: with_keys(proof, lambda key: f"!{key[1:]}"), "witness"),
    "other targets": (of_targets, "witness"),
    "admitted or not": (admitted, "witness"),
    "a witness that nothing names": (lambda proof: replace(proof, findings=()), "unnamed"),
    "a fault that is left out": (without_first, "missed"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_noticed(name: str, known: list[tuple[Truths, Proof]]) -> None:
    plant, kind = PLANTED[name]
    found = [each for truths, proof in known for each in disagreements(truths, plant(proof))]
    assert any(each.startswith(f"{kind}:") for each in found)


def test_a_witness_that_is_not_the_smallest_is_noticed() -> None:
    data = yaml.safe_load(RULE % r"match: 'a\d*', to: b")
    proof = remapkit.loads(write_text(data)).prove()
    truths = Truths(data, 6_000)
    assert disagreements(truths, proof) == []
    (finding,), (witness,) = proof.findings, proof.witnesses
    keys = ("a", "a00")
    wrong = replace(
        proof,
        witnesses=(replace(witness, keys=keys),),
        findings=(replace(finding, values={**finding.values, "keys": list(keys)}),),
    )
    assert disagreements(truths, wrong) == ["larger: within of size 4, but within r ('a', 'a0') -> 'b'"]


def test_what_disagrees_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    prove = remapkit.RuleSet.prove
    monkeypatch.setattr(remapkit.RuleSet, "prove", lambda self, **given: with_level(Level.ALL)(prove(self, **given)))
    figures, found = run(0, 12)
    assert figures["wrong"] == len(found) > 0
    ((_, data),) = files(found[0][0], 1)
    small: Any = shrink(data)
    assert judge(small).label == judge(data).label
    assert len(write_text(small)) < len(write_text(data))
