"""Nasty rule files: small ones that ask for much. Steps are counted; each file is compiled and read, or refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from remapkit.api.explain import explain
from remapkit.api.ruleset import RuleSet
from remapkit.diagnostics.errors import InvalidRules
from remapkit.patterns.steps import Steps
from remapkit.rulefile.read import read_text
from remapkit.rules import compile as compiling
from remapkit.rules.compile import compile_rules

HEAD = "remapkit: 1\nname: nasty\n"


def file_of(*entries: str, more: str = "") -> str:
    return HEAD + "rules:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries) + more


def rule(pattern: str, to: str, id: str = "r", *, surface: str = "match", more: str = "") -> str:
    written = pattern.replace("'", "''")
    return f"id: {id}, {surface}: '{written}', to: '{to}'{more}"


def words(count: int) -> list[str]:
    return [f"word{number}x" for number in range(count)]


def fill(number: int, last: int) -> str:
    each = f"{{i: 0..{last}, j: 0..{last}}}"
    return f"  - {{to: 'b{number}.{{i}}.{{j}}', each: {each}, shape: [1], dtype: F32, fill: 0}}\n"


class Watched(Steps):
    """Steps that remember the counters made, and refuse to be overdrawn silently."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        Watched.made.append(self)


# ------------------------------------------------------------------------------------------ one counter for a file


def refused(text: str) -> list[str]:
    with pytest.raises(InvalidRules) as caught:
        compile_rules(read_text(text))
    return [str(each) for each in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (file_of(rule("(?:(?:a?b?){1000}){10}", "x")), "RK119", "20,000 characters with its counted repeats"),
        (
            HEAD + "keep: [a]\nadd:\n" + "".join(fill(n, 299) for n in range(9)),
            "RK012",
            "add[4] exceeds the 3,000,000",
        ),
        (
            file_of(
                *(
                    rule(f"l{n}.{{i:0..63}}.{{j:0..63}}", f"x{n}.{{i*64+j+{n}}}", f"r{n}", surface="path")
                    for n in range(300)
                )
            ),
            "RK012",
            "the most steps: r",
        ),
        (HEAD + "keep: [" + ", ".join(f"a{n}" for n in range(30_000)) + "]\n", "RK012", "entries up to here"),
        (HEAD + "keep: [a]\nparams: {p: '" + "1/3+" * 12_000 + "1'}\n", "RK161", "at most 10000 operators"),
    ],
    ids=["repeats", "add", "arithmetic", "patterns", "params"],
)
def test_what_is_too_large_is_named(text: str, code: str, says: str) -> None:
    """The message says what is too large, with numbers, where, and what would help."""
    found = [each for each in refused(text) if code in each]
    assert found and says in found[0] and "help: " in found[0] and "<string>:" in found[0], found


def test_equal_expressions_are_paid_once() -> None:
    same = [rule(f"l{n}.{{i:0..63}}.{{j:0..63}}", f"x{n}.{{i*64+j}}", f"r{n}", surface="path") for n in range(500)]
    assert len(compile_rules(read_text(file_of(*same))).rules) == 500


@pytest.mark.parametrize("limit", [100, 1000, 10_000])
def test_the_limit_holds_and_names_the_entry(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MAX_STEPS", limit)
    entries = [rule(f"a{n}.{{i:0..99}}", f"b{n}.{{i+1}}", f"r{n}", surface="path") for n in range(100)]
    (message,) = refused(file_of(*entries))
    assert f"exceeds the {limit:,} steps" in message and "the most steps: r" in message


# ------------------------------------------------------------------------------------------ small representations


@pytest.mark.parametrize("count", [40, 1000, 9000])
def test_words_cost_the_same_in_both_syntaxes(count: int) -> None:
    """An alternation of words is a tree with shared prefixes, whether it is written as `match` or as `path`."""
    listed = "|".join(words(count))
    by_match = compile_rules(read_text(file_of(rule(rf"a\.(?P<w>{listed})\.(?P<c>[^.]+)", "b.{w}.{c}"))))
    by_path = compile_rules(read_text(file_of(rule(f"a.{{w:{listed}}}.{{c}}", "b.{w}.{c}", surface="path"))))
    one, other = by_match.rules[0].pattern, by_path.rules[0].pattern
    assert one.parts[1].values == other.parts[1].values
    assert RuleSet.of(by_match).prove().verdict == RuleSet.of(by_path).prove().verdict == "proven for all keys"
    assert by_match.match("a.word7x.c")[0].target == by_path.match("a.word7x.c")[0].target == "b.word7x.c"


@pytest.mark.parametrize("later", [False, True])
def test_the_order_of_words_still_decides_how_a_key_is_split(later: bool) -> None:
    listed = [f"w{number}" for number in range(40)]
    text = "|".join(reversed(listed) if later else listed)
    (found,) = compile_rules(read_text(file_of(rule(f"(?P<w>{text})(?P<c>[0-9]*)", "{w}.{c}")))).match("w123")
    assert found.captures == ({"w": "w12", "c": "3"} if later else {"w": "w1", "c": "23"})


def test_a_guard_cannot_make_matching_explode() -> None:
    """Words of a guard are tried like keys: by `re` only where every word is read in one way."""
    messages = refused(file_of(rule(r"a\.(?P<w>(?:x|xx|x*)*y)", "b.{w}", more=", where: {w: [" + "x" * 90 + "]}")))
    assert len(messages) == 1 and "RK141" in messages[0]


def test_repeats_of_repeats_are_one_repeat() -> None:
    rules = compile_rules(read_text(file_of(rule("(?:a?){1000}", "x"))))
    assert rules.match("a" * 1000) and not rules.match("a" * 1001)
    assert explain(RuleSet.of(rules), "b")[0].stops[0][1].offset == 0


# ------------------------------------------------------------------------------------------ composed at random

ATOMS = ["a", "[ab]", r"\w", ".", "[^.]", "(?:)", r"\.", "x1", "(?:a|ab|b)", "[a-z]{2}"]
REPEATS = ["", "?", "*", "+", "{3}", "{0,9}", "{0,40}", "{1,200}", "{1000}", "{2,}"]


def random_regex(picks: random.Random, depth: int) -> str:
    kind = picks.randrange(5 if depth else 2)
    if kind < 2:
        return picks.choice(ATOMS) + (picks.choice(REPEATS) if picks.random() < 0.5 else "")
    inner = [random_regex(picks, depth - 1) for _ in range(picks.randint(1, 3))]
    if kind == 2:
        return "".join(inner)
    if kind == 3:
        more = picks.sample(words(600), picks.choice([0, 3, 50, 500]))
        return f"(?:{'|'.join([*inner, *more] if picks.random() < 0.7 else more or inner)})"
    return f"(?:{''.join(inner)}){picks.choice(REPEATS)}"


def random_rule(picks: random.Random, number: int) -> str:
    id, kind = f"r{number}", picks.randrange(4)
    if kind == 0:
        last = picks.choice([3, 63, 999, 9999, 99999])
        to = picks.choice(["x{i}.{j}", "x{i*64+j}", "{j-i}.{i//2}", "{i}"])
        return rule(f"{id}.{{i:0..{last}}}.{{j:0..{picks.choice([3, 63])}}}", to, id, surface="path")
    if kind == 1:
        listed = ", ".join(picks.sample(words(2000), picks.choice([1, 30, 1500])))
        leaf = f", leaf: [{listed}]" if picks.random() < 0.3 else ""
        guarded = picks.choice([r"[^.]+", random_regex(picks, 1)])
        return rule(rf"{id}\.(?P<w>{guarded})", "x.{w}", id, more=f", where: {{w: [{listed}]}}{leaf}")
    names = picks.choice([1, 2, 3, 40])
    text = picks.choice(["", r"\."]).join(f"(?P<c{n}>{random_regex(picks, 3)})" for n in range(names))
    return rule(text, "x." + ".".join(f"{{c{n}}}" for n in range(names)), id)


@pytest.mark.parametrize("seed", range(16))
def test_every_stage_pays(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile, match and explain: refused with a message, or done; and no counter is overdrawn."""
    picks = random.Random(seed)
    entries = [random_rule(picks, number) for number in range(picks.choice([1, 2, 10, 60]))]
    Watched.made.clear()
    for place in ("patterns.automaton", "patterns.combine", "patterns.compile", "patterns.matcher", "rules.costs"):
        monkeypatch.setattr(f"remapkit.{place}.Steps", Watched)
    try:
        rules = compile_rules(read_text(file_of(*entries)))
    except InvalidRules as error:
        assert all(each.labels and each.help for each in error.diagnostics if each.code != "RK029")
        rules = None
    if rules is not None:
        keys = ["r0.3.3", "r1.word7x", "a" * 60, "ab.x1.b", "ab" * 20 + ".word11x"]
        for explanation in explain(RuleSet.of(rules), keys):
            assert len(explanation.matches) + len(explanation.stops) == len(rules.everything)
        alone = [rules.rules[number] for number in rules.matcher.engines[1]]
        assert all(count_slow(each) <= 1000 for each in alone)
    assert Watched.made and all(0 <= steps.left <= steps.limit for steps in Watched.made)
    assert sum(steps.limit == compiling.MAX_STEPS for steps in Watched.made) == 1


def count_slow(rule: object) -> int:
    """Return the size of a pattern that `Program` matches, or 0 if `re` does."""
    from remapkit.patterns.matcher import Program, count_free_positions

    reader = rule.reader  # type: ignore[attr-defined]
    reader("a")
    return count_free_positions(reader.pattern.parts) if isinstance(reader._engine, Program) else 0


# ------------------------------------------------------------------------------------------ a last net

KNOWN = {
    "repeats of options": file_of(rule("(?:(?:a?){1000}){20}", "x")),
    "a thousand options": file_of(rule("(?:a?){1000}", "x")),
    "digits beside letters": file_of(rule(r"(?P<n>\d{3}" + "x" * 15_000 + ")", "{n}")),
    "a million added": HEAD + "keep: [a]\nadd:\n" + fill(0, 999),
    "nine million added": HEAD + "keep: [a]\nadd:\n" + "".join(fill(n, 299) for n in range(90)),
    "one key for all": file_of(*(rule("{a}.{b}", f"x{n}.{{a}}.{{b}}", f"r{n}", surface="path") for n in range(300))),
    "suffixes": file_of(*(rule(f"(?P<a>.*)name{n}", f"x{n}.{{a}}", f"r{n}") for n in range(1000))),
    "a long word": file_of(rule(r"a\.(?P<w>.*)", "b.{w}", more=", where: {w: [" + "w" * 3000 + "]}")),
    "ten thousand words": file_of(rule(r"a\.(?P<w>" + "|".join(words(9000)) + r")\.(?P<c>[^.]+)", "b.{w}.{c}")),
    "a large table": HEAD + "tables: {t: {" + ", ".join(f"k{n}: v{n}" for n in range(100_000)) + "}}\n",
    "deep groups": file_of(rule("(" * 5000 + "a" + ")" * 5000, "x")),
    "a long literal": file_of(rule("a" * 1_000_000, "x", surface="path")),
    "two large ranges": file_of(rule("{i:0..9999}.{j:0..9999}", "{i*10000+j}", surface="path")),
    "a guard that backtracks": file_of(rule(r"(?P<w>(?:x*)*y)", "{w}", more=", where: {w: [" + "x" * 60 + "]}")),
    "problems": HEAD + "rules: [" + ", ".join(f"{{id: r{n}, path: 'a*', to: 'b*'}}" for n in range(20_000)) + "]\n",
    "a chain of params": HEAD
    + "params: {"
    + ", ".join(f"p{n + 1}: 'p{n}+1'" for n in range(10_000, -1, -1))
    + ", p0: 1}\nkeep: [a]\n",
    "brackets": HEAD + "keep: " + "[" * 100_000 + "\n",
}

READ = """
import json, resource, sys
import remapkit
from remapkit.diagnostics.errors import RemapkitError
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 500_000_000,) * 2)
try:
    rules = remapkit.load(sys.argv[1])
    found = remapkit.explain(rules, ["a.word7x.c", "a" * 900, "123" + "x" * 9])
    print(json.dumps(["done", len(found)]))
except RemapkitError as error:
    print(json.dumps(["refused", [one.code for one in error.diagnostics]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory that is held is read from /proc")
@pytest.mark.parametrize("name", KNOWN)
def test_known_inputs_take_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(KNOWN[name])
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome, detail = json.loads(done.stdout)
    assert outcome == "done" or all(code.startswith("RK") for code in detail)
