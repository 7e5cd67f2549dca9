"""Notices where a converter takes values out of tensors: what it does may then depend on them."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_READS = frozenset(
    [
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "__contains__",
        "__array__",
        "item",
        "tolist",
        "numpy",
        "equal",
        "allclose",
        "is_nonzero",
        "nonzero",
        "argwhere",
        "unique",
    ]
)
"""Functions of torch whose result is no tensor, or has a shape, that follows from values. Printing is not one."""
_LIBRARIES = tuple(str(Path(each).parent) for each in (__file__, str(torch.__file__), str(np.__file__)))


class ValueWatch(TorchFunctionMode):
    """While it is entered, `places` gets the lines of the converter's code that read values, each once."""

    def __init__(self, places: dict[str, None]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and note who calls it."""
        if getattr(func, "__name__", "") in _READS and (place := _find_caller()):
            self.places[place] = None
        return func(*args, **(kwargs or {}))


def _find_caller() -> str:
    """Return the innermost line that is neither ours nor a library's of tensors; it ends at the first frame."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((*_LIBRARIES, "<")):
        if frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == "remapkit.authoring.call_converter":
            return ""  # the call itself: nothing of the converter's own is left
        frame = frame.f_back
    if frame is None:
        return ""
    name, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(name, number).strip()
    return f"{name}:{number}, in {frame.f_code.co_name}" + (f": {line}" if line else "")
