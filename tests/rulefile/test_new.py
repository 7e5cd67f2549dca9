"""Rule files begun from headers: they lint, change nothing, and their candidates are one edit from being rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring.new import new_rule_file
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.source import Source
from remapkit.rulefile.read import read_text
from remapkit.rulefile.yaml.compose import compose
from remapkit.rulefile.yaml.emit import emit_flow, emit_scalar, quote_text
from remapkit.rulefile.yaml.scalars import classify_scalar
from remapkit.rulefile.yaml.values import to_plain_value
from remapkit.rules.selftest import run_tests
from remapkit.tensors.spec import StateDictSpec, TensorSpec

KEYS = Path(remapkit.__file__).parent.parent / "rules" / "keys"
ODD = [
    "it's",
    "no",
    "1:30",
    "a|b",
    "{x}",
    "é",
    "-",
    "#",
    "a b",
    "*",
    "&",
    '"',
    "\\",
    "012",
    "٣",
    "~",
    "%",
    "a:",
]
NUMBERED = ["a_0", "a_1", "b_1", "a_1_w", "a_2_b", "b_1_w", "a_01", "0_1", "1_0", "_0", "0_", "a__1", "1__0", "é_1"]
words = st.sampled_from(["0", "1", "2", "3", "10", "a", "b", "weight", "bias", "", *NUMBERED, *ODD])
fqns = st.lists(words, min_size=1, max_size=4).map(".".join)
specs = st.builds(TensorSpec, st.sampled_from(["F32", "BF16"]), st.lists(st.integers(1, 3), max_size=2).map(tuple))
headers = st.dictionaries(fqns, specs, min_size=1, max_size=20).map(
    lambda tensors: StateDictSpec(tensors, name="a.pth")
)


def compiled(text: str) -> RuleSet:
    return compile_rules(read_text(text, "new.yaml"))


def check_identity(rules: RuleSet, source: StateDictSpec, target: StateDictSpec | None = None) -> None:
    """Every key is taken by one rule, and keeps its name or has one of the target's; the file's tests hold."""
    for fqn in source:
        (match,) = rules.match(fqn)
        if match.target != fqn:
            assert target is not None and match.target is not None
            assert target[match.target].shape == source[fqn].shape
    assert rules.plan(source).ok
    report = run_tests(rules)
    assert report.ok and report.total > 0
    assert not rules.warnings


@settings(max_examples=200, deadline=None)
@given(headers, st.none() | headers)
def test_a_new_file_compiles_and_changes_nothing(source: StateDictSpec, target: StateDictSpec | None) -> None:
    check_identity(compiled(new_rule_file("mine", source, target=target)), source, target)


def candidates_taken(text: str) -> str:
    """The file with every candidate out of comments, and without the `keep`s of the same keys."""
    begin, end = text.index("\nrules:\n"), text.index("\n# Passed through")
    rules = re.sub(r"^  # (- id|  (?:path|match|where|to):)", r"  \1", text[begin:end], flags=re.MULTILINE)
    head, _, rest = text[end:].partition("\nkeep:\n")
    kept, _, rest = rest.partition("\n\n")
    left = "\n".join(line for line in kept.splitlines() if line.endswith("in the target too"))
    keep = f"\nkeep:\n{left}" if left else ""
    return f"{text[:begin]}{rules}{head}{keep}\n\n{rest}"


@settings(max_examples=200, deadline=None)
@given(headers, st.none() | headers)
def test_the_candidates_are_rules_that_change_nothing_until_edited(
    source: StateDictSpec, target: StateDictSpec | None
) -> None:
    written = new_rule_file("mine", source, target=target)
    text = candidates_taken(written) if "\nkeep:\n" in written else written
    rules = compiled(text)
    check_identity(rules, source, target)
    same = {fqn for fqn in source if target is not None and fqn in target}
    assert {fqn for fqn in source if rules.match(fqn)[0].rule.kind == "keep"} == same


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_quoted_text_is_read_as_that_text(text: str) -> None:
    file = read_text(f"remapkit: 1\nname: t\nkeep: [x]\ntests:\n  ? {emit_scalar(text)}\n  : {quote_text(text)}\n")
    assert [(test.source.value, test.target and test.target.value) for test in file.tests] == [(text, text)]


texts = st.sampled_from(["no", "y", "0", "-5", "x", "a: b", "1e3", "{a}", "it's"]) | st.text(
    st.characters(exclude_categories=("Cs",))
)
scalars = (
    texts
    | st.booleans()
    | st.none()
    | st.integers(-(10**14), 10**14)
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@given(st.dictionaries(texts, values, min_size=1, max_size=3))
@example({"scale": 1e20, "add": 5e-324})
def test_data_in_one_line_is_read_as_that_data(value: dict[str, object]) -> None:
    node, problems = compose(Source("flow.yaml", emit_flow(value)))
    assert node is not None and not problems
    assert to_plain_value(node) == integers_read(value)


def integers_read(value: object) -> object:
    """The value with the texts that are whole numbers as such; keys are always text."""
    if isinstance(value, dict):
        return {key: integers_read(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [integers_read(item) for item in value]
    return int(value) if isinstance(value, str) and classify_scalar(value) == "integer" else value


def test_a_new_file_for_the_wan_vae() -> None:
    source = remapkit.header(KEYS / "wan22_vae_diffusers.json")
    target = remapkit.header(KEYS / "wan22_vae_upstream.json")
    text = new_rule_file("mine", source, "keys/mine.json", target, "wan.vae:WanVAE")
    rules = compiled(text)
    check_identity(rules, source, target)
    assert rules.file.source_keys is not None and rules.file.source_keys.value == "keys/mine.json"
    assert rules.file.target is not None and rules.file.target.model is not None
    assert rules.file.target.model.value == "wan.vae:WanVAE"
    assert text.startswith("# yaml-language-server: $schema=file:///")
    hint = "# as many target keys have these shapes: {encoder|decoder}.middle.{0,2}.residual.{0,3}.gamma"
    assert "- id: mid_block.resnets.gamma" in text and hint in text
    assert (
        "#   decoder.upsamples.{0..3}.upsamples.{0..2}.residual.{0,3}.gamma  # 24 · F32 [256..1024, 1, 1, 1]" in text
    )
    assert all(len(line) < 200 for line in text.splitlines())
    assert len(text.splitlines()) < 200


def test_a_target_of_the_same_names_leaves_nothing_to_do() -> None:
    source = remapkit.header(KEYS / "wan22_vae_upstream.json")
    text = new_rule_file("mine", source, None, source, "other.json")
    assert "- id:" not in text and "In the target, but under no name" not in text
    rules = compiled(text)
    check_identity(rules, source)
    assert rules.file.target is not None and rules.file.target.keys is not None


def test_a_key_longer_than_yaml_takes_on_one_line() -> None:
    source = StateDictSpec({"a" * 3000: TensorSpec("F32", ())}, name="a.pth")
    check_identity(compiled(new_rule_file("mine", source)), source)


@pytest.mark.parametrize(
    ("name", "tensors", "code"), [("my pack", {"a": 1}, "RK623"), ("", {"a": 1}, "RK623"), ("mine", {}, "RK624")]
)
def test_what_no_file_can_be_begun_from(name: str, tensors: dict[str, object], code: str) -> None:
    source = StateDictSpec(dict.fromkeys(tensors, TensorSpec("F32", ())), name="a.pth")
    with pytest.raises(UsageError) as caught:
        new_rule_file(name, source)
    assert [each.code for each in caught.value.diagnostics] == [code]
