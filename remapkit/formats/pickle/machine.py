"""Pickles read inertly: an opcode loop that builds plain data, imports nothing and calls nothing.

Source: the opcodes as documented by CPython's `pickletools` (`opcodes`, protocols 0 to 5). A global is kept as its
name. The few calls that torch's own checkpoints consist of (rebuilding a tensor, a parameter, an ordered dict) become
plain data; every other call becomes an `Opaque` with the name of what would have been called. Nothing here can run
code, whatever the bytes say, and time and memory are bounded by budgets.

The standard library's unpickler is not used: overriding `find_class` does not bound it, and its C code allocates what
a pickle asks for (a memo of 2^31 slots, a string of 1 TB) before it checks that the bytes are there.
"""

from __future__ import annotations

from mmap import mmap
from typing import Any

from remapkit.diagnostics.wording import format_bytes
from remapkit.formats.pickle.denylist import is_hostile
from remapkit.formats.pickle.values import MARK, Global, PickledArray, PickleFault

_MAX_LINE = 1 << 16
"""The longest argument of a text opcode (protocol 0), in bytes."""

_MAX_STACK = 1 << 20
"""The most values on the stack."""

MAX_INT_BYTES = 256
"""The longest integer, in bytes or digits."""

_BASE_OBJECTS, _BASE_OPCODES = 2_000_000, 20_000_000
"""How many objects (about 64 bytes each) and opcodes any pickle may have; a checkpoint may have more, by its entries.

Every object that is built costs one, kept or not, and so do pairs of dicts and long texts: time and memory are
bounded by one count that only falls. A tensor that torch.save wrote takes 9 objects and 32 opcodes.
"""

TEXT_OBJECT = 64
"""This many characters of text count as one object: a pickle may keep about 128 MB of text."""


class Machine:
    """The state of one pickle that is being read: position, stack, memo, and what is left of the budget.

    `data` is read from `start` on, never beyond `end`. `entries` is an upper bound of how many tensors the file holds
    (its storages); budgets grow with it.
    """

    __slots__ = ("arrays", "data", "end", "hostile", "memo", "named", "objects", "opcodes", "pos", "stack", "widths")

    def __init__(self, data: bytes | mmap, start: int, end: int, entries: int) -> None:
        self.data = data
        self.pos = start
        self.end = end
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.objects = _BASE_OBJECTS + 64 * entries
        self.opcodes = _BASE_OPCODES + 400 * entries
        self.hostile: dict[str, None] = {}
        self.named: dict[str, None] = {}
        self.widths: dict[str, int] = {}
        self.arrays = 0

    def check_budget(self, step: int) -> None:
        """Raise where the pickle is larger than any checkpoint."""
        if step > self.opcodes or len(self.memo) > self.objects or self.objects < 0:
            raise PickleFault(f"the pickle builds more than any checkpoint does ({step} opcodes): refused")
        if len(self.stack) > _MAX_STACK:
            raise PickleFault(f"the pickle's stack grows beyond {_MAX_STACK} values: refused")

    def read_bytes(self, length: int) -> bytes:
        """The next `length` bytes."""
        start = self.pos
        if length > self.end - start:
            left = self.end - start
            raise PickleFault(f"the pickle asks for {format_bytes(length)} where {format_bytes(left)} are left")
        self.pos = start + length
        return self.data[start : start + length]

    def read_number(self, length: int) -> int:
        """The next `length` bytes as an unsigned little-endian number."""
        return int.from_bytes(self.read_bytes(length), "little")

    def read_line(self) -> bytes:
        """The bytes up to the next line end, which is skipped."""
        end = self.data.find(b"\n", self.pos, min(self.end, self.pos + _MAX_LINE))
        if end < 0:
            raise PickleFault("the pickle has a line without an end")
        line = self.data[self.pos : end]
        self.pos = end + 1
        self.objects -= len(line) // TEXT_OBJECT
        return line

    def replace_array(self, array: PickledArray, made: Any) -> None:
        """Put what an array became in its place: on top of the stack, and in the memo."""
        self.stack[-1] = made
        for index in array.slots:
            if self.memo[index] is array:
                self.memo[index] = made

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise PickleFault("the pickle takes a value from an empty stack")
        return self.stack.pop()

    def peek(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise PickleFault("the pickle takes a value from an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which is taken too."""
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is MARK:
                values = stack[at + 1 :]
                del stack[at:]
                self.objects -= 1
                return values
        raise PickleFault("the pickle looks for a mark that is not there")

    def remember(self, index: int) -> None:
        # Memo indices count values, so an honest one is smaller than the number of bytes before it.
        if index > self.pos:
            raise PickleFault(f"the pickle uses memo slot {index} within its first {self.pos} bytes")
        value = self.memo[index] = self.peek()
        if value.__class__ is PickledArray:
            value.slots.append(index)

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleFault(f"the pickle reads memo slot {index}, which was never written")
        self.push(self.memo[index])

    def find_global(self, module: Any, name: Any) -> Global:
        """The name of a global; nothing is imported, and hostile ones are noted."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleFault("the pickle names a global by something that is not text")
        if len(module) + len(name) > 512:
            raise PickleFault("the pickle names a global with more than 512 characters")
        self.objects -= 1
        found = Global(_MODULES.get(module, module), name)
        self.named[str(found)] = None
        # A dotted name walks attributes: `numpy` and `os.system` is os.system too.
        if is_hostile(str(found)) or ("." in name and is_hostile(name)):
            self.hostile[str(found)] = None
        return found


_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
