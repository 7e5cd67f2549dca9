"""Operations on values: what a rule does to tensors on their way, as arithmetic on headers and as data.

`numbers` are the numbers of rule files, `calls` operations as written, `kinds` what they do to a header, `steps` the
few primitives that all of them come down to. None of these touches a tensor: `streaming` runs steps on files with
numpy, `eager` on tensors in memory with torch.
"""

from __future__ import annotations
