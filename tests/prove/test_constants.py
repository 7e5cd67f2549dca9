"""`add:` against the rules: proven apart for all keys, or a key that shows where they meet."""

from __future__ import annotations

import pytest

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.proofs import keymap, prover
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text


def made(rules: str, to: str, more: str = "") -> RuleSet:
    add = f"add: [{{to: '{to}', fill: zeros, shape: [1], dtype: F32}}]\n"
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{more}rules:\n{rules}\n{add}"))


def proof(rules: str, to: str, more: str = "") -> Proof:
    return prove(made(rules, to, more))


MEETING = [
    ("  - {id: r, path: 'a.{n:int}.w', to: 'c.{n}.w'}", "c.3.w", "a.3.w"),
    ("  - {id: r, path: 'a.{n:0..7}.w', to: 'c.{n+1}.w'}", "c.3.w", "a.2.w"),
    ("  - {id: r, path: 'a.{i:0..3}.{j:0..3}', to: 'c.{i*4+j}'}", "c.9", "a.2.1"),
    ("  - {id: r, path: 'a.{s:t}.w', to: 'c.{s|t}.w'}", "c.k.w", "a.q.w"),
    ("  - {id: r, path: 'a.{x}', to: '{x}.{x}', where: {x: [p, q]}}", "q.q", "a.q"),
    ("  - {id: r, path: 'x.{all:**}', to: '{all}'}", "h.0.w", "x.h.0.w"),
    (r"  - {id: r, match: '\d+\.(?P<x>\w+)', to: '{x}'}", "w", "0.w"),
    ("  - {id: r, path: 'a', unstack: {dim: 0, by: e}, to: 'c.{e}.w'}", "c.12.w", "a"),
    ("  - {id: r, path: 'a', split: {dim: 0, into: ['c.q', 'c.k']}}", "c.k", "a"),
]


@pytest.mark.parametrize(("rules", "to", "key"), MEETING)
def test_a_rule_that_may_bring_a_constant_is_shown_with_a_key(rules: str, to: str, key: str) -> None:
    table = "tables: {t: {q: k, v: w}}\n" if "|t}" in rules else ""
    found = proof(rules, to, table)
    assert found.level is Level.REFUTED
    (finding,) = [each for each in found.findings if each.code == "RK207"]
    assert finding.values["keys"] == [key] and finding.values["target"] == to
    assert made(rules, to, table).match(key), "the witness is a key of the rule"


@pytest.mark.parametrize(
    ("rules", "to"),
    [
        ("  - {id: r, path: 'a.{n:int}.w', to: 'c.{n}.w'}", "c.03.w"),
        ("  - {id: r, path: 'a.{n:0..7}.w', to: 'c.{n+1}.w'}", "c.0.w"),
        ("  - {id: r, path: 'a.{i:0..3}.{j:0..3}', to: 'c.{i*4+j}'}", "c.16"),
        ("  - {id: r, path: 'a.{x}', to: '{x}.{x}', where: {x: [p, q]}}", "p.q"),
        ("  - {id: r, path: 'a.{x}', to: '{x}', leaf: [w]}", "c"),
        ("  - {id: r, path: 'a.{n:int}.w', to: 'c.{n}.w'}", "d.3.w"),
    ],
)
def test_what_no_rule_can_bring_is_proven(rules: str, to: str) -> None:
    found = proof(rules, to)
    assert (found.level, found.findings) == (Level.ALL, ())


def test_a_keep_and_a_second_entry_count_too() -> None:
    kept = compile_rules(
        read_text(
            "remapkit: 1\nname: t\nkeep: ['h.{n:int}']\nadd:\n"
            "  - {to: 'h.5', fill: zeros, shape: [1], dtype: F32}\n"
            "  - {to: 'z.{i}', each: {i: 0..3}, fill: ones, shape: [1], dtype: F32}\n"
            "  - {to: 'z.2', fill: ones, shape: [1], dtype: F32}\n"
        )
    )
    found = prove(kept)
    assert [(each.code, each.values["target"]) for each in found.findings] == [("RK207", "z.2"), ("RK207", "h.5")]
    assert found.findings[1].values["keys"] == ["h.5"]


def test_outside_a_declared_domain_a_rule_does_not_meet_a_constant() -> None:
    rules = "  - {id: r, path: 'a.{n:int}.w', to: 'c.{n}.w'}"
    assert proof(rules, "c.3.w", "source: {domain: ['a.{n:0..2}.w']}\n").level is Level.DOMAIN
    assert proof(rules, "c.3.w", "source: {domain: ['a.{n:0..9}.w']}\n").level is Level.REFUTED


def test_one_entry_that_adds_a_target_twice_is_refuted() -> None:
    add = "add: [{to: 'x.{n|t}', each: {n: t}, fill: zeros, shape: [1], dtype: F32}]\n"
    table = "tables: {t: {lossy: true, entries: {a: p, b: p}}}\n"
    found = prove(compile_rules(read_text(f"remapkit: 1\nname: t\n{table}{add}")))
    assert found.level is Level.REFUTED
    assert [each.title for each in found.findings] == ["add[0] adds the target x.p twice"]


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = keymap.key_maps
    monkeypatch.setattr(prover, "key_maps", lambda rules: [each for each in real(rules) if each.has_source])
    rules, to, _ = MEETING[0]
    assert proof(rules, to).level is not Level.REFUTED
