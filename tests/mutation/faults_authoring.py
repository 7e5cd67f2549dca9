"""Faults in `remapkit/authoring/` and `remapkit/rulefile/`: inverses, and the problems of a file."""

from __future__ import annotations

from tests.mutation.fault import Fault

INVERSES = ("tests/prove/test_invert.py",)
FILES = ("tests/rulefile/test_rulefile.py",)

INVERSES = ("tests/prove/test_invert.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "a leaf begins with its capture",
        "authoring/leaf_guard.py",
        "(leaf[len(prefix) :].removesuffix(suffix) for leaf",
        "(leaf.removesuffix(suffix) for leaf",
        "a leaf guard bounds the capture to what is left of each leaf",
        INVERSES,
    ),
    Fault(
        "what follows the capture in its segment is forgotten",
        "authoring/leaf_guard.py",
        "suffix = last + suffix",
        "suffix = suffix",
        "a leaf guard bounds the capture to what is left of each leaf",
        INVERSES,
    ),
    Fault(
        "an index beyond the count",
        "authoring/invert_rule.py",
        "map(str, range(count))",
        "map(str, range(count + 1))",
        "the inverse of an unstack reads the indices below its count",
        INVERSES,
    ),
    Fault(
        "all unknown fields are told",
        "rulefile/schema/validate.py",
        "        if len(problems) > MAX_PROBLEMS:\n            break\n",
        "",
        "only the first hundred problems of a file are looked for",
        FILES,
    ),
    Fault(
        "fields in the order of a set",
        "rulefile/schema/validate.py",
        "further = [name for name in value if name not in known]",
        "further = [*{name for name in value if name not in known}]",
        "the first problems of a file are those that are shown",
        FILES,
    ),
    Fault(
        "an unknown version is one of many problems",
        "rulefile/schema/validate.py",
        'errors.sort(key=lambda error: error.validator != "const")',
        "pass",
        "an unknown version is the only problem that is told",
        FILES,
    ),
    Fault(
        "dropped keys are lost without being asked",
        "authoring/invert.py",
        "for rule in () if partial else rule_set.drop:",
        "for rule in ():",
        "rules that drop something have no inverse unless the rest is asked for",
        INVERSES,
    ),
    Fault(
        "keys that pass through may be lost too",
        "authoring/invert.py",
        'if rule_set.unmatched == "keep" or (',
        'if (rule_set.unmatched == "keep" and not partial) or (',
        "only dropped keys may be lost",
        INVERSES,
    ),
    Fault(
        "the target of a partial inverse still has what is lost",
        "authoring/write_inverse.py",
        "        if any(each.keys for each in self.lost):",
        "        if False:",
        "a partial inverse is not held against keys that it cannot restore",
        INVERSES,
    ),
)
