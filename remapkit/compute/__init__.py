"""Operations run: on tensors in memory with torch (`torch_eager`), on files with numpy, piece by piece (`stream`)."""

from __future__ import annotations
