"""The list of planted faults applies to the source as it is, and one fault of each folder is run."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutation.fault import ROOT, Fault
from tests.mutation.run import FAULTS, find_killer, main

FIRST = {fault.file.partition("/")[0]: fault for fault in reversed(FAULTS) if not fault.equivalent}
"""The first fault of each folder."""


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.file}: {fault.name}" for fault in FAULTS])
def test_a_fault_applies_to_the_source(fault: Fault) -> None:
    planted = fault.plant()
    compile(planted, fault.file, "exec")
    assert fault.old != fault.new and fault.claim
    assert fault.tests and all((ROOT / test).exists() for test in fault.tests)


def test_faults_are_told_apart_by_their_names() -> None:
    assert [name for name, count in Counter(f"{each.file} {each.name}" for each in FAULTS).items() if count > 1] == []
    assert len({(each.file, each.old, each.new) for each in FAULTS}) == len(FAULTS) >= 60
    assert {"patterns", "plans"} <= set(FIRST)


def test_a_fault_that_no_longer_applies_is_refused() -> None:
    for old in ("no such text", "import "):
        with pytest.raises(ValueError, match="must occur once"):
            Fault("gone", "patterns/path.py", old, "", "nothing", ()).plant()


@pytest.mark.slow
@pytest.mark.parametrize("folder", FIRST)
def test_a_fault_is_noticed(folder: str) -> None:
    assert find_killer(FIRST[folder]).killed_by.startswith("tests/")


@pytest.mark.slow
def test_a_change_that_nothing_can_notice_survives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = Fault(
        "two verbs of a docstring change places",
        "patterns/charset.py",
        "Sort and merge intervals.",
        "Merge and sort intervals.",
        "nothing",
        ("tests/language/test_small_parts.py",),
    )
    monkeypatch.setattr("tests.mutation.run.FAULTS", (fault,))
    assert main(["docstring"]) == 1
    assert "SURVIVES" in capsys.readouterr().out
