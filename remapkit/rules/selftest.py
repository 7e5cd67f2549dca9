"""The tests in a rule file: source keys and the target keys expected for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span
from remapkit.rulefile.syntax import WrittenTest
from remapkit.rules.model import AMBIGUITY_HELP, CompiledRules, Match, Rule
from remapkit.rules.near_miss import find_nearest_rule


@dataclass(frozen=True, slots=True)
class TestReport:
    """The number of tests, the number that passed, and one problem per failed test."""

    __test__ = False  # otherwise pytest would collect it because of its name

    total: int
    passed: int
    problems: tuple[Diagnostic, ...]

    @property
    def ok(self) -> bool:
        """Whether every test passed."""
        return not self.problems


def run_tests(rules: CompiledRules) -> TestReport:
    """Run each test of a rule file separately; a key that no rule or more than one rule matches fails.

    >>> from remapkit.rulefile.read import read_text
    >>> from remapkit.rules.compile import compile_rules
    >>> text = "remapkit: 1\\nname: t\\nrules: [{id: r, path: 'a.{n}', to: 'b.{n}'}]\\ntests: {a.0: b.0, a.1: c.1}\\n"
    >>> report = run_tests(compile_rules(read_text(text)))
    >>> report.passed, report.total, report.problems[0].title
    (1, 2, 'a.1 becomes b.1; expected: c.1')
    """
    problems = [problem for test in rules.tests if (problem := _find_failure(rules, test)) is not None]
    return TestReport(len(rules.tests), len(rules.tests) - len(problems), tuple(problems))


def _find_failure(rules: CompiledRules, test: WrittenTest) -> Diagnostic | None:
    fqn = test.source.value
    expected = None if test.target is None else test.target.value
    found = rules.match(fqn)
    if len(found) > 1:
        return _explain_ambiguous(test, found)
    if not found and rules.unmatched == "error":
        return _explain_unmatched(rules, test)
    got = found[0].target if found else fqn if rules.unmatched == "keep" else None
    if len(targets := found[0].targets if found else ()) > 1 or test.more:
        return _check_several(test, targets, found[0].rule if found else None)
    if got == expected:
        return None
    return _explain_difference(test, got, found[0].rule if found else None, rules)


def _check_several(test: WrittenTest, got: Sequence[str], rule: Rule | None) -> Diagnostic | None:
    """Return the failure of a test whose actual or expected result is several keys."""
    expected = [text.value for text in (test.target, *test.more) if text is not None]
    if list(got) == expected:
        return None
    labels = [Label(test.source.span)]
    if rule is not None:
        labels.append(Label(_locate_template(rule), f"{rule.id} writes {len(got)}", primary=False))
    title = f"{test.source.value} becomes {', '.join(got) or 'nothing'}; expected: {', '.join(expected) or 'nothing'}"
    help = "list every target in the order of the rule: [a, b, c]"
    values = {"source": test.source.value, "expected": expected, "got": list(got), "rule": rule and rule.id}
    return Diagnostic("RK700", title, tuple(labels), (help,), values=values)


def _explain_difference(test: WrittenTest, got: str | None, rule: Rule | None, rules: CompiledRules) -> Diagnostic:
    fqn = test.source.value
    labels = [Label(_locate_difference(test, got), "expected here")]
    if rule is not None:
        labels.append(Label(_locate_template(rule), f"{rule.id} -> {got or 'dropped'}", primary=False))
    elif rules.file.unmatched_span is not None:
        labels.append(Label(rules.file.unmatched_span, "no rule matches", primary=False))
    title = f"{fqn} {_describe_outcome(got)}; expected: {_describe_expected(test)}"
    help = "correct the rule, or the test if the rule is right"
    return Diagnostic("RK700", title, tuple(labels), (help,), values=_collect_values(test, got, rule and rule.id))


def _describe_outcome(got: str | None) -> str:
    return "is dropped" if got is None else f"becomes {got}"


def _describe_expected(test: WrittenTest) -> str:
    return "dropped" if test.target is None else test.target.value


def _locate_difference(test: WrittenTest, got: str | None) -> Span:
    """Return the part of the expected key that differs from the target, or the source key if a drop is expected."""
    if test.target is None:
        return test.source.span
    expected = test.target.value
    if got is None:
        return test.target.span
    shorter = min(len(expected), len(got))
    same = next((n for n in range(shorter) if expected[n] != got[n]), shorter)
    end = next((n for n in range(shorter - same) if expected[-1 - n] != got[-1 - n]), shorter - same)
    return test.target.at(same, len(expected) - end) if len(expected) - end > same else test.target.span


def _locate_template(rule: Rule) -> Span:
    return rule.template.text.span if rule.template is not None else rule.pattern.text.span


def _explain_ambiguous(test: WrittenTest, found: Sequence[Match]) -> Diagnostic:
    labels = [Label(test.source.span)]
    labels += [
        Label(match.rule.pattern.text.span, f"{match.rule.id} -> {match.target or 'dropped'}", primary=False)
        for match in found
    ]
    ids = [match.rule.id for match in found]
    title = f"{test.source.value} is matched by {len(found)} rules: {', '.join(ids)}"
    return Diagnostic("RK701", title, tuple(labels), (AMBIGUITY_HELP,), values=_collect_values(test, None, ids))


def _explain_unmatched(rules: CompiledRules, test: WrittenTest) -> Diagnostic:
    fqn = test.source.value
    notes, labels = [], [Label(test.source.span)]
    if (nearest := find_nearest_rule(rules.everything, fqn)) is not None:
        rule, stop = nearest
        labels = [Label(test.source.at(stop.offset, max(len(fqn), stop.offset + 1)), f"{rule.id} stopped here")]
        labels.append(Label(rule.pattern.text.span, "nearest", primary=False))
        notes.append(f"{rule.id} read {fqn[: stop.offset]!r}, then {stop.reason}")
    title = f"{fqn} is matched by no rule; expected: {_describe_expected(test)}"
    help = ("write a rule for it, or correct the key; `remapkit explain` shows where every rule stops",)
    return Diagnostic("RK702", title, tuple(labels), help, tuple(notes), values=_collect_values(test, None, None))


def _collect_values(test: WrittenTest, got: str | None, rule: object) -> dict[str, object]:
    expected = None if test.target is None else test.target.value
    return {"source": test.source.value, "expected": expected, "got": got, "rule": rule}
