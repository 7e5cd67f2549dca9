"""What is proven and what is refuted: named cases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_maker import Maker, write_text

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.diagnostics.diagnostic import Severity
from remapkit.diagnostics.errors import InvalidRules
from remapkit.patterns.template import CaptureItem, TextItem
from remapkit.proofs.budget import Budget
from remapkit.proofs.checks import Questions
from remapkit.proofs.keymap import KeyMap, key_maps
from remapkit.proofs.model import Level
from remapkit.proofs.prover import prove
from remapkit.proofs.witness import Witness
from remapkit.rulefile.read import read_text

HEAD = ("tables:", "source:", "unmatched:")


def rules(*lines: str, head: str = "") -> RuleSet:
    """Rules from lines of pipeline mappings, with an `id` by number; lines of the head of the file come first."""
    head += "".join(f"{line}\n" for line in lines if line.startswith(HEAD))
    lines = tuple(line for line in lines if not line.startswith(HEAD))
    body = "".join(f"  - {{id: r{number}, {line}}}\n" for number, line in enumerate(lines))
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{head}" + (f"rules:\n{body}" if lines else "")))


def faults(found: RuleSet) -> list[tuple[str, tuple[str, ...]]]:
    return [(witness.fault, witness.keys) for witness in prove(found).witnesses]


# ------------------------------------------------------------------------------------------------ named cases

PROVEN = {
    "a swap is two plain rules": ["path: 'a.{n}', to: 'b.{n}'", "path: 'b.{n}', to: 'a.{n}'"],
    "captures that change places": [r"match: '(?P<a>[a-z]+)\.(?P<b>\d+)', to: '{b}.{a}'"],
    "a cut that does not matter": [r"match: '(?P<a>.*)\.(?P<b>.*)', to: 'x.{a}.{b}'"],
    "a cut that does not matter, beside a capture that moved": [
        r"match: '(?P<c>\d)\.(?P<a>.*)\.(?P<b>.*)', to: '{a}.{b}.{c}'"
    ],
    "a cut that does not matter, though what is between changes": [r"match: '(?P<a>x*)(?P<b>x*)', to: 'y{a}{b}'"],
    "captures of one character that change places": [r"match: '(?P<a>x*)(?P<b>x+)', to: '{b}xx{a}'"],
    "captures of one character that change places beside others": [
        r"match: '(?P<p>[^.]+)\.(?P<a>x?)(?P<b>x*)', to: '{p}.{b}x{a}'"
    ],
    "runs that write at different times and end alike": [r"match: '(?P<a>x*)(?P<b>x*)', to: '{a}xx{b}'"],
    "targets that only captures taken apart would share": [
        "path: 'a.{n:0..5}', to: 'b.{n}.{n}'",
        "path: 'c', to: 'b.0.1'",
    ],
    "arithmetic on two captures": ["path: 'a.{i:0..3}.{j:0..4}', to: 'b.{i*5+j}'"],
    "one capture as two numbers": ["path: 'a.{n:0..11}', to: 'b.{n//4}.{n%4}'"],
    "a capture used twice": ["path: 'a.{n:0..5}', to: 'b.{n}.{n}'"],
    "guards that keep rules apart": [
        "path: 'a.{x}', where: {x: [p, q]}, to: 'b.{x}'",
        "path: 'a.{x}', where: {x: [r]}, to: 'c.{x}'",
    ],
    "leaves that keep rules apart": [
        "path: 'a.{rest:**}', leaf: [weight], to: 'b.{rest}'",
        "path: 'a.{rest:**}', leaf: [bias], to: 'b.{rest}'",
    ],
    "a table that a guard narrows": [
        "tables: {t: {p: x, q: y}}",
        "path: 'a.{c:t}', leaf: [p], to: '{c|t}'",
        "path: b, to: y",
    ],
    "a capture beside a number of which it is a part": ["path: 'a.{i:0..3}.{j:0..4}', to: '{i}.{i*5+j}'"],
    "the index of a stack beside another one": ["path: 'a.{e:int}.{c:int}', stack: {dim: 0, by: e}, to: '{c}'"],
    "an index of an unstack below its count": [
        "path: a, unstack: {dim: 0, by: n, count: 3}, to: 'b.{n}'",
        "path: c, to: b.3",
    ],
    "a longer index of an unstack below its count": [
        "path: a, unstack: {dim: 0, by: n, count: 12}, to: 'b.{n}'",
        "path: c, to: b.12",
    ],
    "a loose target that is apart all the same": [
        "path: 'a.{n:0..3}', to: 'b.{n//2}.{n%2}'",
        "path: 'c.{n}', to: 'd.{n}'",
    ],
}
FAULTS = {
    "a part that two readings share": (
        [r"match: '[ab]*(?P<x>[ab])[ab]*', to: '{x}'"],
        [("cut", ("ab",))],
    ),
    "overlap": (
        ["path: 'a.{n:int}.{rest:**}', to: 'b.{n}.{rest}'", "path: 'a.0.w', to: 'c'"],
        [("ambiguous", ("a.0.w",))],
    ),
    "an unescaped dot": (
        [r"match: 'a.b', to: 'x'", r"match: 'a\.b', to: 'y'"],
        [("ambiguous", ("a.b",)), ("within", ("aab", "abb"))],
    ),
    "a greedy double": ([r"match: '(?P<a>.*)\.(?P<b>.*)', to: '{b}/{a}'"], [("cut", ("..",))]),
    "a target that can be cut in two ways": (
        [r"match: '(?P<a>\w)\.(?P<b>\w*)\.(?P<c>\w*)', to: '{a}{b}{c}'"],
        [("within", ("a.a.", "a..a"))],
    ),
    "targets of two rules": (
        ["path: 'a.{n}', to: 'c.{n}'", "path: 'b.{n:int}', to: 'c.{n}'"],
        [("across", ("a.0", "b.0"))],
    ),
    "arithmetic that loses": (["path: 'a.{n:0..3}', to: 'b.{n//2}'"], [("within", ("a.0", "a.1"))]),
    "two captures in one number, in many combinations": (
        ["path: 'a.{i:0..63}.{j:0..63}', to: 'b.{i*63+j}'"],
        [("within", ("a.0.63", "a.1.0"))],
    ),
    "two captures in one number": (
        ["path: 'a.{i:0..3}.{j:0..4}', to: 'b.{i*4+j}'"],
        [("within", ("a.0.4", "a.1.0"))],
    ),
    "a loss that is not named": ([r"match: 'a\.\d+\.w', to: 'a.w'"], [("within", ("a.0.w", "a.1.w"))]),
    "the empty key of two rules": (
        [r"match: '(?P<a>a*)', to: 'x{a}'", r"match: '(?P<b>b*)', to: 'y{b}'"],
        [("ambiguous", ("",))],
    ),
    "a class of characters that are nowhere written": (
        [r"match: '[^.]*(?P<x>[^.])[^.]*', to: '{x}'"],
        [("cut", ("ab",))],
    ),
    "the empty key": ([r"match: 'a*', to: 'x'"], [("within", ("", "a"))]),
    "a part that a key need not have": (
        ["match: 'a(?P<b>x*)c', to: 'y{b}'", "path: ac, to: z"],
        [("ambiguous", ("ac",))],
    ),
    "a cut between parts that are copied with other text": (
        [r"match: '(?P<a>.*)\.(?P<b>.*)', to: '{a}/{b}'"],
        [("cut", ("..",))],
    ),
    "a cut that shows at the end": (["match: '(?P<a>x?)x?', to: '{a}'"], [("cut", ("x",))]),
    "a cut that shows once the runs are further apart": (
        ["match: 'x*(?P<b>(?:xx)*)x?y', to: '{b}x'"],
        [("cut", ("xxy",))],
    ),
    "a cut of a capture that is written twice, after everything that is read": (
        ["match: '(?P<a>x|xx)(?P<c>x|xx)', to: 'b.{a}{a}', forget: [c]"],
        [("cut", ("xxx",))],
    ),
    "a loss that the matcher reads as an admitted one at first": (
        ["match: '(?P<n>a?)a*', to: b, forget: [n]"],
        [("within", ("a", "aa")), ("within", ("", "a"))],
    ),
    "targets that can be cut, of keys that can be": (
        [r"match: '(?P<a>x*)(?P<b>x*)(?P<c>y*)\.(?P<d>y*)w', to: '{a}xx{b}{c}{d}'"],
        [("within", ("y.w", ".yw"))],
    ),
    "an empty value of a table": (
        ["tables: {t: {a: '', b: x}}", "path: '{c:t}.{d:**}', to: '{c|t}{d}'"],
        [("within", ("a.xa", "b.a"))],
    ),
    "the smallest pair is not the first": (
        ["path: 'a.{n:5|10|40|95}', to: 'b.{n%30}.{n%30}'"],
        [("within", ("a.5", "a.95"))],
    ),
    "short keys of a table with a long value": (
        ["tables: {t: {aaaa: p, b: qqq}}", "path: '{c:t}', to: '{c|t}'", "match: '(?P<x>p|q*)', to: '{x}'"],
        [("across", ("b", "qqq"))],
    ),
    "long keys of a table with a short value": (
        ["tables: {t: {aaa: p, b: qqqq}}", "path: '{c:t}', to: '{c|t}'", "match: '(?P<x>p|q*)', to: '{x}'"],
        [("across", ("aaa", "p"))],
    ),
    "short keys that are looked up twice": (
        ["tables: {t: {aaaa: x, b: yy}}", "path: '{c:t}', to: '{c|t}{c|t}'", "match: '(?P<z>x*|y*)', to: '{z}'"],
        [("across", ("b", "yyyy"))],
    ),
    "two spellings of one index": (
        [r"match: 'a\.(?P<e>\d+)', stack: {dim: 0, by: e}, to: b"],
        [("within", ("a.0", "a.00"))],
    ),
    "two spellings of one index, beside what is forgotten": (
        [
            "match: '(?P<e>01|001|02)(?P<a>x*)(?P<b>x*)(?P<c>y|z)', stack: {dim: 0, by: e}, to: '{a}xx{b}', "
            "forget: [c]"
        ],
        [("within", ("01y", "01z")), ("within", ("01y", "001y"))],
    ),
    "a loss beside an admitted one of a table": (
        [
            "tables: {t: {lossy: true, entries: {a: x, b: x}}}",
            "path: '{c:t}.{n:0..3}', to: '{c|t}.{n//2}.{n//2}'",
        ],
        [("within", ("a.0", "a.1")), ("within", ("a.0", "b.0"))],
    ),
    "a cut beside what is forgotten": (
        ["match: '(?P<u>a*)(?P<f>x?)(?P<v>a*)', to: 'k.{u}{v}', forget: [f]"],
        [("within", ("ax", "xa")), ("within", ("", "x"))],
    ),
    "a key of a lossy table with other words than another of its value": (
        [
            "tables: {t: {lossy: true, entries: {a: '', ab: b, b: ''}}}",
            "match: '(?P<c>[^.]+)(?P<d>b*)', where: {c: t}, to: '{c|t}{d}'",
        ],
        [("within", ("ab", "bb")), ("within", ("a", "b"))],
    ),
    "a key of a lossy table that the domain treats otherwise": (
        [
            "source: {domain: ['a.x', 'b.{d}', 'c.{d}']}",
            "tables: {t: {lossy: true, entries: {a: k, b: k, c: kk}}}",
            "match: '(?P<c>[^.]+)\\.(?P<d>.*)', where: {c: t}, to: '{c|t}{d}'",
        ],
        [("within", ("b.kx", "c.x")), ("within", ("a.x", "b.x"))],
    ),
    "readings that differ in what is not used": (
        [r"match: '(?P<a>\d)(?P<b>\.+)(?P<c>x*)(?P<d>x*)', to: '{b}{a}', forget: [c, d]"],
        [("within", ("0.", "0.x"))],
    ),
    "only what is forgotten": (
        [
            r"source: {domain: [{match: 'pa?\.'}, {match: 'q\.a?'}]}",
            r"match: '(?P<f>p|q)(?P<y>a?)\.(?P<z>a?)', to: '{y}{z}', forget: [f]",
        ],
        [("within", ("p.", "q."))],
    ),
    "the smallest of several outputs": (
        ["unmatched: keep", "path: '{c:0..2}', copy: ['.b{c+9}', 'a{c}']"],
        [("open", ("0", "a0"))],
    ),
}


@pytest.mark.parametrize("name", PROVEN)
def test_proven_for_all_keys(name: str) -> None:
    proof = prove(rules(*PROVEN[name]))
    assert (proof.level, proof.findings, proof.ok) == (Level.ALL, (), True)


@pytest.mark.parametrize("name", FAULTS)
def test_refuted_with_the_smallest_witness(name: str) -> None:
    lines, expected = FAULTS[name]
    found = faults(rules(*lines))
    sizes = [(fault, sorted(map(len, keys))) for fault, keys in found]
    assert sizes == [(fault, sorted(map(len, keys))) for fault, keys in expected]


def test_an_ambiguity_says_which_rule_covers_the_other() -> None:
    (witness,) = prove(rules("path: 'a.{n}', to: 'b.{n}'", "path: 'a.{n:int}', to: 'c.{n}'")).witnesses
    assert witness.covered == (1,)
    (finding,) = prove(rules("path: 'a.{n}', to: 'b.{n}'", "path: 'a.{n:int}', to: 'c.{n}'")).findings
    assert "r0 matches every key that r1 matches" in finding.notes


def test_rules_that_go_on_together_from_the_front_and_from_the_back_are_compared() -> None:
    """Subsets grow exponentially from the front for half of these rules, and from the back for the others."""
    lines = [
        line
        for n in (9, 10, 11)
        for line in (
            rf"match: '(?P<x>[ab]*a[ab]{{{n}}})', to: 'x{n}.{{x}}'",
            rf"match: '(?P<y>[cd]{{{n}}}c[cd]*)', to: 'y{n}.{{y}}'",
        )
    ]
    pairs = [witness.key_maps for witness in prove(rules(*lines)).witnesses if witness.fault == "ambiguous"]
    assert pairs == [(0, 2), (0, 4), (1, 3), (1, 5), (2, 4), (3, 5)]


def test_a_leaf_guard_is_part_of_the_language_wherever_the_leaf_lies() -> None:
    """The leaf of `(?P<a>[^.]+)(?P<b>x+)` lies across two parts."""
    one = r"match: '(?P<a>[^.]+)(?P<b>x)', leaf: [pqx], to: '{a}.{b}'"
    assert prove(rules(one, "path: 'pqx', to: 'z'")).level is Level.REFUTED
    assert prove(rules(one, "path: 'prx', to: 'z'")).level is Level.ALL


# ------------------------------------------------------------------------------------------------ levels

PASSES = "unmatched: keep\n"


def test_with_open_pass_through_no_rename_is_proven_for_all_keys() -> None:
    proof = prove(rules("path: 'a.{n:int}', to: 'b.{n}'", head=PASSES))
    assert proof.level is Level.KEYS and proof.ok
    (finding,) = proof.findings
    assert (finding.code, finding.severity) == ("RK206", Severity.NOTE)
    assert proof.witnesses[0].keys == ("a.0", "b.0")


def test_a_domain_closes_what_passes_through() -> None:
    domain = "unmatched: keep\nsource: {domain: ['a.{n:int}', 'c.{x}']}\n"
    proof = prove(rules("path: 'a.{n:int}', to: 'b.{n}'", head=domain))
    assert (proof.level, proof.verdict, proof.findings) == (Level.DOMAIN, "proven for a domain (source.domain)", ())
    inside = "unmatched: keep\nsource: {domain: ['a.{n:int}', 'b.{x}']}\n"
    assert prove(rules("path: 'a.{n:int}', to: 'b.{n}'", head=inside)).level is Level.KEYS


def test_a_domain_takes_back_a_refutation_and_no_more() -> None:
    lines = ["path: '{a}.{n:int}', to: 'x.{a}.{n}'", "path: 'b.{m}', to: 'y.{m}'"]
    assert prove(rules(*lines)).level is Level.REFUTED
    apart = "source: {domain: ['a.{n:int}', 'b.{w:p|q}']}\n"
    assert prove(rules(*lines, head=apart)).level is Level.DOMAIN
    together = "source: {domain: ['a.{n:int}', 'b.{rest:**}']}\n"
    assert [witness.keys for witness in prove(rules(*lines, head=together)).witnesses] == [("b.0",)]


def test_guards_on_leaves_hold_within_the_domain() -> None:
    lines = ["path: '{a}.{b}', leaf: [u, w], to: 'x.{a}.{b}'", "path: 'p.{m}', leaf: [v, w], to: 'y.{m}'"]
    assert [witness.keys for witness in prove(rules(*lines)).witnesses] == [("p.w",)]
    assert prove(rules(*lines, head="source: {domain: ['q.{b}', p.u, p.v]}\n")).level is Level.DOMAIN


def test_the_beginning_of_a_key_of_the_domain_does_not_pass_through() -> None:
    line = "path: 'a.{n:int}', to: 'b.{n}'"
    for domain, level in (("b.{x}.w", Level.DOMAIN), ("b.{x}", Level.KEYS)):
        head = f"unmatched: keep\nsource: {{domain: ['a.{{n:int}}', '{domain}']}}\n"
        assert prove(rules(line, head=head)).level is level


def test_a_loss_that_shows_only_once_combinations_are_spelt_out() -> None:
    """In this domain `x` decides which `y` there may be; with `y` given, `x` is free."""
    line = r"match: '(?P<x>[ab.])(?P<y>[ab])', to: '{y}.{y}', forget: [x]"
    found = rules(line, head="source: {domain: [{match: 'a[ab]'}, {match: '\\.b'}]}\n")
    assert [sorted(witness.keys) for witness in prove(found).witnesses] == [[".b", "ab"]]


def test_the_shapes_of_known_keys_are_a_domain_with_indices_left_free() -> None:
    found = rules("path: 'a.{n:int}.w', to: 'b.{n}.w'", head=PASSES)
    assert prove(found, header=["a.0.w", "a.1.w", "c.w"]).level is Level.DOMAIN
    assert prove(found, header=["a.0.w", "b.7.w"]).level is Level.KEYS


def test_a_rule_that_no_key_of_the_domain_can_match_is_dead() -> None:
    lines = [
        "path: 'a.{n}', to: 'b.{n}'",
        "path: 'd.{n}', to: 'e.{n}'",
        "path: 'a.{n}.w', to: 'b'",
    ]
    proof = prove(rules(*lines[:2], head="source: {domain: ['a.{n}', 'b.{n}.d.{n2}']}\nunmatched: keep\n"))
    assert [(each.code, each.severity, each.values["rule"]) for each in proof.findings if each.code == "RK205"] == [
        ("RK205", Severity.WARNING, "r1")
    ]


def test_a_dead_rule_is_named_though_everything_is_proven_without_the_domain() -> None:
    lines = ["path: 'a.{n}', to: 'b.{n}'", "path: 'd.{n}', to: 'e.{n}'"]
    proof = prove(rules(*lines, head="source: {domain: ['a.{n}']}\n"))
    assert proof.level is Level.ALL
    assert [(each.code, each.values["rule"]) for each in proof.findings] == [("RK205", "r1")]


def test_a_rule_that_matches_none_of_the_known_keys_is_named() -> None:
    proof = prove(rules("path: 'a.{n}', to: 'b.{n}'", "path: 'd.{n}', to: 'e.{n}'"), header=["a.1"])
    assert [each.values["rule"] for each in proof.findings] == ["r1"]
    assert proof.level is Level.ALL


@pytest.mark.parametrize(
    ("line", "head"),
    [
        ("path: 'a.{n:int}.{m:int}', to: 'b.{n}', forget: [m]", ""),
        ("path: 'a.{s:t}', to: 'b.{s|t}'", "tables:\n  t: {lossy: true, entries: {p: x, q: x}}\n"),
    ],
)
def test_a_loss_that_the_author_admits_warns_and_lowers_the_level(line: str, head: str) -> None:
    proof = prove(rules(line, head=head))
    assert (proof.level, proof.ok, proof.blocking()) == (Level.KEYS, True, ())
    assert [(each.code, each.severity) for each in proof.findings] == [("RK202", Severity.WARNING)]


def test_admitting_one_loss_hides_no_other() -> None:
    line = r"match: '(?P<a>x*)\.(?P<b>x*)\.(?P<c>\d)', to: '{a}{b}', forget: [c]"
    proof = prove(rules(line))
    assert [(each.code, each.severity) for each in proof.findings] == [
        ("RK202", Severity.WARNING),
        ("RK202", Severity.ERROR),
    ]


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize("head", ["", "source: {domain: ['a.{x:**}']}\n"])
def test_past_the_budget_a_question_is_undecided_and_refuses(head: str) -> None:
    found = rules("path: 'a.{n:int}.{rest:**}', to: 'b.{n}.{rest}'", "path: 'a.{n}.w', to: 'c.{n}'", head=head)
    proof = prove(found, budget=60)
    assert proof.level is Level.UNDECIDED and not proof.ok and proof.undecided
    assert {each.code for each in proof.blocking()} == {"RK200"}
    assert proof.blocking(allow_undecided=True) == ()


@pytest.mark.parametrize("budget", [1_000, 10_000, 100_000, 1_000_000])
def test_steps_are_counted_whatever_a_state_costs(budget: int) -> None:
    """Subsets grow exponentially here: (a|b)*a(a|b){n} wants 2**n of them, and states dear in transitions."""
    hard = [rf"match: '(?P<x>[ab]*a[ab]{{{n}}})', to: 'x{n}.{{x}}'" for n in (14, 15)]
    counter = Budget(budget)
    Questions(key_maps(rules(*hard, head=PASSES)), counter, passes=True).run()
    assert counter.left >= -5_000


def test_a_harmless_cut_with_captures_that_change_places_is_undecided_not_refuted() -> None:
    proof = prove(rules(r"match: '(?P<a>(?:xy)*)(?P<b>(?:xy)*)', to: '{b}{a}'"), budget=2_000_000)
    assert (proof.level, proof.witnesses, proof.undecided) == (Level.UNDECIDED, (), (("r0",),))


# ------------------------------------------------------------------------------------------------ key maps


def key_map(id: str, path: str, *to: str, branch: int = 0, folded: tuple[str, ...] = ()) -> KeyMap:
    (rule,) = rules(f"path: '{path}', to: 'x', forget: [{', '.join(_names(path))}]").rules
    items = tuple(CaptureItem(word[1:-1]) if word.startswith("{") else TextItem(word) for word in to)
    return KeyMap(id, "rule", rule.span, rule.pattern, items, branch, folded)


def _names(path: str) -> list[str]:
    return [word.split(":")[0].rstrip("}") for word in path.split("{")[1:]]


def ask(*given: KeyMap) -> list[tuple[str, tuple[int, ...]]]:
    answers = Questions(given, Budget(1_000_000)).run()
    assert not answers.undecided
    return [(witness.fault, witness.key_maps) for witness in answers.witnesses]


def test_two_targets_of_one_source_are_no_ambiguity() -> None:
    split = [key_map("s", "a.{n:int}", to, "{n}") for to in ("q.", "k.")]
    assert ask(*split) == []
    other = key_map("o", "a.{m:int}", "z.", "{m}")
    assert ask(*split, other) == [("ambiguous", (0, 2))]


def test_two_sources_of_one_rule_that_overlap_are_one() -> None:
    assert ask(key_map("s", "a.{n}", "x.", "{n}"), key_map("s", "a.{n:int}", "y.", "{n}", branch=1)) == [
        ("ambiguous", (0, 1))
    ]


def test_branches_of_one_rule_share_a_target_on_purpose() -> None:
    sources = [key_map("c", f"{side}.{{n:int}}", "qkv.", "{n}", branch=number) for number, side in enumerate("qkv")]
    assert ask(*sources) == []
    assert ask(sources[0], key_map("other", "z.{n:int}", "qkv.", "{n}")) == [("across", (0, 1))]


def test_a_folded_capture_counts_as_part_of_the_target_within_its_rule() -> None:
    stack = ("x.{n:int}.{e:int}", "y.", "{n}")
    assert ask(key_map("s", *stack, folded=("e",))) == []
    assert ask(key_map("s", *stack)) == [("within", (0,))]
    # A folded capture that cannot be told from another does not save the rule.
    assert ask(key_map("s", "x.{n:int}.{e:int}.{f:int}", "y.", "{n}", folded=("e",))) == [("within", (0,))]


def test_a_folded_capture_that_the_target_has_as_well_is_one() -> None:
    """The index 12 of `1` and the index 2 of `11` both give 112, but they are two indices."""
    assert ask(key_map("s", "x.{n:int}.{e:1..12}", "y.", "{n}", "{e}", folded=("e",))) == []


def test_a_pair_that_only_captures_taken_apart_would_give_is_not_shown() -> None:
    """As if 1 and 11 gave the same: one of them twice, or both."""
    answers = Questions([key_map("s", "a.{n:int}", "{n}", "{n}")], Budget(1_000_000)).run()
    assert (answers.witnesses, answers.undecided) == ([], [("within", (0,))])


def test_to_other_rules_a_folded_target_is_the_plain_key() -> None:
    stack = key_map("s", "x.{n:int}.{e:int}", "y.", "{n}", folded=("e",))
    assert ask(stack, key_map("o", "z.{n:int}", "y.", "{n}")) == [("across", (0, 1))]
    assert ask(stack, key_map("s", "z.{n:int}.{e:int}", "y.", "{n}", folded=("e",))) == [("within", (0, 1))]
    assert ask(stack, key_map("s", "z.{n:int}.{e:int}", "y.", "{n}", branch=1, folded=("e",))) == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_proven_set_is_a_bijection_onto_its_image(data: st.DataObject) -> None:
    maker = Maker(lambda count: data.draw(st.integers(0, count - 1)))
    try:
        found = compile_rules(read_text(write_text(maker.file(plain=True))))
    except InvalidRules:
        return
    if prove(found).level is not Level.ALL:
        return
    keys = data.draw(st.lists(st.text("ab.0", max_size=6), unique=True, max_size=40))
    targets = []
    for key in keys:
        matches = found.match(key)
        assert len(matches) < 2
        targets += [match.target for match in matches if match.target is not None]
    assert len(set(targets)) == len(targets)


def test_a_witness_that_the_matcher_does_not_bear_out_is_not_shown() -> None:
    from remapkit.proofs.findings import FindingWriter

    found = rules("path: 'a.{n}', to: 'b.{n}'", "path: 'c.{n}', to: 'd.{n}'")
    wrong = [
        Witness("ambiguous", (0, 1), ("a.0",), ("b.0", "")),
        Witness("within", (0,), ("a.0", "a.1"), ("b.0", "b.0")),
        Witness("across", (0, 1), ("a.0", "c.0"), ("b.0", "b.0")),
        Witness("cut", (0,), ("a.0",), ("b.0", "b.1"), (("a.", "0"), ("a", ".0"))),
        Witness("open", (0,), ("a.0", "a.1"), ("a.1", "a.1")),
    ]
    findings, shown = FindingWriter(found, key_maps(found), ()).write_findings(wrong, [], [], "...")
    assert (shown, [each.code for each in findings]) == ((), ["RK200"] * 5)
