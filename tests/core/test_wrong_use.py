"""Found by people who tried: names nobody can read back, models that exit, pipes that close, words that mislead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, InvalidRules, UsageError
from remapkit.rulefile.read import examine_text, read_text

ROOT = Path(remapkit.__file__).parent.parent
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"


def rules(text: str) -> RuleSet:
    return compile_rules(read_text("remapkit: 1\nname: t\n" + text))


def run(
    *arguments: object, cwd: Path, stdout: int = subprocess.PIPE, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as installed: the current folder is not on `sys.path`."""
    start = f"import sys; sys.path = [p for p in sys.path if p]; sys.path.insert(0, {str(ROOT)!r}); {code}"
    start += "from remapkit.cli.app import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("to", [r"'y.\1'", '"b\\nw"', '"b\\0w"'])
def test_a_template_that_makes_no_key_is_refused(to: str) -> None:
    with pytest.raises(InvalidRules, match="RK158"):
        rules(f"rules: [{{id: r, path: a, to: {to}}}]")


def test_a_number_in_braces_is_no_group() -> None:
    with pytest.raises(InvalidRules, match="RK159"):
        rules(r"rules: [{id: r, match: 'x\.(\d+)', to: 'y.{1}'}]")


@pytest.mark.parametrize("name", ["__metadata__", "a\nb", "a\u2028b"])
def test_a_name_that_no_file_can_hold_is_not_written(name: str) -> None:
    plan = rules("unmatched: keep").plan({name: torch.ones(1)})
    with pytest.raises(FailedCheck, match="RK306"):
        plan.raise_for_problems()


@pytest.mark.parametrize("wrong", [None, 3, "model.pth", torch.nn.Linear(2, 2), [("a", 1)], {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_called_so(wrong: object) -> None:
    with pytest.raises(TypeError, match="state dict"):
        rules("unmatched: keep")(wrong)  # type: ignore[arg-type]


def test_a_text_with_braces_in_braces_wants_quotes() -> None:
    (problem,) = examine_text("remapkit: 1\nname: t\nrules:\n  - {id: a, path: a.{n:int}, to: 'b.{n}'}\n").problems
    assert problem.help == ("quote it: 'a.{n:int}'",)
    assert problem.span is not None and problem.span.text == "a.{n:int}"


def test_a_colon_without_its_space_is_seen() -> None:
    problems = examine_text("remapkit: 1\nname: t\nrules:\n  - {id:a: , path: a, to: b}\n").problems
    assert any("a space follows the colon: `id: a`" in problem.help for problem in problems)


def test_wide_characters_take_two_columns() -> None:
    with pytest.raises(InvalidRules) as caught:
        rules("keep: ['🤖🤖.{n:integer}']")
    *_, line, mark, _ = str(caught.value.diagnostics[0]).splitlines()[:6]
    before = line.partition("integer")[0]
    assert mark.index("^") == len(before) + before.count("🤖")


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(0)",
        "import torch, sys\nclass A(torch.nn.Linear):\n    def __init__(self): sys.exit(0)",
        "import argparse\nargparse.ArgumentParser().parse_args(['--no-such'])",
    ],
)
def test_a_model_that_ends_the_process_is_no_success(source: str, tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text(source)
    done = run("check", "wan22_pth", "--model", "py:exits:A", cwd=tmp_path)
    assert done.returncode == 2 and "RK604" in done.stderr and "Traceback" not in done.stderr


def test_a_model_file_of_the_current_folder_is_found_and_what_it_prints_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\nprint('hello')\nclass Net(torch.nn.Linear):\n    pass\n")
    arguments = ["new", "mine", "--from", TINY, "--to", "py:mine:Net", "--model-arg", "in_features=2"]
    done = run(*arguments, "--model-arg", "out_features=3", "-o", "-", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{") and "hello" in done.stderr


def test_a_lazy_module_has_no_header() -> None:
    with pytest.raises(UsageError, match="has no shape yet"):
        remapkit.header(torch.nn.LazyLinear(3))


# ------------------------------------------------------------------------------------------------ output


def test_a_reader_that_goes_away_does_not_change_the_verdict(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    torch.save({"a.w": torch.ones(2)}, tmp_path / "other.pth")
    done = run("check", "wan22_pth", "--ckpt", "other.pth", "--target-keys", "other.pth", cwd=tmp_path, stdout=write)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_said(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("inspect", TINY, "--all", cwd=tmp_path, stdout=full.fileno())
    assert done.returncode == 2
    assert "could not be printed: No space left" in done.stderr and "Traceback" not in done.stderr


def test_without_a_stdout_the_verdict_is_the_exit_code(tmp_path: Path) -> None:
    done = run("inspect", TINY, cwd=tmp_path, code="sys.stdout = None; ")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("output", "words"), [("-", "is not a file name"), ("", "-o '' is not a file name")])
def test_apply_wants_a_file(
    output: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["apply", "wan22_pth", str(TINY), "-o", output]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("tolerance", ["-1", "nan"])
def test_a_tolerance_is_a_number_from_zero_up(tolerance: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["diff", str(TINY), str(TINY), f"--tolerance={tolerance}"])
    assert caught.value.code == 2


# ------------------------------------------------------------------------------------------------ the library


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.nn.Linear, {}), "the class Linear: build it first"),
        (("model.pth", torch.nn.Linear(2, 2)), "`model` must be a torch.nn.Module, got str"),
        ((torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), "call `.state_dict\\(\\)` on it first"),
        ((torch.nn.Linear(2, 2), None), "`ckpt` must be a path, a reader or a state dict, got NoneType"),
        ((torch.nn.Linear(2, 2), {}, 3), "`rules` must be a RuleSet, a name or a path, got int"),
    ],
)
def test_arguments_that_changed_places(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        remapkit.load_into(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"state_dict": {"weight": [1.0, 2.0]}}, "its values are of the type dict"),
        ({"weight": torch.ones(2, 2).numpy()}, "torch.from_numpy"),
    ],
)
def test_a_mapping_without_tensors_says_what_it_is(state: dict[str, object], words: str) -> None:
    for use in (lambda: remapkit.load_into(torch.nn.Linear(2, 2), state), lambda: remapkit.header(state)):
        with pytest.raises(FailedCheck, match=words):
            use()


def test_an_open_reader_has_a_header() -> None:
    with remapkit.open_checkpoint(TINY) as reader:
        assert remapkit.header(reader) == reader.header()
        assert remapkit.load("wan22_pth").plan(reader).ok


def test_a_declared_source_that_is_not_there_is_found_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("remapkit: 1\nname: mine\nsource: {keys: keys/none.json}\nkeep: ['{a:**}']\n")
    assert main(["lint", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"{path}:3:16" in shown and "the declared source: no such file" in shown


def test_a_rule_file_known_by_a_link_finds_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(ROOT / "rules" / "wan22_pth.yaml")
    assert main(["test", str(tmp_path / "link.yaml")]) == 0


def test_every_name_that_leads_nowhere_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "wan22_pth", "nowhere.yaml", "no_pack", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error[") == 3


def test_a_broken_pattern_does_not_hide_its_template() -> None:
    with pytest.raises(InvalidRules) as caught:
        rules("rules: [{id: r, match: '^a', to: 'b.{'}]")
    assert {problem.code for problem in caught.value.diagnostics} == {"RK114", "RK150"}


def test_diff_names_its_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}}
    torch.save(both, tmp_path / "both.pth")
    one, other = str(TINY), str(tmp_path / "both.pth")
    assert main(["diff", one, other]) == 2
    assert "--root-b model" in capsys.readouterr().err
    torch.save({"w": torch.ones(1).expand(1 << 30)}, tmp_path / "wide.pth")
    assert main(["diff", other, str(tmp_path / "wide.pth"), "--root-a", "model"]) == 2
    assert "--allow-expand" in capsys.readouterr().err


def test_rules_with_params_are_diffed_and_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = tmp_path / "p.yaml"
    pack.write_text(
        "remapkit: 1\nname: p\nparams: {n: {config: n}}\nsource: {keys: k.json}\nrules:\n"
        "  - {id: r, path: w, split: {dim: 0, sizes: [n, n], into: [a, b]}}\n"
    )
    (tmp_path / "k.json").write_text('{"w": {"dtype": "F32", "shape": [4]}}')
    torch.save({"w": torch.arange(4.0)}, tmp_path / "w.pth")
    torch.save({"a": torch.arange(2.0), "b": torch.arange(2.0, 4.0)}, tmp_path / "ab.pth")
    arguments = ["diff", str(tmp_path / "w.pth"), str(tmp_path / "ab.pth"), "--rules-a", str(pack)]
    assert main(arguments) == 1 and "--param n=NUMBER" in capsys.readouterr().err
    assert main([*arguments, "--param", "n=2"]) == 0
    assert main(["test", str(pack), "--param", "n=2"]) == 0, capsys.readouterr()


def test_an_unstack_of_nothing_is_not_nothing() -> None:
    found = rules("rules: [{id: r, path: 'd.{i:int}', unstack: {dim: 0, by: e}, to: 'q.{i}.{e}'}]")
    header = {"d.0": remapkit.TensorSpec("F32", (2, 3)), "d.1": remapkit.TensorSpec("F32", (0, 3))}
    with pytest.raises(FailedCheck, match="nothing to unstack"):
        found.plan(header).raise_for_problems()


def test_learned_files_have_manifests_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a.w": torch.arange(2.0), "a.b": torch.arange(3.0)}, tmp_path / "a.pth")
    torch.save({"b.w": torch.arange(2.0), "b.b": torch.arange(3.0)}, tmp_path / "b.pth")
    for name in ("one", "two"):
        arguments = ["learn", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "-o", str(tmp_path / f"{name}.yaml")]
        assert main(arguments) == 0
    assert main(["test", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]) == 0, capsys.readouterr()
    assert len(list((tmp_path / "keys").iterdir())) == 4
