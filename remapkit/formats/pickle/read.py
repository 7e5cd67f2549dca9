"""Reads the pickle of a checkpoint with an opcode loop that imports nothing and calls nothing."""

from __future__ import annotations

from mmap import mmap
from typing import Any

from remapkit.formats.pickle.machine import Machine
from remapkit.formats.pickle.opcodes import OPCODES, stop
from remapkit.formats.pickle.values import HOSTILE_HELP, PickleContent, PickleFault

_REFUSED = {
    "P": "a persistent id as text (protocol 0), which torch.save never writes",
    "\x82": "an extension code, which stands for a global",
    "\x83": "an extension code, which stands for a global",
    "\x84": "an extension code, which stands for a global",
    "\x97": "a buffer outside the pickle",
    "\x98": "a buffer outside the pickle",
}


def _make_opcode_fault(opcode: int, at: int) -> PickleFault:
    words = _REFUSED.get(chr(opcode))
    if words:
        return PickleFault(f"the pickle uses {words} (byte {at})")
    return PickleFault(f"0x{opcode:02x} is not a pickle opcode (byte {at}): the file is damaged")


def _run_machine(machine: Machine) -> Any:
    """Read to STOP and return the object.

    The loop ends: every opcode moves `pos` forward by at least one byte, towards `end`. Memory is bounded: what one
    opcode adds is bounded by the bytes that it reads, and the budget is checked every 1,024 opcodes.
    """
    step = 0
    while True:
        if machine.pos >= machine.end:
            raise PickleFault("the pickle ends without STOP: the file is truncated")
        opcode = machine.data[machine.pos]
        machine.pos += 1
        handler = OPCODES.get(opcode)
        if handler is None:
            raise _make_opcode_fault(opcode, machine.pos - 1)
        if handler is stop:
            return machine.pop()
        handler(machine)
        step += 1
        if step & 0x3FF == 0:
            machine.check_budget(step)


def read_pickle(data: bytes | mmap, start: int, end: int, entries: int = 0) -> PickleContent:
    """The object that a pickle holds, as plain data; raises `PickleFault`.

    >>> import pickle
    >>> found = read_pickle(pickle.dumps({"epoch": 3}), 0, 100)
    >>> found.value.items
    [('epoch', 3)]
    """
    machine = Machine(data, start, min(end, len(data)), entries)
    try:
        value = _run_machine(machine)
    except PickleFault as fault:
        if not machine.hostile:
            raise
        names = " and ".join(list(machine.hostile)[:5])
        raise PickleFault(f"the pickle names {names}, and is broken: {fault.title}", HOSTILE_HELP) from None
    except RecursionError:
        # This loop does not recurse; Python itself does, where it frees or hashes what is nested very deeply.
        raise PickleFault("the pickle is nested too deeply") from None
    machine.check_budget(0)
    return PickleContent(
        value, machine.pos, tuple(machine.hostile), tuple(machine.named), machine.widths, machine.arrays
    )
