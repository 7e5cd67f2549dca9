"""Hostile rule files: refused or read in memory and time that grow with their size alone.

Everything happens in a process with limits of memory and CPU time, so generous that only growth beyond the size of a
file could meet them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks import Attack

from remapkit.cli import app as cli

HEAD = "remapkit: 1\nname: r\n"
RULE = "rules: [{id: a, path: '{rest:**}', to: 'm.{rest}'}]\n"


def rules(count: int) -> str:
    return (
        HEAD + "rules:\n" + "".join(f"- {{id: r{n}, path: 'a{n}.{{x}}', to: 'b{n}.{{x}}'}}\n" for n in range(count))
    )


def bomb() -> str:
    levels = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12))
    return HEAD + "k0: &k0 [x]\n" + levels + RULE


def matched(pattern: str) -> str:
    return HEAD + "rules: [{id: a, match: '" + pattern + "', to: 'm'}]\n"


def text(make: Callable[[], str]) -> Callable[[], bytes]:
    return lambda: make().encode()


RULE_FILES: dict[str, Attack] = {
    "an alias bomb": Attack(text(bomb), "RK003", "is a YAML anchor"),
    "a merge key": Attack(text(lambda: HEAD + "<<: {a: 1}\n" + RULE), "RK003", "merge key"),
    "a tag that makes Python objects": Attack(
        text(lambda: HEAD + "summary: !!python/object/apply:os.system [true]\n" + RULE), "RK004", "tag"
    ),
    "a rule file of 10 MB": Attack(
        text(lambda: HEAD + "# " + "x" * 10_000_000 + "\n" + RULE), "RK012", "the rule file is larger than 10 MB"
    ),
    "100,000 rules": Attack(
        text(lambda: rules(100_000)), "RK012", "the rule file holds more than 500,000 keys and values"
    ),
    "a text of a megabyte": Attack(
        text(lambda: HEAD + "summary: " + "x" * 1_000_000 + "\n" + RULE), "RK012", "100,000 characters"
    ),
    "a hundred thousand brackets": Attack(text(lambda: HEAD + "keep: " + "[" * 100_000 + "\n" + RULE), "RK0", ""),
    "a checkpoint in the place of a rule file": Attack(
        lambda: b"\x10" + bytes(7) + b'{"w":1}', "RK005", "a NUL character"
    ),
    "a repetition of repetitions": Attack(text(lambda: matched("((a{1000}){1000}){1000}")), "RK1", ""),
    "ten thousand groups": Attack(
        text(lambda: matched("(" * 10_000 + "a" + ")" * 10_000)), "RK119", "groups nested more than 100 deep"
    ),
    "a back-reference": Attack(text(lambda: matched(r"(?P<x>a+)(?P=x)")), "RK1", ""),
    "a look-ahead": Attack(text(lambda: matched(r"(?=a)a")), "RK1", ""),
}

READ_ALL = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
from pathlib import Path
import remapkit
from remapkit.diagnostics.errors import RemapkitError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        remapkit.load(path)
        print(json.dumps([]), flush=True)
    except RemapkitError as error:
        print(json.dumps([[one.code, one.title] for one in error.diagnostics]), flush=True)
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    folder = tmp_path_factory.mktemp("rules")
    for number, attack in enumerate(RULE_FILES.values()):
        (folder / f"{number:02}.yaml").write_bytes(attack.make())
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(RULE_FILES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", RULE_FILES)
def test_a_hostile_rule_file_is_refused_by_name(name: str, verdicts: dict[str, list[list[str]]]) -> None:
    attack, said = RULE_FILES[name], verdicts[name]
    assert any(code.startswith(attack.code) and attack.words in title for code, title in said), said[:5]
    assert len(said) <= 101
    assert all(len(title) < 500 for _, title in said)


TARGETS: dict[str, Attack] = {
    "a target that runs a program": Attack(
        text(lambda: 'target: {model: "py:subprocess:run", args: {args: [touch, pwned]}}\n'),
        "RK612",
        "the rule file names code to import and call: py:subprocess:run",
    ),
    "a target that is a function of a plugin": Attack(
        text(lambda: 'target: {model: "wan.vae:nn.init.zeros_", args: {}}\n'),
        "RK606",
        "is not a class derived from torch.nn.Module",
    ),
}


@pytest.mark.parametrize("command", ["check", "test", "lint"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_in_a_rule_file_runs_nothing(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = tmp_path / "k.json"
    keys.write_text('{"w": {"dtype": "F32", "shape": [2]}}')
    attack = TARGETS[name]
    (tmp_path / "r.yaml").write_text(HEAD + "source: {keys: k.json}\n" + attack.make().decode() + RULE)
    code = cli.main([command, "r.yaml"])
    said = "".join(capsys.readouterr())
    assert {path.name for path in tmp_path.iterdir()} == {"k.json", "r.yaml"}
    if command == "check" or (command == "test" and attack.code == "RK606"):
        assert code == 2
        assert f"error[{attack.code}]" in said
        assert attack.words in said
    else:
        assert code == 0
        assert command == "lint" or "py:subprocess:run is not imported" in said


def test_the_same_target_is_imported_where_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.json").write_text('{"weight": {"dtype": "F32", "shape": [2, 3]}}')
    target = 'target: {model: "py:torch.nn:Linear", args: {in_features: 3, out_features: 2, bias: false}}\n'
    (tmp_path / "r.yaml").write_text(HEAD + "source: {keys: k.json}\n" + target + RULE.replace("m.{rest}", "{rest}"))
    assert cli.main(["check", "r.yaml"]) == 2
    named = ["--model", "py:torch.nn:Linear", "--model-arg", "in_features=3", "--model-arg", "out_features=2"]
    assert cli.main(["check", "r.yaml", *named, "--model-arg", "bias=false"]) == 0, capsys.readouterr()


@pytest.mark.parametrize("name", TARGETS)
def test_verify_runs_no_target_of_a_rule_file_either(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    attack = TARGETS[name]
    (tmp_path / "r.yaml").write_text(HEAD + attack.make().decode() + RULE)
    source = ["--source", "py:torch.nn:Linear", "--source-arg", "in_features=3", "--source-arg", "out_features=2"]
    assert cli.main(["verify", "r.yaml", *source]) == 2
    said = capsys.readouterr().err
    assert f"error[{attack.code}]" in said and attack.words in said and "--target" in said
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml"}


BACKTRACKING = [
    r"(a|a)*b",
    r"(a*)*b",
    r"(a+)+b",
    r"(a|aa)+b",
    r"(.*)(.*)(.*)(.*)(.*)(.*)b",
    r"(?P<x>a+)a*a*a*a*a*a*b",
    r"(a?){50}a{50}b",
    r"((a|b)*c|(a|b)*d)*e",
    r"(?P<x>[a-z]+)*b",
]

MATCH = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
import remapkit
from remapkit.diagnostics.errors import RemapkitError
try:
    rules = remapkit.load(sys.argv[1])
    for length in (30, 1000, 20000):
        rules.match("a" * length)
        rules.match("a" * length + "c")
    print("matched")
except RemapkitError as error:
    print("refused", *(one.code for one in error.diagnostics))
"""


@pytest.mark.parametrize("pattern", BACKTRACKING)
def test_a_pattern_made_to_backtrack_is_refused_or_linear(pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    forget = "forget: [x], " if "?P<x>" in pattern else ""
    path.write_text(HEAD + "rules: [{id: a, match: '" + pattern + "', " + forget + "to: 'm'}]\n")
    done = subprocess.run(
        [sys.executable, "-c", MATCH, str(path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith(("matched", "refused RK1")), done.stdout


def test_most_of_them_are_read_and_matched(tmp_path: Path) -> None:
    """Otherwise the test above would say nothing about matching."""
    import remapkit

    read: list[Any] = []
    for pattern in ["(a|a)*b", "(a*)*b", "(a+)+b", "(a|aa)+b"]:
        path = tmp_path / "r.yaml"
        path.write_text(HEAD + "rules: [{id: a, match: '" + pattern + "', to: 'm'}]\n")
        read.append(remapkit.load(path).match("a" * 5000 + "b"))
    assert [len(found) for found in read] == [1, 1, 1, 1]
