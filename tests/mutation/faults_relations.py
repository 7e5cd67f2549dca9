"""Faults in finding operations by value: `remapkit/authoring/` from fingerprints to relations."""

from __future__ import annotations

from tests.mutation.fault import Fault

RELATIONS = ("tests/learn/test_find_relations.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "a relation is believed without running it",
        "authoring/find_relations.py",
        "if not self._verifier.is_true(relation):",
        "if False:",
        "only what the engine turns into B's bytes is returned",
        RELATIONS,
    ),
    Fault(
        "only the first piece of a result is compared",
        "authoring/verify_relation.py",
        "        if piece != like:\n            return False\n",
        "        return bool(piece == like)\n",
        "each byte is compared",
        RELATIONS,
    ),
    Fault(
        "constants suggest something",
        "authoring/find_relations.py",
        "        if target.is_constant:\n            self.undetermined",
        "        if False:\n            self.undetermined",
        "a constant is undetermined",
        RELATIONS,
    ),
    Fault(
        "the first of several equal sources",
        "authoring/find_relations.py",
        "        if len(whole) > 1:\n",
        "        if False:\n",
        "what several keys of A hold is undetermined",
        RELATIONS,
    ),
    Fault(
        "what settled a bias is not said",
        "authoring/find_relations.py",
        'self._accept(replace(relation, by="") if alone else relation)',
        'self._accept(replace(relation, by=""))',
        "a relation that only its weights settle says so",
        RELATIONS,
    ),
    Fault(
        "biases are left alone",
        "authoring/find_siblings.py",
        "if sources == relation.sources or not all(fqn in a for fqn in sources):",
        "if True:",
        "biases of zeros go with their weights",
        RELATIONS,
    ),
    Fault(
        "a long list of indices",
        "authoring/name_order.py",
        "    if count <= LONGEST_INDEX:\n",
        "    if count:\n",
        "an order without a name is not written as a long list",
        RELATIONS,
    ),
    Fault(
        "heads in the wrong direction",
        "authoring/name_order.py",
        '(("half", int(np.flatnonzero(order == 1)[0])), ("interleaved", int(order[1])))',
        '(("half", int(order[1])), ("interleaved", int(order[1])))',
        "rotary orders are found in both directions, by their name",
        RELATIONS,
    ),
    Fault(
        "no limit",
        "authoring/find_relations.py",
        "if self.steps + count > self._limit:",
        "if False:",
        "the search ends after a number of steps",
        RELATIONS,
    ),
    Fault(
        "parts add up along the joined dimension",
        "authoring/find_order.py",
        "np.concatenate(each) if other == dim else _add_up(each)",
        "_add_up(each)",
        "the views of a concatenation follow one another along its dimension",
        RELATIONS,
    ),
    Fault(
        "a row goes on where another begins",
        "authoring/find_rows.py",
        "if 0 <= index < len(there) and there[index] == view[n]:",
        "if 0 <= index < len(there):",
        "a row that occurs several times is taken only where its values are",
        RELATIONS,
    ),
)
