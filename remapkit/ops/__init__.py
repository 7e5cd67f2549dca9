"""Operations on tensors, described by their effect on headers: no tensor is touched here.

`calls` contains operations as rule files write them, with `params`; `shape`, `dtype`, `attention` and `join` their
effect on a header; `steps` the few primitives that all of them consist of, which `compute` runs on files with numpy
and on tensors in memory with torch. `byte_ranges` determines which of them only move bytes.
"""

from __future__ import annotations
