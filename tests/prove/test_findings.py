"""What findings say: one for many rules with one key or target, real collisions, the stage of what is undecided."""

from __future__ import annotations

import pytest
from test_fixes import FILL, compiled, rules

from remapkit.diagnostics.diagnostic import Severity, to_json
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs.finding_base import SHOWN
from remapkit.proofs.findings import FindingWriter
from remapkit.proofs.keymap import key_maps
from remapkit.proofs.model import Level
from remapkit.proofs.prover import prove
from remapkit.proofs.witness import Fault, Witness


def test_many_rules_that_match_one_key_are_one_finding() -> None:
    proof = prove(compiled(rules(*(f"path: 'a.{{x:**}}', to: 'b{n}.{{x}}'" for n in range(300)))))
    (finding,) = proof.findings
    assert finding.title == "300 rules match 'a.a'; a key may match only one rule"
    assert [label.text for label in finding.labels] == ["r0 -> b0.a", "r1 -> b1.a", "r2 -> b2.a"]
    assert "the others are r3, r4, r5 and 294 more" in finding.notes
    assert finding.values["rules"] == [f"r{n}" for n in range(300)] and finding.values["keys"] == ["a.a"]


def test_two_rules_that_match_one_key_are_named() -> None:
    (finding,) = prove(compiled(rules("path: 'a.{x}', to: 'b.{x}'", "path: a.w, to: c"))).findings
    assert finding.title == "r0 and r1 both match 'a.w'; a key may match only one rule"
    assert finding.notes == ("this is the shortest such key", "r0 matches every key that r1 matches")


def test_a_keep_among_rules_is_counted() -> None:
    text = rules("path: 'a.{x}', to: 'b.{x}'", "path: 'a.{x:u|v}', to: 'c.{x}'", head="drop: ['a.{x:u|w}']\n")
    found = [each for each in prove(compiled(text)).findings if each.values["keys"] == ["a.u"]]
    assert [each.title for each in found] == ["3 rules match 'a.u'; a key may match only one rule"]
    assert found[0].labels[2].text == "drop[0] -> dropped"


def test_sources_of_one_rule_are_one_finding() -> None:
    text = rules("concat: {dim: 0, from: ['a.{i:int}', 'a.{i:0..3}', 'a.{i:0..5}']}, to: 'b.{i}'")
    (finding,) = prove(compiled(text)).findings
    assert finding.title == "3 sources of r0 match 'a.0'; a key may match only one of them"


def test_many_rules_with_one_target_are_one_finding() -> None:
    finding, unasked = prove(compiled(rules(*(f"path: 'a{n}.{{x}}', to: 'b.{{x}}'" for n in range(300))))).findings
    assert finding.code == "RK203" and unasked.code == "RK209"
    assert finding.title == "keys of at least 51 rules map to one target, b.a"
    assert len(finding.labels) == SHOWN and len(finding.values["rules"]) == 51
    assert finding.notes == ("a0.a\na1.a\na2.a\nand 48 more\nall become b.a",)


def test_three_rules_with_one_target_are_counted_exactly() -> None:
    (finding,) = prove(compiled(rules(*(f"path: 'a{n}.{{x}}', to: 'b.{{x}}'" for n in range(3))))).findings
    assert finding.title == "keys of 3 rules map to one target, b.a"
    assert finding.notes == ("a0.a\na1.a\na2.a\nall become b.a",)


ARITHMETIC = [
    ("path: 'a.{n:0..7}.{w}', to: 'b.{n//4}.{w}'", "{n//4} of r0 is 0 for n = 0 and for n = 1", "{n//4}"),
    ("path: 'a.{n:0..7}.{w}', to: 'b.{w}.{ n % 4 }'", "{ n % 4 } of r0 is 0 for n = 0 and for n = 4", "{ n % 4 }"),
    (
        "path: 'a.{i:0..3}.{j:0..2}', to: 'b.{i*2+j}'",
        "{i*2+j} of r0 is 2 for i = 0, j = 2 and for i = 1, j = 0",
        "{i*2+j}",
    ),
    (
        "path: 'a.{i:0..3}.{j:0..2}', copy: ['c.{i}.{j}', 'b.{i//2}.{j}']",
        "{i//2} of r0 is 0 for i = 0 and for i = 1",
        "{i//2}",
    ),
]


@pytest.mark.parametrize(("body", "fact", "field"), ARITHMETIC, ids=[row[2] for row in ARITHMETIC])
def test_arithmetic_that_loses_is_named(body: str, fact: str, field: str) -> None:
    (finding,) = prove(compiled(rules(body))).findings
    assert (finding.code, finding.title) == ("RK202", f"two keys map to one target: {fact}")
    assert finding.span is not None and finding.span.text == field


@pytest.mark.parametrize("to", ["b.{i+1}{j}", "b.{i//20}{i}{j}"])
def test_arithmetic_is_not_blamed_for_a_split(to: str) -> None:
    (finding,) = prove(compiled(rules(f"path: 'a.{{i:0..11}}.{{j:0..11}}', to: '{to}'"))).findings
    assert "can be split in two ways" in finding.title


def test_a_loss_in_arithmetic_can_be_admitted() -> None:
    """Only what differs in that capture alone is: another loss beside it is still an error."""
    body = "path: 'a.{i:0..7}.{j:0..3}', to: 'b.{i//4}.%s', forget: [i]"
    proof = prove(compiled(rules(body % "{j}")))
    assert proof.level is Level.KEYS
    assert [each.severity for each in proof.findings] == [Severity.WARNING]
    proof = prove(compiled(rules(body % "{j//2}")))
    assert proof.level is Level.REFUTED
    assert "{j//2} of r0" in proof.findings[0].title


@pytest.mark.parametrize("field", ["{i+1}", "{i}.{i//4}", "{i//4}.{i+1}"])
def test_what_arithmetic_keeps_cannot_be_forgotten(field: str) -> None:
    with pytest.raises(InvalidRules, match="RK153"):
        compiled(rules(f"path: 'a.{{i:0..7}}', to: 'b.{field}', forget: [i]"))


def test_outputs_with_one_target_are_one_finding() -> None:
    text = rules("path: 'a.{x}', split: {dim: 0, into: ['b.{x}', 'b.{x}', 'b.{x}']}")
    (finding,) = prove(compiled(text)).findings
    assert (finding.code, finding.title) == ("RK202", "3 outputs of r0 have one target, b.a")


def test_rules_that_meet_one_added_target_are_one_finding() -> None:
    lines = [f"path: 'a{n}.{{i:int}}', to: 'b.{{i}}'" for n in range(3)]
    findings = prove(compiled(rules(*lines, head=f"add: [{{to: b.0, {FILL}}}]\n"))).findings
    (finding,) = [each for each in findings if each.code == "RK207"]
    assert finding.title == "keys of 3 rules map to b.0, which add[0] adds"
    assert finding.values["keys"] == ["a0.0", "a1.0", "a2.0"]
    assert finding.help == ("remove add[0]",)


@pytest.mark.parametrize(
    ("body", "title", "keys"),
    [
        # The index that unstack makes stands beside text that looks like its placeholder.
        (
            rules("path: a, unstack: {dim: 0, by: e}, to: '{{e}}.{e}'", "path: 'c.{n:int}', to: '{{e}}.{n}'"),
            "a key of r0 and a key of r1 map to one target, {e}.0",
            ["a", "c.0"],
        ),
        (
            rules("path: 'a.{x}', to: 'b.{x}'", "path: 'c.{x}', to: 'b.{x}'"),
            "a key of r0 and a key of r1 map to one target, b.a",
            ["a.a", "c.a"],
        ),
    ],
)
def test_real_collisions_are_never_blamed_on_the_matcher(body: str, title: str, keys: list[str]) -> None:
    (finding,) = prove(compiled(body)).findings
    assert (finding.title, finding.values["keys"]) == (title, keys)


def test_a_reading_among_thousands_is_replayed() -> None:
    found = compiled(rules("match: '(?P<a>x*)(?P<b>x*)', to: '{b}.{a}'"))
    key = "x" * 1000
    readings = (("x" * 500, "x" * 500), ("", key))
    targets = ("x" * 500 + "." + "x" * 500, key + ".")
    witness = Witness("cut", (0,), (key,), targets, readings)
    writer = FindingWriter(found, key_maps(found), ())
    assert writer.is_replayed(witness)
    assert not writer.is_replayed(Witness("cut", (0,), (key,), targets, (("x", "x"), ("", key))))


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        ("ambiguous", "whether r0 and r1 can match one key"),
        ("cut", "whether the target depends on how r0 splits a key into captures"),
        ("within", "whether two keys of r0 can map to one target"),
        ("across", "whether keys of r0 and r1 can map to one target"),
    ],
)
def test_what_is_undecided_names_its_stage_and_its_rules(fault: Fault, stage: str) -> None:
    found = compiled(rules("path: 'a.{x}', to: 'b.{x}'", "path: 'c.{x}', to: 'd.{x}'"))
    numbers = (0, 1) if fault in ("ambiguous", "across") else (0,)
    findings, _ = FindingWriter(found, key_maps(found), ()).write_findings([], [(fault, numbers)], [], "...")
    (finding,) = findings
    assert (finding.code, finding.title) == ("RK200", f"undecided: {stage}")
    assert len(finding.labels) == len(numbers) and len(finding.help) == 2
    assert finding.values["asked"] == fault


def test_many_undecided_questions_of_one_kind_are_one_finding() -> None:
    found = compiled(rules(*(f"path: 'a{n}.{{x}}', to: 'b{n}.{{x}}'" for n in range(40))))
    undecided: list[tuple[Fault, tuple[int, ...]]] = [("within", (n,)) for n in range(40)]
    findings, _ = FindingWriter(found, key_maps(found), ()).write_findings([], undecided, [], "...")
    (finding,) = findings
    title = "undecided for 40 questions: whether two keys of r0, r1, r2 and 37 more can map to one target"
    assert finding.title == title and finding.values["rules"] == [f"r{n}" for n in range(40)]


def test_undecided_before_any_pair_is_known() -> None:
    found = compiled(rules("path: 'a.{x}', to: 'b.{x}'"))
    (finding,), _ = FindingWriter(found, key_maps(found), ()).write_findings([], [("ambiguous", ())], [], "...")
    assert finding.title == "undecided: whether any two rules can match one key"


def test_fixes_are_data_in_json() -> None:
    (finding,) = prove(compiled(rules("path: 'a.{n:0..3}', to: 'c.{n}'", "path: 'b', to: c.3"))).findings
    first = to_json(finding)["values"]["fixes"][0]
    assert first == {
        "help": "restrict {n:0..3} of r0 to {n:0..2}",
        "edits": [{"at": ["rules", 0, "path"], "value": "a.{n:0..2}"}],
    }
