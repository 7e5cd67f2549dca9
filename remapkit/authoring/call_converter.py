"""One run of a converter: what it returns as a dict of tensors, or why there is none."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remapkit.authoring.random_tensors import RandomTensors, StateTensors
from remapkit.authoring.watch_values import ValueWatch
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import show_key
from remapkit.models.converter import Converter, name_type
from remapkit.models.isolation import isolate_guest
from remapkit.tensors.from_torch import TORCH_DTYPES
from remapkit.tensors.spec import StateDictSpec, find_name_problem

_OURS = Path(__file__).parent.parent
_USUAL_RUNS = 4
"""The runs on a whole source that are always made."""
_LIBRARIES = (str(_OURS), str(Path(torch.__file__).parent))
"""Frames of these are not the converter's own code."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The tensors that a run returned; `beside` are the keys of what is no tensor."""

    tensors: StateTensors
    beside: tuple[str, ...]


class Runner:
    """Runs a converter, each time on a fresh copy, with other random numbers, and after the first time quietly.

    `reads` are the lines of its code that were seen to read values of tensors. `progress` is told the bytes of all
    sources that were converted, and those that are expected: more, if there are further runs.
    """

    def __init__(self, converter: Converter, progress: Callable[[int, int], None] | None = None) -> None:
        self.converter, self.progress = converter, progress
        self.runs = self.done = self.total = 0
        self.reads: dict[str, None] = {}

    def run(self, source: RandomTensors, order: Sequence[str] | None = None) -> Returned:
        """Return what the converter makes of the source, whose keys come in `order`.

        Raises `UsageError`: RK669 if the converter raises, RK671 if it returns no state dict.
        """
        self.runs += 1
        state = source.make_state(order)
        self._show_progress(source.header().nbytes)
        try:
            with (
                _control_chance(self.runs),
                _hush(self.runs > 1),
                isolate_guest(),
                torch.no_grad(),
                ValueWatch(self.reads),
            ):
                returned = self.converter.call(state)
                if isinstance(returned, Iterator):  # of pairs; it is the converter that runs here
                    returned = list(returned)
        except (Exception, SystemExit) as error:
            raise UsageError(_diagnose_failure(self.converter, error, source.header())) from error
        found = state if returned is None else _find_mapping(returned)
        reference = self.converter.reference
        if found is None:
            title = f"{reference} returned {name_type(returned)}, not a state dict"
            raise UsageError(
                Diagnostic("RK671", title, help=("it must return a dict of tensors, or change its own",))
            )
        tensors = {fqn: value for fqn, value in found.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise UsageError(_diagnose_empty(reference, found))
        for fqn, value in tensors.items():
            _check_tensor(reference, fqn, value)
        beside = tuple(str(fqn) for fqn in found if fqn not in tensors)
        # The result must not share the dict: the converter may keep it.
        named = StateTensors(
            {fqn: value.detach() for fqn, value in tensors.items()}, f"what {Path(reference).name} returns"
        )
        return Returned(named, beside)

    def _show_progress(self, size: int) -> None:
        self.done += size
        self.total = max(self.total, self.done, _USUAL_RUNS * size)
        if self.progress is not None:
            self.progress(self.done, self.total)


@contextlib.contextmanager
def _control_chance(number: int) -> Iterator[None]:
    """Seed the usual generators with the number of the run: what depends on chance must differ, and be the same again
    when we are called again. Their states are restored. Each run is on another day, too."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    clocks, days = (time.time, time.time_ns), 86_401 * number
    time.time = lambda: clocks[0]() + days
    time.time_ns = lambda: clocks[1]() + days * 10**9
    random.seed(number)
    np.random.seed(number)
    # Where there is no device, `torch.manual_seed` would keep the stack of each call for the day that one comes.
    seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed(number)
    try:
        yield
    finally:
        time.time, time.time_ns = clocks
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def _hush(quiet: bool) -> Iterator[None]:
    """Swallow what the converter prints, logs and warns of: it has said so in its first run."""
    if not quiet:
        yield
        return
    level = logging.root.manager.disable
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _find_mapping(returned: object) -> Mapping[Any, Any] | None:
    """Return the state dict: what was returned, the first mapping of a tuple, or pairs as a dict."""
    if isinstance(returned, Mapping):
        return returned
    if not isinstance(returned, tuple | list):
        return None
    if (first := next((each for each in returned if isinstance(each, Mapping)), None)) is not None:
        return first
    pairs = [each for each in returned if isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str)]
    return dict(pairs) if len(pairs) == len(returned) else None


def _diagnose_empty(reference: str, found: Mapping[Any, Any]) -> Diagnostic:
    if not found:
        return Diagnostic("RK671", f"{reference} returned an empty dict")
    inner = [repr(fqn) for fqn, value in found.items() if isinstance(value, Mapping)]
    help = (f"return the dict under {inner[0]} instead",) if inner else ()
    return Diagnostic("RK671", f"{reference} returned a dict without tensors", help=help)


def _check_tensor(reference: str, fqn: object, value: torch.Tensor) -> None:
    """Raise `UsageError` (RK671) for what no checkpoint can hold."""
    if not isinstance(fqn, str):
        title = f"{reference} returned a tensor under the key {fqn!r}, which is not text"
    elif value.is_meta or value.layout is not torch.strided or value.is_quantized:
        title = f"{reference} returned no plain tensor of values for {show_key(fqn)}"
    elif value.dtype not in TORCH_DTYPES.values():
        title = f"{reference} returned a tensor of {value.dtype} for {show_key(fqn)}, which no checkpoint holds"
    elif (problem := find_name_problem(fqn)) is not None:
        title = f"{reference} returned the key {show_key(fqn)}, which {problem}"
    else:
        return
    raise UsageError(Diagnostic("RK671", title))


# ------------------------------------------------------------------------------------------------ failures


def _diagnose_failure(converter: Converter, error: BaseException, header: StateDictSpec) -> Diagnostic:
    cause = "".join(traceback.format_exception_only(error)).strip()
    key = _find_key(error, header)
    at = "" if key is None else f" at the key {show_key(key)}"
    title = f"{converter.reference} failed{at}"
    help = ["check that the source has the layout that the converter reads"]
    missing = error.args[0] if isinstance(error, KeyError) and error.args else None
    if isinstance(missing, str) and missing not in header:
        title = (
            f"{converter.reference} failed: it reads the key {show_key(missing)}, which {header.name} does not have"
        )
        help.append("if that is not a key of the state dict, but of an argument: pass it with --arg key=value")
    elif isinstance(error, TypeError) and "argument" in str(error):
        help = ["give its arguments with --arg key=value"]
    place = _find_place(error)
    return Diagnostic("RK669", title, notes=tuple(filter(None, [cause, place])), help=tuple(help))


def _find_place(error: BaseException) -> str:
    """Return the innermost line of the converter's own code, or of what it calls, that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, "<"))]
    if not own:
        return ""
    line = f": {own[-1].line}" if own[-1].line else ""
    return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}{line}"


def _find_key(error: BaseException, header: StateDictSpec) -> str | None:
    """Return the key that the converter was at: the innermost variable of its frames that holds one."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        if frame.f_code.co_filename == __file__:
            break
        for value in frame.f_locals.values():
            if type(value) is str and value in header:
                return value
    return None
