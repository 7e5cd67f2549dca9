"""Operations on tensors, as arithmetic on headers and as data: no tensor is touched here.

`calls` has operations as rule files write them, with `params`; `shape`, `dtype`, `attention` and `join` what they do
to a header; `steps` the few primitives that all of them consist of, which `compute` runs on files with numpy and on
tensors in memory with torch. `byte_ranges` tells which of them only move bytes.
"""

from __future__ import annotations
