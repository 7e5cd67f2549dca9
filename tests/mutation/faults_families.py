"""Faults in key families, and in what `inspect` and `explain` say of adapters."""

from __future__ import annotations

from tests.mutation.fault import Fault

EXPLAIN = ("tests/adapters/test_explain.py",)
SUMMARY = ("tests/adapters/test_summary.py",)
FAMILIES = ("tests/families/test_families.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "numbers in a segment are not cut out",
        "tensors/families.py",
        'if _BESIDE.search(fqn) is None or "" in segments:',
        "if True:",
        "keys that differ in a number between `_` are one family",
        FAMILIES,
    ),
    Fault(
        "a cut leaves an empty word",
        "tensors/families.py",
        'return [segment] if "" in words else words',
        "return words",
        "no word is empty but where a segment is",
        FAMILIES,
    ),
    Fault(
        "numbers are joined with words",
        "tensors/families.py",
        "self.kinds = [-1 if is_canonical_integer(own[0]) else -2 for own in self.sets]",
        "self.kinds = [-2 for own in self.sets]",
        "a number is never in a set with words",
        FAMILIES,
    ),
    Fault(
        "other places may differ",
        "tensors/families.py",
        "(*box[:place], sets.kinds[box[place]], *box[place + 1 :])",
        "(*box[:place], sets.kinds[box[place]], *map(bool, box[place + 1 :]))",
        "a family has no key that the header lacks",
        FAMILIES,
    ),
    Fault(
        "one set in two orders is two",
        "tensors/families.py",
        "words.sort(key=int if kind == -1 else self.order.__getitem__)",
        "words.sort(key=int if kind == -1 else lambda word: 0)",
        "no two families could be one",
        FAMILIES,
    ),
    Fault(
        "a segment that stands elsewhere in other keys is taken out",
        "authoring/find_prefix.py",
        "return len(places) == 1",
        "return True",
        "one change is right for every key of its family",
        ("tests/learn/test_new_prefix.py",),
    ),
    Fault(
        "a name that a change is not about becomes the empty key",
        "authoring/find_prefix.py",
        'if "" in new:',
        "if False:",
        "a change takes only the names that it is about",
        ("tests/learn/test_new_prefix.py",),
    ),
    Fault(
        "a segment's texts are joined with dots",
        "tensors/families.py",
        "segments[-1] += sign + text",
        'segments[-1] += "." + text',
        "a new rule file changes nothing",
        ("tests/rulefile/test_new.py",),
    ),
    Fault(
        "the shared start of words is all of one",
        "tensors/families.py",
        'return "" if shared in words else shared',
        "return first[:same]",
        "a shared start ends with `_`",
        FAMILIES,
    ),
    Fault(
        "a LoRA rank is read off down alone",
        "adapters/summary.py",
        "found = {one[1]} if one[1] == other[0] else set()",
        "found = {other[0]}",
        "two matrices have the LoRA rank that both have",
        SUMMARY,
    ),
    Fault(
        "the modules of all prefixes are one part",
        "adapters/summary.py",
        "modules[_find_prefix(cut[0], formats)]",
        'modules[_find_prefix(cut[0], formats)[0], ""]',
        "a text encoder's modules are not counted as the UNet's",
        SUMMARY,
    ),
    Fault(
        "alpha patterns are ignored",
        "adapters/summary.py",
        "config.find_alpha(find_peft_start(prefix) + module[len(prefix) :])",
        "config.alpha",
        "alphas of a config are those of its patterns",
        SUMMARY,
    ),
    Fault(
        "the adapters of joined weights are forgotten",
        "adapters/explain.py",
        "joined = dict.fromkeys([module.weight, *(source for move in moves for source in move.sources)])",
        "joined = dict.fromkeys([module.weight])",
        "what is said of a tensor is what is done with a file",
        EXPLAIN,
    ),
    Fault(
        "a model's own key is taken for an adapter's",
        "adapters/explain.py",
        "if prefix is None and find_adapter_module(fqn) is None:",
        "if False:",
        "other keys are explained as before",
        EXPLAIN,
    ),
    Fault(
        "a tensor of no module follows",
        "adapters/explain.py",
        "return bool(self.weight) and not self.reason",
        "return not self.reason",
        "a tensor of no module fails",
        EXPLAIN,
    ),
    Fault(
        "a refusal is not a failure",
        "adapters/explain.py",
        "return bool(self.weight) and not self.reason",
        "return bool(self.weight)",
        "what cannot follow fails",
        EXPLAIN,
    ),
)
