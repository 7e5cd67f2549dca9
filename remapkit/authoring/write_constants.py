"""Targets that a converter makes of nothing: as entries of `add:`, where the rule language can say them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from remapkit.authoring.random_tensors import StateTensors, view_bytes
from remapkit.compute.torch_eager import fill_tensor
from remapkit.diagnostics.errors import InvalidRules
from remapkit.ops.join import FillOp
from remapkit.patterns.literals import literal_text
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.compile import compile_rules
from remapkit.tensors.spec import TensorSpec, find_name_problem

MOST = 256
"""The most entries that are written: a thousand lines of masks are for the author to fold."""
Fill = str | float | int


def find_fills(result: StateTensors, fqns: Iterable[str]) -> dict[str, Fill]:
    """Return what fills each of these tensors, of those that an entry of `add:` can make.

    >>> tensors = {"a": torch.arange(3), "b": torch.full((2,), 0.5), "c": torch.eye(2)}
    >>> find_fills(StateTensors(tensors, ""), tensors)
    {'a': 'arange', 'b': 0.5}
    """
    header = result.header()
    found: dict[str, Fill] = {}
    for fqn in fqns:
        fill = _find_fill(result.get(fqn), header[fqn]) if fqn and not find_name_problem(fqn) else None
        if fill is not None and _can_say(fqn, fill, header):
            found[fqn] = fill
    return found


def add_fills(text: str, fills: Mapping[str, Fill], header: Mapping[str, TensorSpec]) -> str:
    """Return a rule file with these tensors under `add:`, before its tests or at its end.

    >>> print(add_fills("rules: []\\n\\ntests:\\n  a: b\\n", {"ids": "arange"}, {"ids": TensorSpec("I64", (3,))}))
    rules: []
    <BLANKLINE>
    add:
      - {to: ids, fill: arange, shape: [3], dtype: I64}
    <BLANKLINE>
    tests:
      a: b
    <BLANKLINE>
    """
    lines = ["add:"]
    for fqn, fill in fills.items():
        spec = header[fqn]
        entry = {"to": literal_text(fqn), "fill": fill, "shape": list(spec.shape), "dtype": spec.dtype}
        lines.append(f"  - {emit_flow(entry)}")
    block = "\n".join(lines) + "\n"
    head, tests, rest = text.partition("\ntests:\n")
    return f"{head}\n{block}{tests}{rest}" if tests else f"{text}\n{block}"


def _find_fill(tensor: torch.Tensor, spec: TensorSpec) -> Fill | None:
    data = view_bytes(tensor)
    flat = tensor.detach().reshape(-1)
    numbers: list[Fill] = []
    if flat.numel() and not flat.is_complex():
        number = flat[0].item()
        numbers = [number] if isinstance(number, int | float) and number == number else []
    shaped = ["arange"] if spec.shape else []
    shaped += ["tril"] if len(spec.shape) > 1 else []
    for fill in ("zeros", "ones", *shaped, *numbers):
        try:
            made = fill_tensor(FillOp(fill, spec))
        except (RuntimeError, TypeError, OverflowError):  # torch has no such operation for the dtype
            continue
        if view_bytes(made) == data:
            return fill
    return None


def _can_say(fqn: str, fill: Fill, header: Mapping[str, TensorSpec]) -> bool:
    """Return whether the language takes the entry: not every dtype can be filled with every number."""
    text = add_fills("remapkit: 1\nname: t\nrules:\n  - {id: a, path: a, to: a_target}\n", {fqn: fill}, header)
    try:
        plan = make_plan(compile_rules(read_text(text)), {"a": TensorSpec("F32", (1,))})
    except InvalidRules:
        return False
    return not plan.problems and plan.target.get(fqn) == header[fqn]
