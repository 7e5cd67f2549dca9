"""What the inert pickle machine puts on its stack: placeholders, storages, tensors. Nothing is ever imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from remapkit.files.errors import FileFault

MAX_TEXT = 1 << 16
"""Strings longer than this (an embedded config, a blob) are not kept, only their length."""


class PickleFault(FileFault):
    """A fault of a pickle (RK404)."""

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
class PickledBytes(Opaque):
    """Bytes that were not read: their place in the pickle, and their number; `kept` are the few that were.

    `is_text` says that they are UTF-8 text of a character for each byte: protocol 2 has no other way to write bytes.
    `size` is the number of bytes that it stands for, once counted; -1 if it stands for none.
    """

    start: int = 0
    length: int = 0
    size: int = 0
    kept: bytes | None = None
    is_text: bool = False
    is_counted: bool = False


@dataclass(slots=True, eq=False)
class PickledDtype(Opaque):
    """A dtype of numpy; `problem` says what is wrong with an array of it: `of strings`."""

    code: str | None = None
    problem: str = ""


@dataclass(slots=True, eq=False)
class PickledArray(Opaque):
    """An array of numpy until its state is set; then a tensor takes its place, also in the memo's `slots`."""

    slots: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class PickledDict:
    """A dict, as the pairs that the pickle sets: nothing is hashed, so no key can be made to collide."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A storage that the pickle refers to: its key in the archive and its number of elements according to the pickle.

    `dtype` is None for an untyped storage, whose elements are bytes. An array of numpy has its `data` in the pickle,
    and a number for a key.
    """

    key: str | int
    dtype: str | None
    numel: int
    data: PickledBytes | None = None


@dataclass(slots=True, eq=False)
class PickledTensor:
    """A tensor as a view of a storage; offset and strides count elements.

    `packed` is the dtype of elements below a byte: those counted here are then bytes, of two elements each.
    """

    storage: PickledStorage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    packed: str | None = None


@dataclass(frozen=True, slots=True)
class PickleContent:
    """The content of a pickle: the object, where the pickle ended, and the globals that it names.

    `named` are all of them, whether the object uses them or not; `hostile` those that only an attack names.

    `widths` has the bytes that an element of each storage takes, by its key; 0 where that is unknown or
    contradictory. `arrays` is the number of arrays of numpy; positions in the pickle count from `origin` in the file,
    or in the bytes that it was inflated to. `is_plain` marks a pickle that torch.save did not write.
    """

    value: Any
    end: int
    hostile: tuple[str, ...]
    named: tuple[str, ...] = ()
    widths: dict[str, int] = field(default_factory=dict)
    arrays: int = 0
    origin: int | bytes = 0
    is_plain: bool = False


QUANTIZED_WIDTHS = {
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}
"""torch's storages of quantized elements, which are not read, and the bytes of an element."""

KNOWN = {
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
"""Builtins and harmless library objects that every checkpoint may have; they are ignored without a note."""

MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
"""Subclasses of dict whose items are read like those of a dict."""

MARK = object()
"""The opcode MARK on the stack: where the arguments of a variable-length opcode begin."""

HOSTILE_HELP = ("unpickling it would run that: treat the file as an attack; nothing was run here",)


def describe_kind(value: Any) -> str:
    """What a value is, always with the article `a`."""
    if isinstance(value, Opaque):
        return f"a {value.name}" if " " in value.name else f"a {value.name} object"
    if isinstance(value, Global):
        return str(value)
    names: dict[type, str] = {
        PickledDict: "a dict",
        PickledTensor: "a tensor",
        PickledStorage: "a storage",
        type(None): "None",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def describe_with_article(value: Any) -> str:
    """What a value is, for messages: `an argparse.Namespace object`, `a dict`, `an int`."""
    text = describe_kind(value)
    return "an" + text[1:] if text[:3] in ("a i", "a a", "a o", "a u", "a e") else text
