"""Faults in what joins tensors by a capture: families of ranks, merged tensors, several indices."""

from __future__ import annotations

from tests.mutation.fault import Fault

RANKS = ("tests/ops/test_ranks.py",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "merged tensors without operations are not compared",
        "compute/merged.py",
        "if (names[number], branches[number]) != (names[0], branches[0]):",
        "if branches[number] != branches[0]:",
        "merged tensors are equal",
        RANKS,
    ),
    Fault(
        "only the second rank is compared",
        "compute/merged.py",
        "for number in range(1, len(names)):",
        "for number in range(1, min(2, len(names))):",
        "each rank is compared with the first",
        RANKS,
    ),
    Fault(
        "merged values are compared, not bytes",
        "compute/merged.py",
        "if not difference.bytes_equal:",
        "if difference.max_abs != 0:",
        "merged tensors are equal byte for byte",
        RANKS,
    ),
    Fault(
        "files are written without a comparison",
        "write/execute.py",
        "    refuse_unequal_merges([move for output in outputs for move in output.moves], reader)\n",
        "",
        "nothing is written if merged tensors differ",
        RANKS,
    ),
    Fault(
        "a dry run does not compare",
        "api/apply.py",
        'if reader.format != "manifest":',
        'if reader.format == "manifest":',
        "a dry run says what the run will say",
        RANKS,
    ),
    Fault(
        "a module is loaded without a comparison",
        "loading/prepare.py",
        "        problems += values.find_unequal_merges(tuple(moves.values()))\n",
        "",
        "nothing is assigned if merged tensors differ",
        RANKS,
    ),
    Fault(
        "a state dict is merged without a comparison",
        "compute/torch_eager.py",
        "if problems := find_unequal_tensors(plan.moves, state_dict, plan.source.name):",
        "if problems := find_unequal_tensors((), state_dict, plan.source.name):",
        "merged tensors in memory are equal",
        RANKS,
    ),
    Fault(
        "one family lacks its last rank",
        "plans/groups.py",
        "return tuple(max(column) + 1 for column in zip(*found, strict=True))",
        "return tuple(min(column) + 1 for column in zip(*found, strict=True))",
        "all families of a rule have the same ranks",
        RANKS,
    ),
    Fault(
        "an index that only one of two captures lacks",
        "plans/groups.py",
        "for place, name in enumerate(pipeline.folded):",
        "for place, name in enumerate(pipeline.folded[:1]):",
        "gaps of every index are named",
        RANKS,
    ),
    Fault(
        "merged tensors of any shape",
        "ops/join.py",
        "        if spec.shape != first.shape:\n            title = (\n",
        "        if len(spec.shape) != len(first.shape):\n            title = (\n",
        "merged tensors have one shape",
        RANKS,
    ),
    Fault(
        "a joined index is lost",
        "proofs/keymap.py",
        "folded = pipeline.folded if pipeline is not None else ()",
        "folded = pipeline.folded[:1] if pipeline is not None else ()",
        "joined tensors do not collide",
        RANKS,
    ),
    Fault(
        "the first index counts fastest",
        "plans/groups.py",
        "sources = tuple(fqns[0] for _, fqns in sorted(group.found.items()))",
        "sources = tuple(fqns[0] for _, fqns in sorted(group.found.items(), key=lambda pair: pair[0][::-1]))",
        "of several indices the last one counts fastest",
        RANKS,
    ),
    Fault(
        "parts in the order of their patterns",
        "plans/groups.py",
        "for number in pipeline.order)",
        "for number in sorted(pipeline.order))",
        "a source may be read several times, anywhere",
        RANKS,
    ),
    Fault(
        "zeros are what is there times zero",
        "ops/shape.py",
        "return (Pick(0, (range(0),)), Pad(0, spec.shape[0], 0))",
        "return ()",
        "a part of zeros is zero",
        RANKS,
    ),
)
