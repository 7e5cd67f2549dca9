"""Random rule files, proven and tried out: `python tests/prove/fuzz.py SEED COUNT [KEYS]`.

Every key up to a length is read by `key_oracle.py`, which shares no code with remapkit, and what a proof claims is
held against it: no claim may be false, every fault must be named, and every witness must be real and the smallest. At
most about KEYS strings are tried for one file (6,000 where it is not given). Prints the figures and the first files
that disagree or are undecided, made as small as possible; exits with 1 if any disagrees. Seeds are independent:
slices can run side by side.
"""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from claims import disagreements
from key_oracle import Truths
from rule_maker import files, is_plain, write_text

import remapkit
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs.fixes import FixTester
from remapkit.proofs.model import Level

KEYS = 6_000
"""The most strings that are tried for one file."""
MAX_SHOWN = 3
"""So many files of each label are printed."""


@dataclass(frozen=True)
class Judgement:
    """What came of one file: its level in words, and what is wrong. `asked` are the undecided questions."""

    level: str
    wrong: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The kind of the first disagreement, else of the undecided questions; empty if all is well."""
        return " ".join(self.wrong[0].split()[:2]) if self.wrong else ", ".join(self.asked)


def judge(data: Mapping[str, Any], keys: int = KEYS) -> Judgement:
    """Prove a file, and hold what is claimed against the truth."""
    try:
        proof = remapkit.loads(write_text(data)).prove(header=data.get("header"))
    except InvalidRules:
        return Judgement("refused")
    except Exception:
        lines = traceback.format_exc().strip().splitlines()
        return Judgement("traceback", (f"traceback: {lines[-1]} {lines[-3].strip()}",))
    asked: Sequence[str] = ()
    if proof.level is Level.UNDECIDED:
        findings = [each.values or {} for each in proof.findings if each.code == "RK200"]
        asked = sorted({f"undecided: {values.get('asked', 'added')}" for values in findings})
    return Judgement(proof.level.value, tuple(disagreements(Truths(data, keys), proof)), tuple(asked))


def run(seed: int, count: int, keys: int = KEYS) -> tuple[Counter[str], list[tuple[int, Judgement]]]:
    """Return the figures, and the seeds that disagree or are undecided."""
    figures: Counter[str] = Counter()
    found = []
    for number, data in files(seed, count):
        judged = judge(data, keys)
        kind = "renames" if is_plain(data) else "with operations"
        figures["files"] += 1
        figures[judged.level] += 1
        figures["wrong"] += bool(judged.wrong)
        if judged.level != "refused":
            figures[kind] += 1
            figures[f"{kind}, undecided"] += judged.level == Level.UNDECIDED.value
        if judged.label:
            found.append((number, judged))
    return figures, found


def without_fixes() -> AbstractContextManager[object]:
    """Within, no fix of a finding is tried: that takes most of a proof's time, and no claim depends on it."""
    return patch.object(FixTester, "works", lambda *_: False)


def main() -> int:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    keys = int(sys.argv[3]) if len(sys.argv) > 3 else KEYS
    started = time.time()
    total: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for begin in range(seed, seed + count, 500):
        figures, found = run(begin, min(500, seed + count - begin), keys)
        total.update(figures)
        for number, judged in found:
            shown[judged.label] += 1
            print(f"seed {number}: {judged.wrong[:3] or judged.label}", flush=True)
            if shown[judged.label] <= MAX_SHOWN:
                ((_, data),) = files(number, 1)
                print(write_text(shrink(data, keys)), flush=True)
        print(f"{time.time() - started:.0f} s: {dict(total)}", flush=True)
    print(dict(shown))
    return 1 if total["wrong"] else 0


# ------------------------------------------------------------------------------------------------ smaller files


def shrink(data: Mapping[str, Any], keys: int = KEYS, tries: int = 500) -> Mapping[str, Any]:
    """Return a smaller file with the same label; at most so many files are tried."""
    wanted = judge(data, keys).label
    smaller = iter(_list_smaller(data))
    while tries and (candidate := next(smaller, None)) is not None:
        tries -= 1
        if judge(candidate, keys).label == wanted:
            data = candidate
            smaller = iter(_list_smaller(data))
    return data


def _list_smaller(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the file without one of its entries, then with a piece of one of its texts left out."""
    for path, _ in _list_entries(data):
        if path[0] not in ("remapkit", "name"):
            yield _replace(data, path)
    for path, value in _list_entries(data):
        if isinstance(value, str) and path[0] not in ("name", "unmatched") and path[-1] != "id":
            for shorter in _list_shorter(value):
                yield _replace(data, path, shorter)


def _list_entries(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the place of every entry with its value, outer ones first."""
    entries = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for name, value in entries:
        yield (*path, name), value
        yield from _list_entries(value, (*path, name))


def _replace(data: Mapping[str, Any], path: tuple[Any, ...], value: str | None = None) -> Mapping[str, Any]:
    """Return a copy in which one entry is another one, or is left out."""
    whole = deepcopy(dict(data))
    at: Any = whole
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return whole


def _list_shorter(text: str) -> Iterator[str]:
    """Yield a text without one of its groups, fields, classes and characters, or with a group unwrapped."""
    for start, sign in enumerate(text):
        if sign == "(":
            end = next(
                (e for e in range(start + 1, len(text) + 1) if text[start:e].count("(") == text[start:e].count(")")),
                0,
            )
            if end:
                yield text[:start] + text[end:]
                yield text[:start] + re.sub(r"^\(\?:|^\((?!\?)", "", text[start : end - 1]) + text[end:]
        elif sign in "[{":
            end = text.find("]" if sign == "[" else "}", start) + 1
            yield text[:start] + text[end:] if end else text
        if sign not in "()?P<>:[]{}" or text[start - 1] in "*+?])}":
            width = 2 if sign == "\\" else 1
            yield text[:start] + text[start + width :]


if __name__ == "__main__":
    sys.exit(main())
