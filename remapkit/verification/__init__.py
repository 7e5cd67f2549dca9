"""Values compared: two models that must compute the same, or a converter that must make the same tensors."""

from __future__ import annotations

from remapkit.verification.forward import Verdict, verify_forward
from remapkit.verification.models import build_random_model, make_random_state
from remapkit.verification.oracle import verify_oracle

__all__ = ["Verdict", "build_random_model", "make_random_state", "verify_forward", "verify_oracle"]
