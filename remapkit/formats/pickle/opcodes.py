"""One function per pickle opcode (protocols 0 to 5, as documented in pickletools)."""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable
from typing import Any

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.formats.pickle.arrays import set_array_state, set_dtype_state
from remapkit.formats.pickle.calls import call_known, load_persistent, make_instance
from remapkit.formats.pickle.machine import MAX_INT_BYTES, TEXT_OBJECT, Machine
from remapkit.formats.pickle.values import (
    MARK,
    MAX_TEXT,
    Opaque,
    PickledArray,
    PickledBytes,
    PickledDict,
    PickledDtype,
    PickleFault,
    describe_kind,
)


def stop(machine: Machine) -> None:
    """STOP: `_run_machine` returns the value on top of the stack."""


def _proto(machine: Machine) -> None:
    version = machine.read_number(1)
    if version > 5:
        raise PickleFault(f"pickle protocol {version} is unknown")


def _frame(machine: Machine) -> None:
    length = machine.read_number(8)
    if length > machine.end - machine.pos:
        raise PickleFault(
            f"a frame of {format_bytes(length)}, but only {format_bytes(machine.end - machine.pos)} remain"
        )


def _mark(machine: Machine) -> None:
    machine.stack.append(MARK)


def _pop(machine: Machine) -> None:
    if not machine.stack:
        raise PickleFault("the pickle takes a value from an empty stack")
    machine.stack.pop()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _push_constant(value: Any) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(value)

    return push


def _int_line(machine: Machine) -> None:
    line = machine.read_line()
    if line in (b"00", b"01"):
        machine.push(line == b"01")
    else:
        machine.push(_parse_int(line))


def _parse_int(line: bytes) -> int:
    if len(line) > MAX_INT_BYTES:
        raise PickleFault(f"a number of {len(line)} digits")
    try:
        return int(line.rstrip(b"L").decode("ascii"))
    except ValueError:
        raise PickleFault(f"{show_key(repr(line), 40)} is not a number") from None


def _long_line(machine: Machine) -> None:
    machine.push(_parse_int(machine.read_line()))


def _float_line(machine: Machine) -> None:
    line = machine.read_line()
    try:
        machine.push(float(line[:MAX_INT_BYTES]))
    except ValueError:
        raise PickleFault(f"{show_key(repr(line), 40)} is not a number") from None


def _binint(machine: Machine) -> None:
    machine.push(int.from_bytes(machine.read_bytes(4), "little", signed=True))


def _binint1(machine: Machine) -> None:
    machine.push(machine.read_number(1))


def _binint2(machine: Machine) -> None:
    machine.push(machine.read_number(2))


def _push_long(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        length = machine.read_number(width)
        if length > MAX_INT_BYTES:
            raise PickleFault(f"a number of {format_bytes(length)}")
        machine.objects -= length // TEXT_OBJECT
        machine.push(int.from_bytes(machine.read_bytes(length), "little", signed=True))

    return push


def _binfloat(machine: Machine) -> None:
    machine.push(struct.unpack(">d", machine.read_bytes(8))[0])


def _push_text(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        length = machine.read_number(width)
        if length > MAX_TEXT:
            _skip_bytes(machine, length, "str", is_text=True)
            return
        machine.objects -= length // TEXT_OBJECT
        try:
            machine.stack.append(machine.read_bytes(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise PickleFault("a string is not UTF-8") from None

    return push


def _skip_bytes(machine: Machine, length: int, name: str, is_text: bool = False) -> None:
    if length > machine.end - machine.pos:
        machine.read_bytes(length)
    start = machine.pos
    machine.pos += length
    machine.objects -= 1
    size = 0 if is_text else length
    label = f"{name} of {format_bytes(length)}"
    machine.push(PickledBytes(label, True, start=start, length=length, size=size, is_text=is_text))


def _push_bytes(width: int, name: str) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        _skip_bytes(machine, machine.read_number(width), name)

    return push


def _push_string(width: int) -> Callable[[Machine], None]:
    """Python 2's str: text where it is ASCII, which is all that names and storage keys are."""

    def push(machine: Machine) -> None:
        length = machine.read_number(width)
        if length > MAX_TEXT:
            _skip_bytes(machine, length, "str")
        else:
            machine.objects -= length // TEXT_OBJECT
            machine.push(machine.read_bytes(length).decode("latin-1"))

    return push


def _string_line(machine: Machine) -> None:
    line = machine.read_line().strip()
    if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
        raise PickleFault("a quoted string without quotes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            machine.push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))
    except ValueError:
        raise PickleFault("a quoted string with a broken escape") from None


def _unicode_line(machine: Machine) -> None:
    try:
        machine.push(machine.read_line().decode("raw-unicode-escape"))
    except UnicodeDecodeError:
        raise PickleFault("a string with a broken escape") from None


def _push_empty(kind: Callable[[], Any]) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.objects -= 1
        machine.stack.append(kind())

    return push


def _tuple(machine: Machine) -> None:
    machine.push(tuple(machine.pop_mark()))


def _push_tuple(count: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.objects -= 1
        machine.push(tuple(reversed(values)))

    return push


def _list(machine: Machine) -> None:
    machine.push(machine.pop_mark())


def _dict(machine: Machine) -> None:
    values = machine.pop_mark()
    machine.objects -= len(values) // 2
    machine.push(PickledDict(_pair_values(values)))


def _pair_values(values: list[Any]) -> list[tuple[Any, Any]]:
    if len(values) % 2:
        raise PickleFault("a dict is given a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


def _append(machine: Machine) -> None:
    value = machine.pop()
    _extend(machine, [value])


def _appends(machine: Machine) -> None:
    _extend(machine, machine.pop_mark())


def _extend(machine: Machine, values: list[Any]) -> None:
    target = machine.peek()
    if type(target) is list:
        target.extend(values)
    elif not isinstance(target, Opaque):
        raise PickleFault(f"the pickle appends to {describe_kind(target)}")


def _setitem(machine: Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    _update(machine, [(key, value)])


def _setitems(machine: Machine) -> None:
    _update(machine, _pair_values(machine.pop_mark()))


def _update(machine: Machine, pairs: list[tuple[Any, Any]]) -> None:
    target = machine.peek()
    machine.objects -= len(pairs)
    if isinstance(target, PickledDict):
        target.items.extend(pairs)
    elif isinstance(target, Opaque):
        target.items = [] if target.items is None else target.items
        target.items.extend(pairs)
    else:
        raise PickleFault(f"the pickle sets an item of {describe_kind(target)}")


def _additems(machine: Machine) -> None:
    machine.pop_mark()
    if not isinstance(machine.peek(), Opaque):
        raise PickleFault(f"the pickle adds to {describe_kind(machine.peek())}")


def _frozenset(machine: Machine) -> None:
    machine.pop_mark()
    machine.push(Opaque("frozenset", known=True))


def _put_line(machine: Machine) -> None:
    machine.remember(_parse_slot(machine.read_line()))


def _get_line(machine: Machine) -> None:
    machine.recall(_parse_slot(machine.read_line()))


def _parse_slot(line: bytes) -> int:
    index = _parse_int(line)
    if index < 0:
        raise PickleFault(f"the pickle uses memo slot {index}")
    return index


def _put_slot(width: int) -> Callable[[Machine], None]:
    return lambda machine: machine.remember(machine.read_number(width))


def _get_slot(width: int) -> Callable[[Machine], None]:
    return lambda machine: machine.recall(machine.read_number(width))


def _memoize(machine: Machine) -> None:
    machine.remember(len(machine.memo))


def _dup(machine: Machine) -> None:
    machine.push(machine.peek())


def _global(machine: Machine) -> None:
    module, name = machine.read_line(), machine.read_line()
    try:
        machine.push(machine.find_global(module.decode("utf-8"), name.decode("utf-8")))
    except UnicodeDecodeError:
        raise PickleFault("the name of a global is not UTF-8") from None


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(machine.find_global(module, name))


def _reduce(machine: Machine) -> None:
    args, function = machine.pop(), machine.pop()
    machine.objects -= 1
    machine.push(call_known(machine, function, args))


def _newobj(machine: Machine) -> None:
    _, cls = machine.pop(), machine.pop()
    machine.objects -= 1
    machine.push(make_instance(machine, cls))


def _newobj_ex(machine: Machine) -> None:
    _, _, cls = machine.pop(), machine.pop(), machine.pop()
    machine.objects -= 1
    machine.push(make_instance(machine, cls))


def _inst(machine: Machine) -> None:
    _global(machine)
    cls = machine.pop()
    args = tuple(machine.pop_mark())
    machine.push(call_known(machine, cls, args))


def _obj(machine: Machine) -> None:
    values = machine.pop_mark()
    if not values:
        raise PickleFault("the pickle makes an object without a class")
    machine.push(call_known(machine, values[0], tuple(values[1:])))


def _build(machine: Machine) -> None:
    state = machine.pop()
    target = machine.peek()
    if isinstance(target, PickledArray):
        machine.replace_array(target, set_array_state(machine, state))
        return
    if isinstance(target, PickledDtype):
        set_dtype_state(target, state)
        return
    if isinstance(target, Opaque) and isinstance(state, PickledDict):
        # Every torch.nn.Module has these attributes; they are among the first keys of its state.
        target.module = {"_parameters", "_modules"} <= {key for key, _ in state.items[:50] if isinstance(key, str)}
    # The state of an OrderedDict is the `_metadata` of a state dict; an unknown object's stays unknown.
    if not isinstance(target, PickledDict | Opaque):
        raise PickleFault(f"the pickle sets the state of {describe_kind(target)}")


def _binpersid(machine: Machine) -> None:
    machine.objects -= 1
    machine.push(load_persistent(machine, machine.pop()))


OPCODES: dict[int, Callable[[Machine], None]] = {
    ord(opcode): handler
    for opcode, handler in {
        ".": stop,
        "\x80": _proto,
        "\x95": _frame,
        "(": _mark,
        "0": _pop,
        "1": _pop_mark,
        "2": _dup,
        "N": _push_constant(None),
        "\x88": _push_constant(True),
        "\x89": _push_constant(False),
        "I": _int_line,
        "L": _long_line,
        "F": _float_line,
        "J": _binint,
        "K": _binint1,
        "M": _binint2,
        "\x8a": _push_long(1),
        "\x8b": _push_long(4),
        "G": _binfloat,
        "X": _push_text(4),
        "\x8c": _push_text(1),
        "\x8d": _push_text(8),
        "V": _unicode_line,
        "S": _string_line,
        "T": _push_string(4),
        "U": _push_string(1),
        "B": _push_bytes(4, "bytes"),
        "C": _push_bytes(1, "bytes"),
        "\x8e": _push_bytes(8, "bytes"),
        "\x96": _push_bytes(8, "bytearray"),
        ")": _push_constant(()),
        "]": _push_empty(list),
        "}": _push_empty(PickledDict),
        "\x8f": _push_empty(lambda: Opaque("set", known=True)),
        "\x91": _frozenset,
        "\x90": _additems,
        "t": _tuple,
        "\x85": _push_tuple(1),
        "\x86": _push_tuple(2),
        "\x87": _push_tuple(3),
        "l": _list,
        "d": _dict,
        "a": _append,
        "e": _appends,
        "s": _setitem,
        "u": _setitems,
        "p": _put_line,
        "q": _put_slot(1),
        "r": _put_slot(4),
        "g": _get_line,
        "h": _get_slot(1),
        "j": _get_slot(4),
        "\x94": _memoize,
        "c": _global,
        "\x93": _stack_global,
        "R": _reduce,
        "\x81": _newobj,
        "\x92": _newobj_ex,
        "i": _inst,
        "o": _obj,
        "b": _build,
        "Q": _binpersid,
    }.items()
}
"""Every opcode that a checkpoint may use; persistent ids as text, extension codes and buffers are not among them."""
