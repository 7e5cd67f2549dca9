"""Random rule sets, proven and tried out: `python tests/prove/fuzz.py SEED COUNT [MOST]`.

Every key up to a length of MOST (7 where it is not given, less where a rule has very many keys) is read by brute
force, and what the proofs say is held against it: every fault that brute force has must be named, and every witness
must be one, and the smallest. Prints the figures and the first sets that disagree; exits with 1 where any does.
`fuzz.py whole SEED COUNT [MOST]` holds the verdicts of whole rule files against `re` instead (see `whole_files.py`).
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from prove_kit import affordable, sets
from prove_oracle import asked, differences
from whole_files import differences as unlike
from whole_files import files, verdict

from remapkit.diagnostics.errors import InvalidRules


def run(seed: int, count: int, most: int = 7) -> tuple[Counter[str], list[tuple[int, list[str], str]]]:
    """The figures, and the sets that disagree."""
    figures: Counter[str] = Counter()
    wrong: list[tuple[int, list[str], str]] = []
    for number, made in sets(seed, count):
        try:
            rules = made.compiled()
        except InvalidRules:
            figures["refused when compiled"] += 1
            continue
        answers = asked(rules)
        length = affordable(made, most)
        found = differences(made, rules, answers, length)
        figures["proven or refuted"] += not answers.undecided
        figures["undecided"] += bool(answers.undecided)
        figures["without a finding"] += answers.clean
        figures[f"every key up to length {length}"] += 1
        figures.update(f"witness: {witness.fault}" for witness in answers.witnesses)
        if found:
            wrong.append((number, found, made.text))
    return figures, wrong


def whole(seed: int, count: int, most: int) -> int:
    """Rule files with everything; what is claimed of them."""
    started = time.time()
    figures: Counter[str] = Counter()
    for number, file in files(seed, count):
        try:
            proof = verdict(file)
        except InvalidRules:
            figures["refused when compiled"] += 1
            continue
        figures[proof.level.value] += 1
        found = unlike(file, proof, most)
        if found:
            figures["wrong"] += 1
            print(f"seed {number}: {found}\n{file.text}", flush=True)
    print(f"{count} files, {time.time() - started:.0f} s: {dict(figures)}", flush=True)
    return 1 if figures["wrong"] else 0


def main() -> int:
    if sys.argv[1] == "whole":
        return whole(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 4)
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 7
    started = time.time()
    total: Counter[str] = Counter()
    failed = 0
    for begin in range(seed, seed + count, 1000):
        figures, wrong = run(begin, min(1000, seed + count - begin), most)
        total += figures
        failed += len(wrong)
        for number, found, text in wrong:
            print(f"seed {number}: {found}\n{text}")
        done = begin + 1000 - seed
        print(f"{min(done, count)} sets, {failed} wrong, {time.time() - started:.0f} s: {dict(total)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
