"""What the tables of known jobs and faults share: a rule file, what it reads, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import remapkit

State = dict[str, torch.Tensor]
HEAD = "remapkit: 1\nname: case\n"


@dataclass(frozen=True)
class Job:
    """Rules that do a job: what they read, and what must come out, made with torch from the definition."""

    name: str
    rules: str
    source: Callable[[], State]
    wanted: Callable[[State], State]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Refusal:
    """What must be refused before anything is written: a code, and words that its message must contain."""

    name: str
    rules: str
    source: Mapping[str, Any]
    code: str
    said: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def make_state(**shapes: tuple[int, ...]) -> State:
    """Random tensors; two underscores in a name are a dot."""
    return make_tensors({name.replace("__", "."): shape for name, shape in shapes.items()})


def make_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random tensors, no two of which have an element in common."""
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    values = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).float()
    made, start = {}, 0
    for fqn, shape in shapes.items():
        count = torch.Size(shape).numel()
        made[fqn] = values[start : start + count].reshape(shape) / 2
        start += count
    return made


def load_rules(text: str, params: Mapping[str, Any] | None = None) -> remapkit.RuleSet:
    """The rules of a case: the text of a rule file without its first two lines."""
    return remapkit.loads(HEAD + text, params=dict(params or {}))
