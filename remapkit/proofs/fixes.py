"""Fixes of a finding: edits of the rule file that are offered only if the edited file is free of the finding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from remapkit.proofs.model import Proof
from remapkit.rules.model import CompiledRules

Decide: TypeAlias = Callable[[CompiledRules, int | None, tuple[str, ...]], Proof]
"""Proves rules within a budget of steps, given the known source keys, without looking for fixes."""
