"""Pickles read inertly: an opcode loop that builds plain data, imports nothing and calls nothing.

Source: the opcodes as documented by CPython's `pickletools`. A global is kept as its name. The few calls that torch's
own checkpoints are made of (rebuilding a tensor, a parameter, an ordered dict) become plain data; every other call
becomes an `Opaque` with the name of what would have been called. Nothing here can run code, whatever the bytes say,
and time and memory are bounded by budgets.

The loop is own rather than the standard library's: `find_class` alone does not bound it, and the C unpickler
allocates what a pickle asks for (a memo of 2^31 slots, a string of 1 TB) before it looks.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from remapkit.files.errors import MAX_DIMS, FileFault, shown, sized
from remapkit.formats.pickle.denylist import is_hostile, is_hostile_call
from remapkit.tensors.spec import DTYPE_BITS

MAX_TEXT = 1 << 16
"""Strings longer than this (an embedded config, a blob) are not kept, only their length."""
_MAX_LINE = 1 << 16
_MAX_STACK = 1 << 20
_MAX_INT_BYTES = 256
_BASE_OBJECTS = 2_000_000
_BASE_OPCODES = 20_000_000
_TEXT_OBJECT = 64
"""So many characters of text count as one object: a pickle may keep about 128 MB of it."""


class PickleFault(FileFault):
    """What is wrong with a pickle."""

    def __init__(self, title: str, help: tuple[str, ...] = ()) -> None:
        super().__init__("RK404", title, help=help)


@dataclass(frozen=True, slots=True)
class Global:
    """The name of something that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Opaque:
    """An object that was not built: only the name of its class or of the function that makes it.

    `items` are the pairs that the pickle sets on it, for subclasses of dict. `known` marks builtins (sets, bytes) and
    harmless library objects that every checkpoint may hold, `module` what has the state of a torch.nn.Module.
    """

    name: str
    known: bool = False
    items: list[tuple[Any, Any]] | None = None
    module: bool = False


@dataclass(slots=True, eq=False)
class Mapping:
    """A dict, as the pairs that the pickle sets: nothing is hashed, so no key can be made to collide."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that the pickle refers to: its key in the archive and how many elements the pickle says it has.

    `dtype` is None for an untyped storage, whose elements are bytes.
    """

    key: str
    dtype: str | None
    numel: int


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor as a view of a storage; offset and strides count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a pickle holds: the object, where the pickle ended, and the globals that it names.

    `named` are all of them, whether anything in the object uses them or not; `hostile` what only an attack names.

    `widths` has the bytes that an element of each storage takes, by its key; 0 where that is not known, or said in
    two ways.
    """

    value: Any
    end: int
    hostile: tuple[str, ...]
    named: tuple[str, ...] = ()
    widths: dict[str, int] = field(default_factory=dict)


DTYPES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "complex64": "C64",
    "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""torch's names of dtypes and safetensors'."""

STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
}
"""torch's classes of storages and the dtype of their elements."""

_KNOWN = {
    "builtins.set",
    "builtins.frozenset",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "builtins.object",
    "builtins.slice",
    "builtins.range",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "collections.Counter",
    "collections.deque",
}
_MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
_MARK = object()


class Machine:
    """The state of one pickle that is being read.

    `data` is read from `start` on, never beyond `end`. `entries` is how many tensors the file can hold at most (its
    storages): budgets grow with it.
    """

    __slots__ = ("data", "end", "hostile", "memo", "named", "objects", "opcodes", "pos", "stack", "widths")

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

    def run(self) -> Any:
        """Read to STOP and give the object."""
        step = 0
        while True:
            if self.pos >= self.end:
                raise PickleFault("the pickle ends without STOP: the file is truncated")
            opcode = self.data[self.pos]
            self.pos += 1
            handler = _OPCODES.get(opcode)
            if handler is None:
                raise _strange(opcode, self.pos - 1)
            if handler is _stop:
                return self.pop()
            handler(self)
            step += 1
            if step & 0x3FF == 0:
                self.check_budget(step)

    def check_budget(self, step: int) -> None:
        """Raise where the pickle is larger than any checkpoint."""
        if step > self.opcodes or len(self.memo) > self.objects or self.objects < 0:
            raise PickleFault(f"the pickle builds more than any checkpoint does ({step} opcodes): refused")
        if len(self.stack) > _MAX_STACK:
            raise PickleFault(f"the pickle's stack grows beyond {_MAX_STACK} values: refused")

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        start = self.pos
        if length > self.end - start:
            left = self.end - start
            raise PickleFault(f"the pickle asks for {sized(length)} where {sized(left)} are left")
        self.pos = start + length
        return self.data[start : start + length]

    def number(self, length: int) -> int:
        """The next `length` bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(length), "little")

    def line(self) -> bytes:
        """The bytes up to the next line end, which is skipped."""
        end = self.data.find(b"\n", self.pos, min(self.end, self.pos + _MAX_LINE))
        if end < 0:
            raise PickleFault("the pickle has a line without an end")
        line = self.data[self.pos : end]
        self.pos = end + 1
        self.objects -= len(line) // _TEXT_OBJECT
        return line

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleFault("the pickle takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleFault("the pickle takes a value from an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which is taken too."""
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                values = stack[at + 1 :]
                del stack[at:]
                self.objects -= 1
                return values
        raise PickleFault("the pickle looks for a mark that is not there")

    def remember(self, index: int) -> None:
        # Memo indices count values, so none can exceed the number of bytes before it.
        if index > self.pos:
            raise PickleFault(f"the pickle uses memo slot {index} within its first {self.pos} bytes")
        self.memo[index] = self.top()

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
_REFUSED = {
    "P": "a persistent id as text (protocol 0), which torch.save never writes",
    "\x82": "an extension code, which stands for a global",
    "\x83": "an extension code, which stands for a global",
    "\x84": "an extension code, which stands for a global",
    "\x97": "a buffer outside the pickle",
    "\x98": "a buffer outside the pickle",
}


def _strange(opcode: int, at: int) -> PickleFault:
    words = _REFUSED.get(chr(opcode))
    if words:
        return PickleFault(f"the pickle uses {words} (byte {at})")
    return PickleFault(f"0x{opcode:02x} is no opcode of pickles (byte {at}): the file is damaged")


def read_pickle(data: bytes | mmap, start: int, end: int, entries: int = 0) -> Found:
    """The object that a pickle holds, as plain data; raises `PickleFault`.

    >>> import pickle
    >>> found = read_pickle(pickle.dumps({"epoch": 3}), 0, 100)
    >>> found.value.items
    [('epoch', 3)]
    """
    machine = Machine(data, start, min(end, len(data)), entries)
    try:
        value = machine.run()
    except PickleFault as fault:
        if not machine.hostile:
            raise
        names = " and ".join(list(machine.hostile)[:5])
        raise PickleFault(f"the pickle names {names}, and is broken: {fault.title}", HOSTILE_HELP) from None
    except RecursionError:
        # Only Python itself can come to this, where it frees or hashes what is nested very deep.
        raise PickleFault("the pickle is nested too deeply") from None
    machine.check_budget(0)
    return Found(value, machine.pos, tuple(machine.hostile), tuple(machine.named), machine.widths)


HOSTILE_HELP = ("unpickling it would run that: treat the file as an attack; nothing was run here",)


# --- calls ------------------------------------------------------------------------------------------


def _call(machine: Machine, function: Any, args: Any) -> Any:
    if not isinstance(function, Global):
        if isinstance(function, Opaque):
            return Opaque(f"{function.name}()", function.known)
        raise PickleFault(f"the pickle calls {_kind(function)}")
    name = str(function)
    if not isinstance(args, tuple):
        raise PickleFault(f"the pickle calls {name} with {_kind(args)} for arguments")
    rebuild = _CALLS.get(name)
    if rebuild is not None:
        return rebuild(machine, args)
    if name in _MAPPINGS:
        return Mapping()
    if is_hostile_call(name):
        machine.hostile[name] = None
    if name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
        return _instance(machine, args[0] if args else None)
    return Opaque(name, known=name in _KNOWN)


def _instance(machine: Machine, cls: Any) -> Any:
    if not isinstance(cls, Global):
        return Opaque(_kind(cls))
    name = str(cls)
    if name in _MAPPINGS:
        return Mapping()
    return Opaque(name, known=name in _KNOWN)


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return f"a {value.name}" if " " in value.name else f"a {value.name} object"
    if isinstance(value, Global):
        return str(value)
    names: dict[type, str] = {Mapping: "a dict", Tensor: "a tensor", Storage: "a storage", type(None): "None"}
    return names.get(type(value), f"a {type(value).__name__}")


def kind(value: Any) -> str:
    """What a value is, for messages: `a argparse.Namespace object`, `a dict`, `an int`."""
    text = _kind(value)
    return "an" + text[1:] if text[:3] in ("a i", "a a", "a o", "a u", "a e") else text


def _rebuild_tensor(machine: Machine, args: tuple[Any, ...]) -> Tensor | Opaque:
    storage, offset, shape, stride = _arguments(args, 4, "_rebuild_tensor")
    return _tensor(machine, storage, None, offset, shape, stride)


def _rebuild_tensor_v2(machine: Machine, args: tuple[Any, ...]) -> Tensor | Opaque:
    storage, offset, shape, stride = _arguments(args, 4, "_rebuild_tensor_v2")
    return _lazy(args[6:7]) or _tensor(machine, storage, None, offset, shape, stride)


def _rebuild_tensor_v3(machine: Machine, args: tuple[Any, ...]) -> Tensor | Opaque:
    storage, offset, shape, stride, _, _, dtype = _arguments(args, 7, "_rebuild_tensor_v3")
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise PickleFault(f"a tensor's dtype is {_kind(dtype)}")
    name = DTYPES.get(dtype.name)
    if name is None:
        return Opaque(f"tensor of dtype torch.{dtype.name}")
    return _lazy(args[7:8]) or _tensor(machine, storage, name, offset, shape, stride)


def _lazy(metadata: tuple[Any, ...]) -> Opaque | None:
    """A tensor whose bytes are not its values: a lazy conjugate or negative."""
    if metadata and isinstance(metadata[0], Mapping):
        for key, value in metadata[0].items:
            if key in ("conj", "neg") and value:
                words = "conjugate" if key == "conj" else "negative"
                return Opaque(f"lazily {words} tensor (call .resolve_{key}() before it is saved)")
    return None


def _tensor(
    machine: Machine, storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any
) -> Tensor | Opaque:
    if isinstance(storage, Opaque):
        return Opaque(f"tensor over {storage.name}")
    if not isinstance(storage, Storage):
        raise PickleFault(f"a tensor's storage is {_kind(storage)}")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise PickleFault("a tensor over an untyped storage has no dtype")
    if isinstance(shape, Opaque) or isinstance(stride, Opaque):
        return Opaque("tensor of unknown shape")
    if type(offset) is not int or not _are_ints(shape) or not _are_ints(stride):
        raise PickleFault("a tensor's offset, shape or stride is not made of whole numbers")
    machine.objects -= 1 + len(shape) // 4
    return Tensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _are_ints(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) <= MAX_DIMS and all(type(n) is int for n in values)


def _arguments(args: tuple[Any, ...], count: int, name: str) -> tuple[Any, ...]:
    if len(args) < count:
        raise PickleFault(f"{name} is called with {len(args)} arguments, fewer than its {count}")
    return args[:count]


def _rebuild_parameter(machine: Machine, args: tuple[Any, ...]) -> Any:
    (data,) = _arguments(args, 1, "_rebuild_parameter")
    return data


def _rebuild_from_type(machine: Machine, args: tuple[Any, ...]) -> Any:
    """A subclass of Tensor, or a tensor with attributes: for torch's own two classes it is the tensor itself."""
    function, cls, inner = _arguments(args, 3, "_rebuild_from_type_v2")
    name = str(cls) if isinstance(cls, Global) else _kind(cls)
    rebuild = _CALLS.get(str(function)) if isinstance(function, Global) else None
    own = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
    if rebuild is None or name not in own or not isinstance(inner, tuple):
        return Opaque(name)
    return rebuild(machine, inner)


def _ordered_dict(machine: Machine, args: tuple[Any, ...]) -> Mapping:
    """OrderedDict(): empty, or from the list of pairs that Python 2 wrote."""
    found = Mapping()
    if args and isinstance(args[0], list | Mapping):
        # A copy: one list copied often is how a small pickle would fill the memory.
        machine.objects -= len(args[0]) if isinstance(args[0], list) else len(args[0].items)
        machine.check_budget(0)
    if args and isinstance(args[0], list):
        for pair in args[0]:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise PickleFault("an OrderedDict is made of something that is not a pair")
            found.items.append((pair[0], pair[1]))
    elif args and isinstance(args[0], Mapping):
        found.items.extend(args[0].items)
    return found


def _size(machine: Machine, args: tuple[Any, ...]) -> Any:
    return tuple(args[0]) if args and _are_ints(args[0]) else Opaque("torch.Size", known=True)


def _unread(name: str) -> Callable[[Machine, tuple[Any, ...]], Opaque]:
    return lambda machine, args: Opaque(name)


_CALLS: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _ordered_dict,
    "builtins.dict": _ordered_dict,
    "torch.Size": _size,
}
_CALLS |= {
    f"torch._utils.{name}": _unread(words)
    for name, words in {
        "_rebuild_qtensor": "quantized tensor",
        "_rebuild_sparse_tensor": "sparse tensor",
        "_rebuild_sparse_csr_tensor": "sparse tensor",
        "_rebuild_meta_tensor_no_storage": "meta tensor (it has no data)",
        "_rebuild_nested_tensor": "nested tensor",
        "_rebuild_wrapper_subclass": "tensor subclass",
        "_rebuild_device_tensor_from_numpy": "tensor of another device",
        "_rebuild_device_tensor_from_cpu_tensor": "tensor of another device",
        "_rebuild_xla_tensor": "tensor of another device",
    }.items()
}
_CALLS["torch.storage._load_from_bytes"] = _unread("tensor pickled without torch.save")
"""What the calls that a checkpoint is made of become; the kinds of tensors that are not read keep their names."""


def _persistent(machine: Machine, identity: Any) -> Any:
    """A storage: ('storage', class, key, location, numel), and in the legacy format a view of it."""
    if isinstance(identity, tuple) and identity[:1] == ("module",):
        return identity[1] if len(identity) > 1 else None
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleFault(f"a persistent id is {_kind(identity)}, not a storage")
    _, cls, key, _, numel = identity[:5]
    if not isinstance(key, str) or type(numel) is not int:
        raise PickleFault("a storage's key or size is of the wrong kind")
    if len(identity) == 6 and identity[5] is not None:
        return Opaque("torch storage that is a view of another")
    if not isinstance(cls, Global) or cls.module.partition(".")[0] != "torch":
        raise PickleFault(f"a storage's class is {_kind(cls)}")
    dtype = STORAGES.get(cls.name)
    if dtype is None and cls.name != "UntypedStorage":
        machine.widths[key] = _STRANGE_WIDTHS.get(cls.name, 0)
        return Opaque(str(cls))
    width = DTYPE_BITS[dtype] // 8 if dtype else 1
    if machine.widths.setdefault(key, width) != width:
        machine.widths[key] = 0
    return Storage(key, dtype, numel)


_STRANGE_WIDTHS = {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1}


# --- opcodes ------------------------------------------------------------------------------------------


def _stop(machine: Machine) -> None:
    """`run` ends here."""


def _proto(machine: Machine) -> None:
    version = machine.number(1)
    if version > 5:
        raise PickleFault(f"pickle protocol {version} is unknown")


def _frame(machine: Machine) -> None:
    length = machine.number(8)
    if length > machine.end - machine.pos:
        raise PickleFault(f"a frame of {sized(length)} where {sized(machine.end - machine.pos)} are left")


def _mark(machine: Machine) -> None:
    machine.stack.append(_MARK)


def _pop(machine: Machine) -> None:
    if not machine.stack:
        raise PickleFault("the pickle takes a value from an empty stack")
    machine.stack.pop()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _constant(value: Any) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(value)

    return push


def _int_line(machine: Machine) -> None:
    line = machine.line()
    if line in (b"00", b"01"):
        machine.push(line == b"01")
    else:
        machine.push(_parse_int(line))


def _parse_int(line: bytes) -> int:
    if len(line) > _MAX_INT_BYTES:
        raise PickleFault(f"a number of {len(line)} digits")
    try:
        return int(line.rstrip(b"L").decode("ascii"))
    except ValueError:
        raise PickleFault(f"{shown(repr(line), 40)} is no number") from None


def _long_line(machine: Machine) -> None:
    machine.push(_parse_int(machine.line()))


def _float_line(machine: Machine) -> None:
    line = machine.line()
    try:
        machine.push(float(line[:_MAX_INT_BYTES]))
    except ValueError:
        raise PickleFault(f"{shown(repr(line), 40)} is no number") from None


def _binint(machine: Machine) -> None:
    machine.push(int.from_bytes(machine.take(4), "little", signed=True))


def _binint1(machine: Machine) -> None:
    machine.push(machine.number(1))


def _binint2(machine: Machine) -> None:
    machine.push(machine.number(2))


def _long(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        length = machine.number(width)
        if length > _MAX_INT_BYTES:
            raise PickleFault(f"a number of {sized(length)}")
        machine.objects -= length // _TEXT_OBJECT
        machine.push(int.from_bytes(machine.take(length), "little", signed=True))

    return push


def _binfloat(machine: Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _text(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        length = machine.number(width)
        if length > MAX_TEXT:
            _skip(machine, length, "str")
            return
        machine.objects -= length // _TEXT_OBJECT
        try:
            machine.stack.append(machine.take(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise PickleFault("a string is not UTF-8") from None

    return push


def _skip(machine: Machine, length: int, name: str) -> None:
    if length > machine.end - machine.pos:
        machine.take(length)
    machine.pos += length
    machine.objects -= 1
    machine.push(Opaque(f"{name} of {sized(length)}", known=True))


def _bytes(width: int, name: str) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        _skip(machine, machine.number(width), name)

    return push


def _string(width: int) -> Callable[[Machine], None]:
    """Python 2's str: text where it is ASCII, which is all that names and storage keys are."""

    def push(machine: Machine) -> None:
        length = machine.number(width)
        if length > MAX_TEXT:
            _skip(machine, length, "str")
        else:
            machine.objects -= length // _TEXT_OBJECT
            machine.push(machine.take(length).decode("latin-1"))

    return push


def _string_line(machine: Machine) -> None:
    line = machine.line().strip()
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
        machine.push(machine.line().decode("raw-unicode-escape"))
    except UnicodeDecodeError:
        raise PickleFault("a string with a broken escape") from None


def _empty(kind: Callable[[], Any]) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.objects -= 1
        machine.stack.append(kind())

    return push


def _tuple(machine: Machine) -> None:
    machine.push(tuple(machine.pop_mark()))


def _tuple_of(count: int) -> Callable[[Machine], None]:
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
    machine.push(Mapping(_pairs(values)))


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    if len(values) % 2:
        raise PickleFault("a dict is given a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


def _append(machine: Machine) -> None:
    value = machine.pop()
    _extend(machine, [value])


def _appends(machine: Machine) -> None:
    _extend(machine, machine.pop_mark())


def _extend(machine: Machine, values: list[Any]) -> None:
    target = machine.top()
    if type(target) is list:
        target.extend(values)
    elif not isinstance(target, Opaque):
        raise PickleFault(f"the pickle appends to {_kind(target)}")


def _setitem(machine: Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    _update(machine, [(key, value)])


def _setitems(machine: Machine) -> None:
    _update(machine, _pairs(machine.pop_mark()))


def _update(machine: Machine, pairs: list[tuple[Any, Any]]) -> None:
    target = machine.top()
    machine.objects -= len(pairs)
    if isinstance(target, Mapping):
        target.items.extend(pairs)
    elif isinstance(target, Opaque):
        target.items = [] if target.items is None else target.items
        target.items.extend(pairs)
    else:
        raise PickleFault(f"the pickle sets an item of {_kind(target)}")


def _additems(machine: Machine) -> None:
    machine.pop_mark()
    if not isinstance(machine.top(), Opaque):
        raise PickleFault(f"the pickle adds to {_kind(machine.top())}")


def _frozenset(machine: Machine) -> None:
    machine.pop_mark()
    machine.push(Opaque("frozenset", known=True))


def _put_line(machine: Machine) -> None:
    machine.remember(_slot(machine.line()))


def _get_line(machine: Machine) -> None:
    machine.recall(_slot(machine.line()))


def _slot(line: bytes) -> int:
    index = _parse_int(line)
    if index < 0:
        raise PickleFault(f"the pickle uses memo slot {index}")
    return index


def _put(width: int) -> Callable[[Machine], None]:
    return lambda machine: machine.remember(machine.number(width))


def _get(width: int) -> Callable[[Machine], None]:
    return lambda machine: machine.recall(machine.number(width))


def _memoize(machine: Machine) -> None:
    machine.remember(len(machine.memo))


def _dup(machine: Machine) -> None:
    machine.push(machine.top())


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
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
    machine.push(_call(machine, function, args))


def _newobj(machine: Machine) -> None:
    _, cls = machine.pop(), machine.pop()
    machine.objects -= 1
    machine.push(_instance(machine, cls))


def _newobj_ex(machine: Machine) -> None:
    _, _, cls = machine.pop(), machine.pop(), machine.pop()
    machine.objects -= 1
    machine.push(_instance(machine, cls))


def _inst(machine: Machine) -> None:
    _global(machine)
    cls = machine.pop()
    args = tuple(machine.pop_mark())
    machine.push(_call(machine, cls, args))


def _obj(machine: Machine) -> None:
    values = machine.pop_mark()
    if not values:
        raise PickleFault("the pickle makes an object without a class")
    machine.push(_call(machine, values[0], tuple(values[1:])))


def _build(machine: Machine) -> None:
    state = machine.pop()
    target = machine.top()
    if isinstance(target, Opaque) and isinstance(state, Mapping):
        # What every torch.nn.Module has; the first keys of its state are enough to tell.
        target.module = {"_parameters", "_modules"} <= {key for key, _ in state.items[:50] if isinstance(key, str)}
    # The state of an OrderedDict is the `_metadata` of a state dict; an unknown object's stays unknown.
    if not isinstance(target, Mapping | Opaque):
        raise PickleFault(f"the pickle sets the state of {_kind(target)}")


def _binpersid(machine: Machine) -> None:
    machine.objects -= 1
    machine.push(_persistent(machine, machine.pop()))


_OPCODES: dict[int, Callable[[Machine], None]] = {
    ord(opcode): handler
    for opcode, handler in {
        ".": _stop,
        "\x80": _proto,
        "\x95": _frame,
        "(": _mark,
        "0": _pop,
        "1": _pop_mark,
        "2": _dup,
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "I": _int_line,
        "L": _long_line,
        "F": _float_line,
        "J": _binint,
        "K": _binint1,
        "M": _binint2,
        "\x8a": _long(1),
        "\x8b": _long(4),
        "G": _binfloat,
        "X": _text(4),
        "\x8c": _text(1),
        "\x8d": _text(8),
        "V": _unicode_line,
        "S": _string_line,
        "T": _string(4),
        "U": _string(1),
        "B": _bytes(4, "bytes"),
        "C": _bytes(1, "bytes"),
        "\x8e": _bytes(8, "bytes"),
        "\x96": _bytes(8, "bytearray"),
        ")": _constant(()),
        "]": _empty(list),
        "}": _empty(Mapping),
        "\x8f": _empty(lambda: Opaque("set", known=True)),
        "\x91": _frozenset,
        "\x90": _additems,
        "t": _tuple,
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "l": _list,
        "d": _dict,
        "a": _append,
        "e": _appends,
        "s": _setitem,
        "u": _setitems,
        "p": _put_line,
        "q": _put(1),
        "r": _put(4),
        "g": _get_line,
        "h": _get(1),
        "j": _get(4),
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
