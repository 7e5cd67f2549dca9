"""Faults in what is proposed and identified: hints of messages, layouts of checkpoints, layers, keywords of help."""

from __future__ import annotations

from tests.mutation.fault import Fault

CHECK = ("tests/core/test_plan_checks.py", "tests/core/test_check.py", "tests/judge/test_declared_target.py")
CONFIGS = ("tests/judge/test_declared_config.py",)
HINTS = ("tests/judge/test_identify.py",)
PREFIXES = ("tests/learn/test_new_prefix.py",)
LAYERS = ("tests/core/test_known_layers.py",)
KEYWORDS = ("tests/api/test_keywords.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "a slice is proposed for the larger size",
        "plans/shape_advice.py",
        "start: 0, stop: {new}",
        "start: 0, stop: {old}",
        "what a message proposes works",
        ("tests/core/test_shape_advice.py",),
    ),
    Fault(
        "a lost prefix may give a key that is there",
        "plans/roots.py",
        'f"{prefix}{fqn}" in fqns or not kinds',
        "not kinds",
        "no two keys become one",
        ("tests/judge/test_lost_prefix.py",),
    ),
    # ----------------------------------------------------------------------------------------------- layers
    Fault(
        "a hole among the layers is no hole",
        "plans/layers.py",
        "sorted(found | set(range(min(max(found) + 1, len(found) + 1))))",
        "sorted(found)",
        "every layer up to the last must be there",
        LAYERS,
    ),
    Fault(
        "blocks that differ are layers",
        "plans/layers.py",
        "equal = len(found) > 1 and all(each == found.get(0) for each in found.values())",
        "equal = len(found) > 1",
        "only equal layers may be missing",
        LAYERS,
    ),
    # ------------------------------------------------------------------------------------------------ hints
    Fault(
        "numbers tell layouts apart",
        "registry/candidates.py",
        "kinds = Counter(map(mask_indices, names)) if",
        "kinds = Counter(names) if",
        "a layout is known in every size",
        HINTS,
    ),
    Fault(
        "a pack that knows most keys is said to know all",
        "registry/candidates.py",
        "return not self.foreign and 2 * self.lacking <=",
        "return 2 * self.foreign <= self.keys and 2 * self.lacking <=",
        "keys are a pack's only if all of them are",
        HINTS,
    ),
    Fault(
        "the pack in use is proposed",
        "registry/identify.py",
        "if not found or but in packs:",
        "if not found:",
        "no help names the pack that failed",
        HINTS,
    ),
    Fault(
        "any number of names is compared",
        "registry/candidates.py",
        "if not 0 < len(kinds) <= MAX_KINDS:",
        "if not kinds:",
        "identification is bounded",
        HINTS,
    ),
    Fault(
        "the first pack of a model is taken",
        "api/check.py",
        "    if len(fitting) == 1:\n",
        "    if fitting:\n",
        "several packs that fit are an error",
        HINTS,
    ),
    Fault(
        "what would be dropped must be there",
        "plans/check.py",
        "required = list_required(known, rules)\n",
        "required = tuple(known)\n",
        "a key that would be dropped may be missing",
        CHECK,
    ),
    Fault(
        "a declared config is not read",
        "api/apply.py",
        "        if rules.last.file.target is not None and rules.last.file.target.config is not None:\n",
        "        if False:\n",
        "apply checks against the model of a declared config",
        CONFIGS,
    ),
    Fault(
        "one of two targets that are alike",
        "authoring/find_prefix.py",
        "rivals = [each for each in ordered[1:] if counts[each] == counts[ordered[0]]]",
        "rivals: list[Change] = []",
        "`new` does not choose between two prefixes",
        PREFIXES,
    ),
    Fault(
        "any shape",
        "authoring/find_prefix.py",
        'getattr(free.get(fqn), "shape", None) == spec.shape for',
        "fqn in free for",
        "a target has the shape of its source",
        PREFIXES,
    ),
    Fault(
        "a layer is a prefix",
        "authoring/find_prefix.py",
        "if not any(segment.isdecimal() or not segment for segment in (*removed, *added)):",
        "if removed or added:",
        "a prefix has no number",
        PREFIXES,
    ),
    Fault(
        "flags are values",
        "diagnostics/keywords.py",
        '    "no-target": "declared_target=False",',
        '    "no-target": "no_target=True",',
        "a message names keywords that the function has",
        KEYWORDS,
    ),
    Fault(
        "a word of the sentence is a value",
        "diagnostics/keywords.py",
        're.compile("and|are|is|need|or|out|writes")',
        're.compile("and|are|is|or|out|writes")',
        "an option that is only mentioned takes no value",
        KEYWORDS,
    ),
)
