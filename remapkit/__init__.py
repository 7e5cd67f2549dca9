"""remapkit: prove that a checkpoint's keys map onto a model, then move the bytes at the speed of `cp`."""

from __future__ import annotations
