"""Plant one fault at a time, run the tests that must notice it, and print which test did.

    python -m tests.mutation.run                    # every fault; from the root of the checkout, about half an hour
    python -m tests.mutation.run plans/check range  # those whose file or name contains one of the words
    python -m tests.mutation.run --jobs 4 --log out # four at a time; the output of pytest for each fault in out/

Exits 1 if a fault survives that is not marked as equivalent, if one that is marked does not, or if a test fails
without any fault. The checkout is never edited: pytest runs in a process of its own, in which `plant.py` gives one
module another source. Hypothesis draws the same examples in every run, so that the table is the same too.

To add a fault, add an entry to the file that says so in its first line (`faults_*.py`); for a new folder, add a file
with such a list, and the list to `FAULTS` below. The form is described in `fault.py`:

    Fault(
        "a range without its end",                      # the name: what the programmer did; unique
        "patterns/path.py",                             # the file, below remapkit/
        "range(int(low), int(high) + 1)",               # the old text: must occur once in the file
        "range(int(low), int(high))",                   # the new text
        "0..47 includes both ends",                     # the claim that it breaks
        ("tests/language/test_path_guard_template.py",) # the tests that must notice it, the fastest first
    )

If it survives, a test is missing: write it. If nothing can notice it, say why: `equivalent="..."`. The quick tests in
`test_faults.py` check that every entry still applies to the source.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.fault import ROOT, Fault
from tests.mutation.faults_adapter_commands import FAULTS as ADAPTER_COMMANDS
from tests.mutation.faults_adapter_names import FAULTS as ADAPTER_NAMES
from tests.mutation.faults_adapters import FAULTS as ADAPTERS
from tests.mutation.faults_authoring import FAULTS as AUTHORING
from tests.mutation.faults_checks import FAULTS as CHECKS
from tests.mutation.faults_companions import FAULTS as COMPANIONS
from tests.mutation.faults_exam import FAULTS as EXAM
from tests.mutation.faults_families import FAULTS as FAMILIES
from tests.mutation.faults_hints import FAULTS as HINTS
from tests.mutation.faults_layouts import FAULTS as LAYOUTS
from tests.mutation.faults_learning import FAULTS as LEARNING
from tests.mutation.faults_matching import FAULTS as MATCHING
from tests.mutation.faults_metadata import FAULTS as METADATA
from tests.mutation.faults_numbers import FAULTS as NUMBERS
from tests.mutation.faults_ops import FAULTS as OPS
from tests.mutation.faults_outputs import FAULTS as OUTPUTS
from tests.mutation.faults_patterns import FAULTS as PATTERNS
from tests.mutation.faults_plans import FAULTS as PLANS
from tests.mutation.faults_proofs import FAULTS as PROOFS
from tests.mutation.faults_ranks import FAULTS as RANKS
from tests.mutation.faults_relations import FAULTS as RELATIONS
from tests.mutation.faults_report import FAULTS as REPORT
from tests.mutation.faults_routes import FAULTS as ROUTES
from tests.mutation.faults_sources import FAULTS as SOURCES
from tests.mutation.faults_through import FAULTS as THROUGH
from tests.mutation.faults_transducers import FAULTS as TRANSDUCERS

FAULTS: tuple[Fault, ...] = (
    *PROOFS,
    *TRANSDUCERS,
    *MATCHING,
    *METADATA,
    *PATTERNS,
    *PLANS,
    *FAMILIES,
    *HINTS,
    *LAYOUTS,
    *CHECKS,
    *COMPANIONS,
    *ADAPTER_NAMES,
    *AUTHORING,
    *RELATIONS,
    *EXAM,
    *LEARNING,
    *NUMBERS,
    *RANKS,
    *ROUTES,
    *REPORT,
    *OPS,
    *OUTPUTS,
    *SOURCES,
    *THROUGH,
    *ADAPTERS,
    *ADAPTER_COMMANDS,
)

LIMIT = 600
"""The seconds for one file of tests, after which a fault counts as noticed, because the tests do not end."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a fault: the test that failed first ("" if none did), and the seconds until then."""

    fault: Fault
    killed_by: str
    seconds: float

    @property
    def wrong(self) -> bool:
        """Whether it survives although it is not equivalent, or the reverse."""
        return bool(self.killed_by) == bool(self.fault.equivalent)


def find_killer(fault: Fault, log: Path | None = None) -> Outcome:
    """Run the tests of a fault with the fault planted, up to the first failure."""
    module = f"remapkit.{fault.file.removesuffix('.py').replace('/', '.')}"
    start, killed_by, output = time.monotonic(), "", ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "planted.py"
        source.write_text(fault.plant(), encoding="utf-8")
        for test in fault.tests:  # one by one: most faults are noticed by the first, and the others are not imported
            code, output = run_pytest([test], PLANTED_MODULE=module, PLANTED_SOURCE=str(source))
            if code not in (0, 1, 2):
                raise RuntimeError(f"{fault.name}: pytest exits with {code}\n{output}")
            failed = _FAILED.search(output)
            killed_by = "" if code == 0 else failed[1] if failed is not None else "the time limit"
            if killed_by:
                break
    if log is not None:
        log.mkdir(parents=True, exist_ok=True)
        (log / f"{fault.name.replace('/', ' ')}.txt").write_text(output, encoding="utf-8")
    return Outcome(fault, killed_by, time.monotonic() - start)


def run_pytest(tests: Sequence[str], **planted: str) -> tuple[int, str]:
    """Return the exit code and the output of pytest; 2 if it does not end within `LIMIT`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutation.plant"]
    command += ["--hypothesis-profile=mutation", "--no-header", "--tb=short", *tests]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **planted}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return 2, ""
    return done.returncode, done.stdout + done.stderr


def print_outcome(outcome: Outcome) -> None:
    seen = outcome.killed_by or (f"equivalent: {outcome.fault.equivalent}" if not outcome.wrong else "")
    seen = seen or f"SURVIVES; broken claim: {outcome.fault.claim}"
    seen += " (NOT equivalent)" if outcome.wrong and outcome.killed_by else ""
    print(f"{outcome.seconds:6.1f} s  {outcome.fault.file:28} {outcome.fault.name:58} {seen}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run", description="Run the planted faults.")
    parser.add_argument("words", nargs="*", help="only faults whose file or name contains one of these")
    parser.add_argument("--jobs", type=int, default=1, help="how many faults to run at a time")
    parser.add_argument("--log", type=Path, help="a folder for the output of pytest")
    given = parser.parse_args(arguments)
    chosen = [
        each for each in FAULTS if not given.words or any(word in f"{each.file} {each.name}" for word in given.words)
    ]
    code, output = run_pytest(sorted({test for fault in chosen for test in fault.tests}))
    if code:
        print(f"without any fault, the tests fail:\n{output}")
        return 1
    wrong = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for outcome in pool.map(lambda fault: find_killer(fault, given.log), chosen):
            print_outcome(outcome)
            wrong += [outcome] if outcome.wrong else []
    print(f"{len(chosen)} faults, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
