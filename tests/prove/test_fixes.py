"""Every fix that a finding proposes works: the edited file is free of the finding, and no error is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fuzz import without_fixes
from rule_maker import files, write_text

import remapkit
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs import fixes as fixing
from remapkit.proofs.fixes import Edit, apply_edits, read_data, write_data
from remapkit.proofs.model import Proof
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules


def compiled(text: str) -> CompiledRules:
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{text}\n"))


def rules(*lines: str, head: str = "") -> str:
    return head + "rules:\n" + "\n".join(f"  - {{id: r{number}, {line}}}" for number, line in enumerate(lines))


def apply(given: CompiledRules, fix: dict[str, Any]) -> CompiledRules:
    edits = [Edit(tuple(each["at"]), each["value"]) for each in fix["edits"]]
    return compile_rules(read_text(write_data(apply_edits(read_data(given), edits))))


def count(proof: Proof) -> Counter[tuple[str, Severity]]:
    return Counter((each.code, each.severity) for each in proof.findings)


def check_fixes(given: CompiledRules, keys: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Apply each fix of each finding; return the codes of the findings with the words of their fixes."""
    proof = prove(given, header=keys)
    before = count(proof)
    found = []
    for finding in proof.findings:
        fixes = finding.values.get("fixes", [])
        found.append((finding.code, [fix["help"] for fix in fixes]))
        for fix in fixes:
            assert fix["help"] in finding.help
            with without_fixes():
                after = prove(apply(given, fix), header=keys)
            check_fix(after, finding, before, given.file.source.text + str(fix))
    return found


def check_fix(after: Proof, finding: Diagnostic, before: Counter[tuple[str, Severity]], text: str) -> None:
    kinds = count(after)
    assert kinds[finding.code, finding.severity] < before[finding.code, finding.severity], text
    assert all(number <= before[kind] for kind, number in kinds.items() if kind[1] is Severity.ERROR), text


FILL = "fill: zeros, shape: [1], dtype: F32"
STACK = "stack: {dim: 0, by: e}, to: b"
CASES: dict[str, tuple[str, str, list[str]]] = {
    "an index and all indices": (
        rules("path: 'a.{n:int}.{rest:**}', to: 'b.{n}.{rest}'", "path: 'a.0.w', to: c"),
        "RK201",
        ["restrict {n:int} of r0 to {n:1..999}", "remove r1: r0 matches all of its keys"],
    ),
    "a range and a part of it": (
        rules("path: 'a.{n:0..9}.{rest:**}', to: 'b.{n}.{rest}'", "path: 'a.{n:0..3}.w', to: 'c.{n}'"),
        "RK201",
        ["restrict {n:0..9} of r0 to {n:4..9}"],
    ),
    "a choice and one of its words": (
        rules(r"match: 'a\.(?P<x>u|v|w)', to: 'b.{x}'", r"match: 'a\.u', to: c"),
        "RK201",
        ["add `where: {x: [v, w]}` to r0"],
    ),
    "a guard with one word too many": (
        rules("path: 'a.{x}', where: {x: [u, v, w]}, to: 'b.{x}'", "path: 'a.u', to: c"),
        "RK201",
        ["change `where: {x: [v, w]}` in r0"],
    ),
    "a leaf too many": (
        rules("path: 'a.{x:**}', leaf: [u, v], to: 'b.{x}'", "path: 'a.{x:**}', leaf: [u], to: 'c.{x}'"),
        "RK201",
        ["add `leaf: [v]` to r0"],
    ),
    "a segment and a word": (
        rules("path: 'a.{n}.w', to: 'b.{n}'", "path: 'a.x.w', to: c"),
        "RK201",
        ["restrict {n} of r0 to {n:int}"],
    ),
    "the empty key": (
        rules("match: '(?P<a>a*)', to: 'x{a}'", "match: '(?P<b>b*)', to: 'y{b}'"),
        "RK201",
        ["in r0, write match: (?P<a>a+)"],
    ),
    "a drop within a rule": (
        rules("path: 'a.{n:0..3}', to: 'b.{n}'", head="drop: ['a.{n:2..3}']\n"),
        "RK201",
        ["restrict {n:0..3} of r0 to {n:0..1}"],
    ),
    "a keep within a keep": (
        "keep: ['b.{n:int}', 'b.{rest:**}']",
        "RK201",
        ["remove keep[0]: keep[1] gives its keys the same names"],
    ),
    "two sources": (
        rules("concat: {dim: 0, from: ['a.{i:int}', 'a.{i:int}']}, to: 'b.{i}'"),
        "RK201",
        ["remove the source a.{i:int}, and read the other one without `concat`"],
    ),
    "three sources": (
        rules("concat: {dim: 0, from: ['a.{i:int}', {path: 'b.{i:int}'}, {path: 'b.{i:0..3}'}]}, to: 'b.{i}'"),
        "RK201",
        [],
    ),
    "a table's word": (
        rules("path: 'a.{x:t}', to: 'b.{x|t}'", "path: 'a.u', to: c", head="tables: {t: {u: '1', v: '2'}}\n"),
        "RK201",
        ["add `where: {x: [v]}` to r0"],
    ),
    "an unescaped dot": (rules("match: 'a.b', to: x"), "RK202", [r"write match: a\.b"]),
    "an index that is not used": (
        rules(r"match: 'a\.\d+\.w', to: 'a.w'"),
        "RK202",
        [r"use it in `to:`: write match: a\.(?P<x>\d+)\.w and to: a.w.{x}"],
    ),
    "a capture that is forgotten": (
        rules("path: 'a.{i:int}.b.{n:int}.w', to: 'c.{i}.w', forget: [n]"),
        "RK202",
        ["use 'n' in `to:` and remove it from `forget:`: write to: c.{i}.{n}.w"],
    ),
    "captures side by side": (
        rules(r"match: '(?P<a>\w)\.(?P<b>\w*)\.(?P<c>\w*)', to: '{a}{b}{c}'"),
        "RK202",
        ["separate {a} and {b}, {b} and {c}: write to: {a}.{b}.{c}"],
    ),
    "half a quotient": (
        rules("path: 'a.{n:0..3}', to: 'b.{n//2}'"),
        "RK202",
        ["write to: b.{n//2}.{n%2}", "if n never differs within one checkpoint, add `forget: [n]`"],
    ),
    "a remainder": (
        rules("path: 'a.{n:0..7}', to: 'b.{n%4}'"),
        "RK202",
        ["write to: b.{n}", "restrict {n:0..7} of r0 to {n:0..3}"],
    ),
    "a step that is too small": (
        rules("path: 'a.{i:0..3}.{j:0..4}', to: 'b.{i*4+j}'"),
        "RK202",
        ["restrict {j:0..4} of r0 to {j:0..3}", "write to: b.{i}.{j}"],
    ),
    "many combinations": (
        rules("path: 'a.{i:0..63}.{j:0..63}', to: 'b.{i*63+j}'"),
        "RK202",
        ["restrict {j:0..63} of r0 to {j:0..62}"],
    ),
    "a lossy table": (
        rules(
            "path: 'a.{x:u|v|w}.k', to: 'b.{x|t}'",
            head="tables: {t: {lossy: true, entries: {u: '1', v: '1', w: '2'}}}\n",
        ),
        "RK202",
        ["add `where: {x: [u, w]}` to r0"],
    ),
    "an index in two spellings": (
        rules(rf"match: 'a\.(?P<e>\d+)', {STACK}"),
        "RK202",
        [r"write match: a\.(?P<e>0|[1-9][0-9]*)"],
    ),
    "an index in two spellings of a path": (
        rules(f"path: 'a.{{e:0|00|1}}.w', {STACK}"),
        "RK202",
        ["write path: a.{e:int}.w"],
    ),
    "an index in two spellings of a guard": (
        rules(f"path: 'a.{{e}}', where: {{e: ['0', '00', 1]}}, {STACK}"),
        "RK202",
        ["change `where: {e: 0..1}` in r0"],
    ),
    "two outputs of a split": (
        rules("path: 'a.{n}', split: {dim: 0, into: ['b.{n}', 'b.{n}']}"),
        "RK202",
        ["give the second output its own target: b.{n}.2"],
    ),
    "two outputs of a copy": (
        rules("path: 'a.{n}', copy: ['b.{n}', {to: 'b.{n}'}]"),
        "RK202",
        ["give the second output its own target: b.{n}.2"],
    ),
    "two rules with one target": (
        rules("path: 'a.{n}', to: 'c.{n}'", "path: 'b.{n:int}', to: 'c.{n}'"),
        "RK203",
        ["in r1, write to: b.c.{n}", "in r0, write to: a.c.{n}"],
    ),
    "two ranges with one target": (
        rules("path: 'a.{n:0..3}', to: 'c.{n}'", "path: 'b', to: c.3"),
        "RK203",
        ["restrict {n:0..3} of r0 to {n:0..2}"],
    ),
    "a target that is kept": (
        rules("path: 'a.{rest:**}', to: 'b.{rest}'", head="keep: ['b.{n:int}']\n"),
        "RK203",
        ["in r0, write to: a.b.{rest}"],
    ),
    "an index that unstack makes": (
        rules("path: a, unstack: {dim: 0, by: e}, to: 'b.{e}'", "path: 'c.{n:int}', to: 'b.{n}'"),
        "RK203",
        ["in r1, write to: c.b.{n}", "in r0, write to: a.b.{e}"],
    ),
    "where a capture ends": (
        rules(r"match: '(?P<a>.+)\.(?P<b>[^.]+)x(?P<c>[^.]*)', to: '{c}.{a}.{b}'"),
        "RK204",
        [r"write match: (?P<a>.+)\.(?P<b>[^.x]+)x(?P<c>[^.]*)"],
    ),
    "where two captures end": (
        rules(r"match: '(?P<a>.*)\.(?P<b>.*)', to: '{b}/{a}'"),
        "RK204",
        [r"write match: (?P<a>[^\n./]*)\.(?P<b>[^\n./]*)"],
    ),
    "where two captures end, and what separates them": (
        rules(r"match: '(?P<a>.*)\.(?P<b>.*)', to: '{b}{a}'"),
        "RK204",
        [r"write match: (?P<a>[^.]*)\.(?P<b>[^.]*) and to: {b}.{a}"],
    ),
    "one of two splits": (
        rules("match: '(?P<a>a|aa)(?P<b>a|aa)', to: 'x{a}b{b}a'"),
        "RK204",
        ["add `where: {a: [aa]}` to r0"],
    ),
    "a dead rule": (
        rules("path: 'a.{n}', to: 'b.{n}'", "path: 'c.{n}', to: 'd.{n}'", head="source: {domain: ['a.{n}']}\n"),
        "RK205",
        ["remove r1, or widen `source.domain`"],
    ),
    "what passes through": (
        rules("path: 'a.{n}', to: 'b.{n}'", head="unmatched: keep\n"),
        "RK206",
        ["remove `unmatched: keep`, and name under `keep:` the keys that are to pass through"],
    ),
    "what is added and passes through": (
        f"unmatched: keep\ndrop: ['a.{{r:**}}']\nadd: [{{to: x, {FILL}}}]",
        "RK206",
        ["remove `unmatched: keep`, and name under `keep:` the keys that are to pass through"],
    ),
    "a rule and a constant": (
        rules("path: 'a.{n:int}.w', to: 'c.{n}.w'", head=f"add: [{{to: c.3.w, {FILL}}}]\n"),
        "RK207",
        ["remove add[0]", "restrict {n:int} of r0 to {n:0..2}"],
    ),
    "a range and constants": (
        rules("path: 'a.{n:0..7}', to: 'c.{n+1}'", head=f"add: [{{to: 'c.{{i}}', each: {{i: 5..12}}, {FILL}}}]\n"),
        "RK207",
        ["write `each: {i: 9..12}` in add[0]", "restrict {n:0..7} of r0 to {n:0..3}"],
    ),
    "constants twice": (
        f"add: [{{to: 'c.{{i}}', each: {{i: [0, 2]}}, {FILL}}}, {{to: c.2, {FILL}}}]",
        "RK207",
        ["remove add[1]"],
    ),
    "constants that overlap": (
        f"add: [{{to: 'c.{{i}}', each: {{i: 0..4}}, {FILL}}}, {{to: 'c.{{i}}', each: {{i: 4..9}}, {FILL}}}]",
        "RK207",
        ["write `each: {i: 5..9}` in add[1]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_proposed_works(name: str) -> None:
    text, code, words = CASES[name]
    found = check_fixes(compiled(text))
    (proposed,) = [fixes for each, fixes in found if each == code]
    assert [each for each in words if each not in proposed] == []
    assert proposed, name


KNOWN: dict[str, tuple[str, list[str], str, list[str]]] = {
    "the only value": (
        rules(r"match: 'a\.\d+\.w', to: 'a.w'"),
        ["a.2.w"],
        "RK202",
        [r"write match: a\.2\.w"],
    ),
    "the only value of a capture": (
        rules("path: 'a.{i:int}.{n:int}', to: 'a.{i}', forget: [n]"),
        ["a.0.7", "a.1.7"],
        "RK202",
        ["write path: a.{i:int}.7, and remove 'n' from `forget:`"],
    ),
    "the values": (
        rules("path: 'a.{k}.{rest:**}', to: 'b.{k}.{rest}'", "path: 'a.x.{rest:**}', to: 'c.{rest}'"),
        ["a.u.w", "a.v.w", "a.x.w"],
        "RK201",
        ["add `where: {k: [u, v]}` to r0"],
    ),
    "the indices": (
        rules("path: 'a.{n}', to: 'c.{n}'", "path: 'b.{n:int}', to: 'c.{n}'"),
        ["a.1", "a.2", "b.7", "b.9"],
        "RK203",
        ["restrict {n} of r0 to {n:1..2}, and restrict {n:int} of r1 to {n:7..9}"],
    ),
    "the leaves": (
        rules(r"match: '(?:[a-z]+\.)*(?P<x>[a-z])', to: '{x}.b'", "path: 'a.{k}.w', to: 'c.{k}'"),
        ["a.b.u", "a.v", "a.1.w"],
        "RK201",
        ["add `leaf: [u, v]` to r0"],
    ),
    "the keys that pass": (
        rules("path: 'a.{n}', to: 'b.{n}'", head="unmatched: keep\n"),
        ["a.0", "c.2.v", "c.1.v"],
        "RK206",
        ["name these keys, `keep: ['c.{i:int}.v']`, and remove `unmatched`"],
    ),
    "a rule for nothing": (
        rules("path: 'a.{n}', to: 'b.{n}'", "path: 'c.{n}', to: 'd.{n}'"),
        ["a.0"],
        "RK205",
        ["remove r1, or run `remapkit explain` to see where it stops matching"],
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_proposed_from_known_keys_works(name: str) -> None:
    text, keys, code, words = KNOWN[name]
    given = compiled(text)
    (proposed,) = [fixes for each, fixes in check_fixes(given, keys) if each == code]
    assert [each for each in words if each not in proposed] == []


def test_random_files_are_fixed_as_proposed() -> None:
    """With every feature: operations, `add`, domains, leaves, lossy tables, `keep`, `drop` and pass-through."""
    proposed = 0
    for _, data in files(910_000, 200):
        try:
            given = compile_rules(read_text(write_text(data)))
        except InvalidRules:
            continue
        proposed += sum(len(fixes) for _, fixes in check_fixes(given))
    assert proposed > 100


def test_a_known_key_stays_matched_and_a_test_stays_true() -> None:
    """`{n:int}` would separate the rules, but the file's own test says that x is such a name."""
    lines = ("path: 'a.{n}.w', to: 'b.{n}'", "path: 'a.x.w', to: c")
    (free,) = prove(compiled(rules(*lines))).findings
    assert "restrict {n} of r0 to {n:int}" in free.help
    (bound,) = prove(compiled(rules(*lines, head="tests: {a.y.w: b.y}\n"))).findings
    assert "restrict {n} of r0 to {n:int}" not in bound.help and bound.help


def test_a_fix_that_does_not_work_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: every candidate is proposed."""
    monkeypatch.setattr(fixing.FixTester, "works", lambda *_: True)
    with pytest.raises((AssertionError, InvalidRules)):
        for text, _, _ in CASES.values():
            check_fixes(compiled(text))


def test_only_so_many_files_are_tried() -> None:
    """A file with many faults costs a bounded number of further proofs."""
    tried = 0

    def count_tries(self: fixing.FixTester, *given: Any, **named: Any) -> Any:
        nonlocal tried
        tried += 1
        return original(self, *given, **named)

    original = fixing.FixTester.count_findings
    lines = [line for n in range(40) for line in (f"path: 'a{n}.{{x}}', to: 'b{n}.{{x}}'", f"path: a{n}.q, to: c{n}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixing.FixTester, "count_findings", count_tries)
        proof = prove(compiled(rules(*lines)))
    assert len(proof.findings) == 40 and all(each.help for each in proof.findings)
    assert 0 < tried <= fixing.MAX_TRIES + 1


def test_the_messages_of_the_page_are_real() -> None:
    page = (Path(remapkit.__file__).parent.parent / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    proofs = page[page.index("### RK200") : page.index("### RK210")]
    shown = [line for line in proofs.splitlines() if line.startswith(("error[", "      = "))]
    assert len(shown) > 8
    texts = [(text, []) for text, *_ in CASES.values()] + [(text, keys) for text, keys, *_ in KNOWN.values()]
    texts.append((rules("match: '(?P<a>(?:xy)*)(?P<b>(?:xy)*)', to: '{b}{a}'"), []))
    findings = [each for text, keys in texts for each in prove(compiled(text), header=keys).findings]
    real = {line for each in findings for line in str(each).splitlines()}
    assert [line for line in shown if line not in real] == []


def test_a_capture_of_a_lossy_table_may_be_in_arithmetic_too() -> None:
    text = (
        "rules:\n  - {id: r, path: '{a:**}.{b:0..2}.{c:t}', tie: ['{a}{b+c}{c|u}', '{a}{c*2+b}']}\n"
        "tables: {t: {'0': '', '1': '0'}, u: {lossy: true, entries: {'0': '0', '1': '0'}}}\n"
    )
    assert check_fixes(compiled(text))
