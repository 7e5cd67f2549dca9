"""Faults in `then`, in the search for routes, and in what identifies a layout."""

from __future__ import annotations

from tests.mutation.fault import Fault

THEN = ("tests/routes/test_then.py",)
SEARCH = ("tests/routes/test_search.py",)
CONVERT = ("tests/routes/test_convert.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "the second operations come first",
        "plans/compose.py",
        "ops = (*inputs[0].ops, *move.ops)",
        "ops = (*move.ops, *inputs[0].ops)",
        "then is one after the other",
        THEN,
    ),
    Fault(
        "operations before a join are forgotten",
        "plans/compose.py",
        "    if not any(each.ops for each in inputs):",
        "    if not any(each.ops for each in inputs) or isinstance(first, Join):",
        "then is one after the other",
        THEN,
    ),
    Fault(
        "the parts of a chain change places",
        "rules/chain.py",
        "after=(*first.after, *second.parts)",
        "after=(*second.parts, *first.after)",
        "then is associative",
        THEN,
    ),
    Fault(
        "inner merges are not compared",
        "compute/merged.py",
        "            yield from list_families(each, own)",
        "            yield from ()",
        "merged tensors are equal",
        THEN,
    ),
    Fault(
        "the last part's proof is the route's",
        "proofs/prover.py",
        "level=max((proof.level for proof in proofs), key=ORDER.index)",
        "level=proofs[-1].level",
        "a route is proven if its parts are",
        THEN,
    ),
    Fault(
        "a layout may come twice",
        "registry/routes.py",
        "step.target != start and all(step.target != one.source for one in path)",
        "True",
        "no layout comes twice",
        SEARCH,
    ),
    Fault(
        "only the first route is found",
        "registry/routes.py",
        "                found.append(path)\n",
        "                found[:] = found or [path]\n",
        "all routes are found",
        SEARCH,
    ),
    Fault(
        "via is an unordered set",
        "registry/routes.py",
        "return all(any(word == place for place in places) for word in via)",
        "return set(via) <= {word for step in route for word in (step.pack, step.target)}",
        "a route passes via in its order",
        SEARCH,
    ),
    Fault(
        "a search goes on for ever",
        "registry/routes.py",
        "                if count > MAX_STEPS:",
        "                if count > 50 * MAX_STEPS:",
        "a search is bounded",
        SEARCH,
    ),
    Fault(
        "any plan is like another",
        "api/convert.py",
        "zip(usable, plans, strict=False) if plan != plans[0]]",
        "zip(usable, plans, strict=False) if plan is None]",
        "several routes with different plans are refused",
        CONVERT,
    ),
    Fault(
        "a loss needs no consent",
        "api/convert.py",
        "    if not partial:\n        help = (",
        "    if False:\n        help = (",
        "a step that loses something needs consent",
        CONVERT,
    ),
    Fault(
        "the cache is never renewed",
        "registry/layouts.py",
        "if entry is None or any(",
        "if entry is None or False and any(",
        "the cache follows its files",
        CONVERT,
    ),
    Fault(
        "a missing name is no difference",
        "registry/fit_layouts.py",
        "    numbers = len(missing) + len(foreign)",
        "    numbers = len(foreign)",
        "exactly means exactly",
        CONVERT,
    ),
    Fault(
        "foreign modules of an adapter are its own",
        "registry/fit_layouts.py",
        "bool(self.fits or any(each.known == each.modules for each in self.adapters))",
        "bool(self.fits or self.adapters)",
        "an adapter is a layout's if all of its modules are",
        CONVERT,
    ),
)
