"""Faults in what decides between layouts: relations of shapes, lost prefixes, counts of other sizes."""

from __future__ import annotations

from tests.mutation.fault import Fault

RELATIONS = ("tests/routes/test_relations.py",)
BROKEN = ("tests/routes/test_broken_packs.py",)
TAKEN = ("tests/matcher/test_taken_keys.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "only the first equal dimension can be the outputs",
        "tensors/relations.py",
        "dims = frozenset(dim for dim, size in enumerate(spec.shape) if size == length)",
        "dims = frozenset([spec.shape.index(length)] if length in spec.shape else [])",
        "a layout is contradicted in none of its sizes",
        RELATIONS,
    ),
    Fault(
        "a bias may be as long as any dimension",
        "tensors/relations.py",
        "all(spec.shape[dim] != length for dim in dims)",
        "length not in spec.shape",
        "shapes tell layouts with the same names apart",
        RELATIONS,
    ),
    Fault(
        "equal dimensions decide nothing",
        "registry/fit_layouts.py",
        "        return agreeing or [fit for fit, _ in nearest]",
        "        return [fit for fit, _ in nearest]",
        "shapes tell layouts with the same names apart",
        RELATIONS,
    ),
    Fault(
        "a contradicted layout fits",
        "registry/fit_layouts.py",
        "if differs.contradicts and not self._trusted:",
        "if False:",
        "a contradicted layout does not fit",
        (*RELATIONS, "tests/routes/test_convert.py"),
    ),
    Fault(
        "a layout that is left open is guessed",
        "api/convert.py",
        "            if len(open_) > 1:",
        "            if False:",
        "a layout that is left open is refused",
        RELATIONS,
    ),
    Fault(
        "a layout that is named is not taken",
        "registry/fit_layouts.py",
        "    if layout is not None:\n",
        "    if False:\n",
        "a layout that is named is taken",
        RELATIONS,
    ),
    Fault(
        "a target by the caller silences the warning about shapes",
        "api/apply.py",
        "            notes = tuple(report_contradictions(plan, known)) if known is not None else ()",
        "            notes = ()",
        "apply warns of shapes that contradict its rules",
        RELATIONS,
    ),
    Fault(
        "a lost prefix is not looked for",
        "registry/candidates.py",
        "for lost in list_lost(known)]",
        "for lost in ()]",
        "a lost prefix is found like a root",
        RELATIONS,
    ),
    Fault(
        "a lost prefix needs rules alone",
        "plans/roots.py",
        'not kinds & {"rule", "keep"}',
        'not kinds & {"rule"}',
        "a lost prefix is named",
        RELATIONS,
    ),
    Fault(
        "a hole is taken for another count",
        "plans/groups.py",
        "if holes and not whole else []",
        "if holes else []",
        "a hole names no param",
        RELATIONS,
    ),
    Fault(
        "no param is named",
        "plans/groups.py",
        "    if not changed or None in params:",
        "    if True:",
        "the param of a count is named",
        RELATIONS,
    ),
    # ---------------------------------------------------------------------------------------- the keys of packs
    Fault(
        "a broken pack takes every key",
        "registry/pack_rules.py",
        "        if rules is None:\n            return None",
        "        if rules is None:\n            return set(fqns)",
        "a broken pack decides nothing",
        BROKEN,
    ),
    Fault(
        "rules are compiled for every manifest",
        "registry/pack_rules.py",
        "if of_pack not in self._compiled:",
        "if True:",
        "rules are compiled once for a checkpoint",
        BROKEN,
    ),
    Fault(
        "the cache forgets the guards on leaves",
        "registry/taken_keys.py",
        'if matches(fqn) and (leaf is None or fqn.rpartition(".")[2] in leaf)}',
        "if matches(fqn)}",
        "the cache says what the rules say",
        TAKEN,
    ),
    Fault(
        "the cache keeps what is counted in a checkpoint",
        "registry/taken_keys.py",
        "    if rules.counted and rules.key_params:\n",
        "    if False:\n",
        "what depends on a checkpoint is not kept",
        TAKEN,
    ),
    Fault(
        "patterns that take exponential time are kept",
        "registry/taken_keys.py",
        "if len(patterns) == len(engines) else None",
        "",
        "only what `re` matches safely is kept",
        TAKEN,
    ),
)
