"""A test that skips for a reason nobody has allowed fails the run in CI, with one process and with several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PASSES = "def test_that_passes():\n    pass\n"
MARKED = "import pytest\n\n@pytest.mark.skipif(True, reason={!r})\ndef test_it():\n    pass\n"
FIXTURE = "@pytest.fixture\ndef small():\n    pytest.skip('too hard')\n\ndef test_it(small):\n    pass\n"
KNOWN = {"wan/test_wan_golden.py": MARKED.format("no CUDA device"), "test_a.py": PASSES}
UNKNOWN = {
    "test_mark.py": MARKED.format("too hard"),
    "test_call.py": "import pytest\n\ndef test_it():\n    pytest.skip('too hard')\n",
    "test_xfail.py": "import pytest\n\n@pytest.mark.xfail(reason='too hard')\ndef test_it():\n    assert 0\n",
    "test_fixture.py": f"import pytest\n\n{FIXTURE}",
    "test_module.py": f"import pytest\n\npytest.importorskip('no_such_module', reason='too hard')\n{PASSES}",
    "test_elsewhere.py": MARKED.format("no CUDA device"),
}


def run(folder: Path, files: dict[str, str], workers: str, *options: str, ci: str = "") -> tuple[int, str]:
    tests = folder / "tests"
    tests.mkdir()
    for name in ("conftest.py", "strict_skips.py"):
        shutil.copy(TESTS / name, tests / name)
    for name, text in files.items():
        (tests / name).parent.mkdir(exist_ok=True)
        (tests / name).write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "xdist",
        "-n",
        workers,
        *options,
        "tests",
    ]
    environment |= {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def named(said: str) -> dict[str, str]:
    """The files named below the heading, each once, with the reason that is said."""
    lines = said.partition("tests/strict_skips.py does not allow")[2].splitlines()
    found = [line.removeprefix("tests/").split(": ", 1) for line in lines if line.startswith("tests/")]
    assert len(found) == len({test for test, _ in found})
    return {test.partition("::")[0]: reason for test, reason in found}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unknown_skip_fails_the_run(workers: str, tmp_path: Path) -> None:
    """A mark, a call, an xfail, a fixture, a whole module, and a reason that is allowed for other tests alone."""
    code, said = run(tmp_path, UNKNOWN | KNOWN, workers, ci="true")
    assert code == 1, said
    reasons = {"test_elsewhere.py": "no CUDA device", "test_xfail.py": "xfail: too hard"}
    assert named(said) == {name: reasons.get(name, "too hard") for name in UNKNOWN}, said


def test_a_known_skip_does_not(tmp_path: Path) -> None:
    code, said = run(tmp_path, KNOWN, "0", "--strict-skips")
    assert code == 0 and "1 passed, 1 skipped" in said, said


def test_outside_ci_a_skip_is_a_skip(tmp_path: Path) -> None:
    code, said = run(tmp_path, UNKNOWN | KNOWN, "0")
    assert code == 0 and named(said) == {}, said
