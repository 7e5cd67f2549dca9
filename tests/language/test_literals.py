"""Literal text: one judge for paths, templates, guards and tables, one writer, and quoted literals for odd names.

Kinds covered: wildcards, regular expressions, shell variables, quotes, spaces and signs that cannot be seen, in each
place where text stands for itself; helps that compile when they are followed; names with any characters written and
read back by `literal_text`, `new`, `learn` and `invert`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import remapkit.patterns.literals as module
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring import invert_rule, write_inverse
from remapkit.authoring import new as starting
from remapkit.authoring.learn import learn
from remapkit.authoring.new import new_rule_file
from remapkit.authoring.pair_by_value import Pairing
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules
from remapkit.patterns.literals import is_plain, literal_text
from remapkit.rulefile.read import read_text
from remapkit.rulefile.yaml.emit import quote_text
from remapkit.tensors.spec import StateDictSpec, TensorSpec, find_name_problem

SPEC = TensorSpec("F32", (2,))
ODD = [
    *"*?\\^$()[]|{}'\"`“”«» ",
    "\u00a0",
    "\u200b",
    "{{",
    "}}",
    "{'",
    "'}",
    "''",
    "é",
    "名",
    "w",
    "0",
    "-",
    "%",
]
segments = st.lists(st.sampled_from(ODD), min_size=1, max_size=5).map("".join)
names = st.lists(segments, min_size=1, max_size=3).map(".".join).filter(lambda name: find_name_problem(name) is None)


def compiled(body: str) -> RuleSet:
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{body}\n"))


def problems(body: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(InvalidRules) as caught:
        compiled(body)
    return caught.value.diagnostics


def yaml_of(help: str) -> list[str]:
    """The texts in quotes that a help shows."""
    import yaml

    shown = help.removeprefix("write ").removeprefix("for these very characters write ")
    shown = shown.partition(", and ")[0]
    return [yaml.safe_load(shown)]


# ------------------------------------------------------------------------------------------------ the judge

PATHS = [
    ("head.*", 6, "head.{rest:**}"),
    ("head.**", 6, "head.{rest:**}"),
    ("attn_*", 6, "attn_{part}"),
    ("*.weight", 1, "{part}.weight"),
    ("*", 1, "{rest:**}"),
    ("x (y)", 2, "x{' (y)'}"),
    ("l[0].w", 2, "l{'[0]'}.w"),
    ("a.[n].b", 3, "a.{n}.b"),
    ("$l.w", 1, "{l}.w"),
    ("a.${n:int}.*", 3, "a.{n:int}.{rest:**}"),
    (r"layers.(\d+).(q|k).weight$", 8, "layers.{n:int}.{part:q|k}.weight"),
    (r"^model\.layers\.\d+\..*", 1, "model.layers.{n:int}.{rest:**}"),
    ("q|k.weight", 2, "{part:q|k}.weight"),
    ("“b.w”", 1, "b.w"),
    ("'b.w'", 1, "b.w"),
    (" a.b", 1, "a.b"),
    ("a*b*c", 2, "a{'*b*'}c"),
    ("x?", 2, "x{'?'}"),
    ("a.\u200bb", 3, "a.{'\u200b'}b"),
    ("a.{l:w*|b}", 6, "a.{l:'w*'|b}"),
    ("{part}.x_*", 10, "{part}.x_{part2}"),
]


@pytest.mark.parametrize(("path", "where", "right"), PATHS, ids=[f"A30-{row[0]}" for row in PATHS])
def test_a_path_is_plain_text_and_braces(path: str, where: int, right: str) -> None:
    for place in ("keep", "drop"):
        problem, *rest = problems(f"{place}:\n  - {quote_text(path)}")
        assert {each.code for each in rest} <= {"RK130"}
        assert (problem.code, problem.labels[0].span.column) == ("RK219", 5 + where)
        assert right in problem.help[0] or quote_text(right) in problem.help[0]
        compiled(f"{place}:\n  - {quote_text(right)}")


PLACES = {
    "path": "rules: [{{id: a, path: {}, to: x}}]",
    "keep": "keep: [{}]",
    "drop": "drop: [{{path: {}, neutral: true}}]",
    "concat": "rules: [{{id: a, concat: {{dim: 0, from: [{}, b]}}, to: x}}]",
    "domain": "source: {{domain: [{}]}}\nkeep: [a]",
    "count": "require: [{{shape: {}, is: [1]}}]\nkeep: [a]",
    "template": "rules: [{{id: a, path: a, to: {}}}]",
    "split": "rules: [{{id: a, path: a, split: {{dim: 0, into: [{}, b]}}}}]",
    "copy": "rules: [{{id: a, path: a, copy: [{}, b]}}]",
    "add": "add: [{{to: {}, fill: zeros, shape: [1], dtype: F32}}]\nkeep: [a]",
    "add each": "add: [{{to: 'x{{n}}', each: {{n: [{}]}}, fill: zeros, shape: [1], dtype: F32}}]\nkeep: [a]",
    "where": "rules: [{{id: a, path: '{{n}}', where: {{n: [{}]}}, to: 'b.{{n}}'}}]",
    "leaf": "rules: [{{id: a, path: 'a.{{n}}', leaf: [{}], to: 'b.{{n}}'}}]",
    "table key": "tables: {{t: {{{}: b}}}}\nrules: [{{id: a, path: '{{n:t}}', to: 'b.{{n|t}}'}}]",
    "table value": "tables: {{t: {{b: {}}}}}\nrules: [{{id: a, path: '{{n:t}}', to: 'b.{{n|t}}'}}]",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", ["w*", r"\d+", "“w”", "a b", "x[0]", "$l", "a\u200b", "it's", "a|b", "^a", "w?"])
def test_one_judge_for_every_place(place: str, text: str) -> None:
    """And the last spelling that it shows, for these very characters, is taken in that place."""
    found = problems(PLACES[place].format(quote_text(text)))
    assert [each.code for each in found] == ["RK219"], [each.title for each in found]
    assert found[0].span is not None and found[0].span.line >= 3
    literal = next(help for help in found[0].help if help.startswith("for these very characters"))
    assert yaml_of(literal) == [literal_text(text)]
    compiled(PLACES[place].format(quote_text(literal_text(text))))


@pytest.mark.parametrize(
    ("leaf", "to"),
    [(["w*", r"\d+"], "b.w"), (["weight"], "“b.w”"), (["weight"], "b.${l}")],
    ids=["A39", "A39b", "A30"],
)
def test_wrong_leaves_and_templates(leaf: list[str], to: str) -> None:
    listed = ", ".join(map(quote_text, leaf))
    found = problems(f"rules: [{{id: a, path: 'a.{{l}}', leaf: [{listed}], to: {quote_text(to)}}}]")
    assert {each.code for each in found} == {"RK219"}
    assert len(found) == (2 if "w*" in leaf else 1)
    if "$" in to:
        assert found[0].help[0] == "write 'b.{l}'"
    if "“" in to:
        assert found[0].help[0] == "write 'b.w'"


@pytest.mark.parametrize(
    ("path", "code"),
    [("a{'b", "RK220"), ("a{''}", "RK220"), ("{'a'", "RK220"), ('"a\\tb"', "RK219"), ("\"{'a\\tb'}\"", "RK219")],
)
def test_a_broken_quoted_literal(path: str, code: str) -> None:
    written = path if path.startswith('"') else quote_text(path)
    for place in ("path", "where", "table key"):
        assert [each.code for each in problems(PLACES[place].format(written))] == [code]


def test_a_key_of_a_table_twice() -> None:
    table = "tables: {t: {a: b, \"{'a'}\": c}}\nkeep: ['{x:t}']"
    assert [each.code for each in problems(table)] == ["RK221"]


pieces = st.lists(
    st.sampled_from(
        ["a", ".", "*", "**", "$", "(", ")", "|", "[", "]", "\\d+", "\\.", "{n}", "{r:**}", " ", '"', "^"]
    ),
    min_size=1,
    max_size=7,
).map("".join)


def helps_work(path: str) -> None:
    try:
        compiled(f"keep: [{quote_text(path)}]")
    except InvalidRules as error:
        found = error.diagnostics
    else:
        return
    if [each.code for each in found] == ["RK219"]:
        helps = [help for help in found[0].help if help.startswith(("write ", "for these very"))]
        assert helps
        for help in helps:
            (right,) = yaml_of(help)
            compiled(f"keep: [{quote_text(right)}]")


@settings(max_examples=200, deadline=None)
@given(pieces)
@example("a*b*c")
def test_every_help_works_when_it_is_followed(path: str) -> None:
    helps_work(path)


def test_a_help_that_was_not_tried_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._suggest_spellings
    monkeypatch.setattr(
        module, "_suggest_spellings", lambda text, stretches, works, wild: real(text, stretches, lambda _: True, wild)
    )
    with pytest.raises(InvalidRules):
        helps_work("a*b*c")


# ------------------------------------------------------------------------------------------------ the writer


def read_back(name: str) -> None:
    """A name as path, template, choice of a guard, leaf, key and value of a table."""
    text, word = quote_text(literal_text(name)), quote_text(literal_text(name))
    rules = compiled(
        f"tables: {{t: {{{word}: x}}, u: {{x: {word}}}}}\n"
        f"rules:\n  - {{id: a, path: {text}, to: {text}}}\n"
        f"  - {{id: b, match: '1(?P<n>.+)', where: {{n: [{word}]}}, to: 'b{{n}}'}}\n"
        f"  - {{id: c, match: '2(?P<n>.+)', where: {{n: t}}, to: 'c{{n|t}}'}}\n"
        f"  - {{id: d, path: '3{{n:u}}', to: 'd{{n|u}}'}}"
    )
    says = {key: [match.target for match in rules.match(key)] for key in (name, f"1{name}", f"2{name}", "3x")}
    assert says == {name: [name], f"1{name}": [f"b{name}"], f"2{name}": ["cx"], "3x": [f"d{name}"]}


@settings(max_examples=200, deadline=None)
@given(names)
@example("{'}.'}{'a''")
def test_what_the_writer_writes_is_read_back(name: str) -> None:
    read_back(name)


def test_a_writer_that_forgets_a_quote_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choice_text", lambda word, always=False: f"'{word}'")
    with pytest.raises((InvalidRules, AssertionError)):
        read_back("it''s'")


def header(fqns: list[str], name: str) -> StateDictSpec:
    return StateDictSpec(dict.fromkeys(fqns, SPEC), name=name)


def written_files_read_back(fqns: list[str]) -> None:
    new = compile_rules(read_text(new_rule_file("t", header(fqns, "a"))))
    assert [[match.target for match in new.match(fqn)] for fqn in fqns] == [[fqn] for fqn in fqns]
    pairs = {fqn: f"new.{fqn}" for fqn in fqns}
    learned = compile_rules(
        read_text(learn("t", header(fqns, "a"), header(list(pairs.values()), "b"), Pairing(pairs, {}, (), ())).text)
    )
    assert {fqn: [match.target for match in learned.match(fqn)] for fqn in fqns} == {k: [v] for k, v in pairs.items()}
    back = learned.inverse()
    assert {v: [match.target for match in back.match(v)] for v in pairs.values()} == {
        v: [k] for k, v in pairs.items()
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(names, min_size=1, max_size=5, unique=True))
@example(["a.x[0]", "a.x*", "a.it's", "b.{n}", "b. "])
@example(["\\0{"])
@example(["0", "\\0{"])
def test_new_learn_and_invert_write_names_that_are_read_back(fqns: list[str]) -> None:
    written_files_read_back(fqns)


@pytest.mark.parametrize("writers", [(starting,), (write_inverse, invert_rule)], ids=["new", "invert"])
def test_a_writer_of_its_own_is_seen(writers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for writer in writers:
        monkeypatch.setattr(writer, "literal_text", lambda text: text.replace("{", "{{").replace("}", "}}"))
    with pytest.raises((InvalidRules, AssertionError)):
        written_files_read_back(["a.x[0].w", "b.it's"])


def test_a_reference_beside_a_quoted_literal_is_refused() -> None:
    with pytest.raises(InvalidRules, match="1 would be copied into the target literally"):
        compile_rules(read_text("remapkit: 1\nname: t\nrules:\n  - {id: a, path: 'a', to: \"b\\\\1{'*'}\"}\n"))


def test_explain_and_stops_speak_of_the_name() -> None:
    rules = compiled("rules: [{id: a, path: \"a{'[0]'}.{n:int}\", to: \"b{'(1)'}.{n}\"}]")
    assert rules.match("a[0].7")[0].target == "b(1).7"
    stop = rules.rules[0].find_stop("a(0).7")
    assert stop is not None and stop.offset == 1
    assert rules.prove().level.value == "proven for all keys"
    assert rules.inverse().match("b(1).7")[0].target == "a[0].7"


def test_regular_expressions_are_not_judged() -> None:
    rules = compiled(r"rules: [{id: a, match: 'a\[(?P<n>\d+)\] (?:x|y)*', to: 'b.{n}'}]")
    assert rules.match("a[3] xy")[0].target == "b.3"


@given(st.characters())
def test_plain_signs_are_seen_and_mean_nothing_else(sign: str) -> None:
    assert not is_plain(sign) or (sign.isprintable() and not sign.isspace() and sign not in "*?\\^$()[]|'\"`")
    if is_plain(sign) and sign not in "{}":
        assert literal_text(sign) == sign
