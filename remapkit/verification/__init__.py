"""Comparison by value: two models that must compute the same, or a converter that must give the same tensors."""

from __future__ import annotations

from remapkit.verification.forward import Verdict, verify_forward
from remapkit.verification.models import build_random_model, make_random_state
from remapkit.verification.oracle import verify_oracle
from remapkit.verification.run import ModelRef, list_versions, verify_by_forward, verify_by_oracle

__all__ = [
    "ModelRef",
    "Verdict",
    "build_random_model",
    "list_versions",
    "make_random_state",
    "verify_by_forward",
    "verify_by_oracle",
    "verify_forward",
    "verify_oracle",
]
