"""Lists the tests that may skip, and why: in CI, or with `--strict-skips`, any other skip or xfail fails the run.

A test that skips everywhere proves nothing, and nobody notices: so every reason is listed here, with its tests.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pytest


@dataclass(frozen=True)
class Allowed:
    """`reason` is a regular expression for the whole reason, `tests` are patterns for the ids of the tests."""

    reason: str
    tests: tuple[str, ...]

    def covers(self, test: str, reason: str) -> bool:
        return re.fullmatch(self.reason, reason, re.DOTALL) is not None and any(
            fnmatchcase(test, pattern) for pattern in self.tests
        )


ALLOWED = (
    Allowed("no CUDA device( on this machine)?", ("tests/wan/test_wan_*.py::*", "tests/load/test_load_upload.py::*")),
    Allowed("no second CUDA device", ("tests/wan/test_wan_graphs.py::*",)),
    Allowed("a CUDA device is here", ("tests/wan/test_wan_fast.py::*",)),
    Allowed(
        "triton is not installed: .*", ("tests/wan/test_wan_fast.py::test_the_triton_kernel_in_the_interpreter",)
    ),
    Allowed(
        "torch.compile needs a C\\+\\+ compiler on the CPU", ("tests/wan/test_wan_fast.py::test_compiled_norms",)
    ),
    Allowed("torch.compile writes vector code .*", ("tests/wan/test_wan_fast.py::test_compiled_norms",)),
    Allowed("the memory that is held is read from /proc", ("tests/language/test_nasty.py::*",)),
    Allowed("no /dev/full here", ("tests/core/test_wrong_use.py::*",)),
    Allowed("this system has no MAP_NORESERVE that is known here", ("tests/load/test_load_zero_copy.py::*",)),
    Allowed("no mkfs\\.(xfs|btrfs) here", ("tests/io/test_io_reflink.py::*",)),
    Allowed("no chromium with its driver here", ("tests/report/test_report_page.py::*",)),
    Allowed("only root can mount .*", ("tests/io/test_io_reflink.py::*", "tests/io/test_io_refused.py::*")),
    Allowed("cannot mount .*", ("tests/io/test_io_reflink.py::*", "tests/io/test_io_refused.py::*")),
)


@dataclass(eq=False)
class StrictSkips:
    """Collects skipped tests, also from the workers, and fails the run if one is not in the table."""

    allowed: tuple[Allowed, ...] = ALLOWED
    unknown: dict[tuple[str, str], None] = field(default_factory=dict)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.outcome != "skipped":
            return
        reason = _reason(report)
        if not any(each.covers(report.nodeid, reason) for each in self.allowed):
            self.unknown[report.nodeid, reason] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unknown and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.unknown:
            return
        terminalreporter.section("skipped for a reason that tests/strict_skips.py does not allow", red=True)
        for test, reason in self.unknown:
            terminalreporter.line(f"{test}: {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"xfail: {report.wasxfail}"
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def wanted(config: pytest.Config) -> bool:
    """Return whether the option or the variable of CI services is set; False in a worker, which only reports."""
    asked = config.getoption("--strict-skips") or os.environ.get("CI", "").lower() in ("1", "true", "yes")
    return bool(asked) and not hasattr(config, "workerinput")
