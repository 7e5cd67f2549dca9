"""The few callables of state dicts, which the pickle machine carries out itself, on placeholders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remapkit.files.errors import MAX_DIMS
from remapkit.formats.pickle import arrays
from remapkit.formats.pickle.denylist import is_hostile_call
from remapkit.formats.pickle.machine import Machine
from remapkit.formats.pickle.values import (
    KNOWN,
    MAPPINGS,
    QUANTIZED_WIDTHS,
    Global,
    Opaque,
    PickledDict,
    PickledStorage,
    PickledTensor,
    PickleFault,
    describe_kind,
)
from remapkit.tensors.dtypes import BY_STORAGE, BY_TORCH_NAME, DTYPE_BITS, PACKED_TORCH_NAMES


def call_known(machine: Machine, function: Any, args: Any) -> Any:
    if not isinstance(function, Global):
        if isinstance(function, Opaque):
            return Opaque(f"{function.name}()", function.known)
        raise PickleFault(f"the pickle calls {describe_kind(function)}")
    name = str(function)
    if not isinstance(args, tuple):
        raise PickleFault(f"the pickle calls {name} with {describe_kind(args)} for arguments")
    rebuild = _CALLS.get(name)
    if rebuild is not None:
        return rebuild(machine, args)
    if name in MAPPINGS:
        return PickledDict()
    if is_hostile_call(name):
        machine.hostile[name] = None
    if name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
        return make_instance(machine, args[0] if args else None)
    return Opaque(name, known=name in KNOWN)


def make_instance(machine: Machine, cls: Any) -> Any:
    if not isinstance(cls, Global):
        return Opaque(describe_kind(cls))
    name = str(cls)
    if name in MAPPINGS:
        return PickledDict()
    return Opaque(name, known=name in KNOWN)


def _rebuild_tensor(machine: Machine, args: tuple[Any, ...]) -> PickledTensor | Opaque:
    storage, offset, shape, stride = _check_arguments(args, 4, "_rebuild_tensor")
    return _make_tensor(machine, storage, None, offset, shape, stride)


def _rebuild_tensor_v2(machine: Machine, args: tuple[Any, ...]) -> PickledTensor | Opaque:
    storage, offset, shape, stride = _check_arguments(args, 4, "_rebuild_tensor_v2")
    return _find_lazy(args[6:7]) or _make_tensor(machine, storage, None, offset, shape, stride)


def _rebuild_tensor_v3(machine: Machine, args: tuple[Any, ...]) -> PickledTensor | Opaque:
    storage, offset, shape, stride, _, _, dtype = _check_arguments(args, 7, "_rebuild_tensor_v3")
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise PickleFault(f"a tensor's dtype is {describe_kind(dtype)}")
    name = BY_TORCH_NAME.get(dtype.name)
    packed = "F4" if dtype.name == PACKED_TORCH_NAMES["F4"] and shape else None
    if name is None and packed is None:
        return Opaque(f"tensor of dtype torch.{dtype.name}")
    made = _find_lazy(args[7:8]) or _make_tensor(machine, storage, name or "U8", offset, shape, stride)
    if isinstance(made, PickledTensor):
        made.packed = packed
    return made


def _find_lazy(metadata: tuple[Any, ...]) -> Opaque | None:
    """An `Opaque` for a tensor whose bytes are not its values: a lazy conjugate or negative."""
    if metadata and isinstance(metadata[0], PickledDict):
        for key, value in metadata[0].items:
            if key in ("conj", "neg") and value:
                words = "conjugate" if key == "conj" else "negative"
                return Opaque(f"lazily {words} tensor (call .resolve_{key}() before it is saved)")
    return None


def _make_tensor(
    machine: Machine, storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any
) -> PickledTensor | Opaque:
    if isinstance(storage, Opaque):
        return Opaque(f"tensor over {storage.name}")
    if not isinstance(storage, PickledStorage):
        raise PickleFault(f"a tensor's storage is {describe_kind(storage)}")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise PickleFault("a tensor over an untyped storage has no dtype")
    if isinstance(shape, Opaque) or isinstance(stride, Opaque):
        return Opaque("tensor of unknown shape")
    if type(offset) is not int or not _are_ints(shape) or not _are_ints(stride):
        raise PickleFault("a tensor's offset, shape or stride is not made of whole numbers")
    machine.objects -= 1 + len(shape) // 4
    return PickledTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _are_ints(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) <= MAX_DIMS and all(type(n) is int for n in values)


def _check_arguments(args: tuple[Any, ...], count: int, name: str) -> tuple[Any, ...]:
    if len(args) < count:
        raise PickleFault(f"{name} is called with {len(args)} arguments, fewer than its {count}")
    return args[:count]


def _rebuild_parameter(machine: Machine, args: tuple[Any, ...]) -> Any:
    (data,) = _check_arguments(args, 1, "_rebuild_parameter")
    return data


def _rebuild_from_type(machine: Machine, args: tuple[Any, ...]) -> Any:
    """A subclass of Tensor, or a tensor with attributes: for torch's own two classes it is the tensor itself."""
    function, cls, inner = _check_arguments(args, 3, "_rebuild_from_type_v2")
    name = str(cls) if isinstance(cls, Global) else describe_kind(cls)
    rebuild = _CALLS.get(str(function)) if isinstance(function, Global) else None
    own = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
    if rebuild is None or name not in own or not isinstance(inner, tuple):
        return Opaque(name)
    return rebuild(machine, inner)


def _rebuild_ordered_dict(machine: Machine, args: tuple[Any, ...]) -> PickledDict:
    """OrderedDict(): empty, or from the list of pairs that Python 2 wrote."""
    ordered = PickledDict()
    if args and isinstance(args[0], list | PickledDict):
        # A copy: one list copied often is how a small pickle would fill the memory.
        machine.objects -= len(args[0]) if isinstance(args[0], list) else len(args[0].items)
        machine.check_budget(0)
    if args and isinstance(args[0], list):
        for pair in args[0]:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise PickleFault("an OrderedDict is made of something that is not a pair")
            ordered.items.append((pair[0], pair[1]))
    elif args and isinstance(args[0], PickledDict):
        ordered.items.extend(args[0].items)
    return ordered


def _rebuild_size(machine: Machine, args: tuple[Any, ...]) -> Any:
    return tuple(args[0]) if args and _are_ints(args[0]) else Opaque("torch.Size", known=True)


def _make_opaque(name: str) -> Callable[[Machine, tuple[Any, ...]], Opaque]:
    return lambda machine, args: Opaque(name)


_CALLS: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _rebuild_ordered_dict,
    "builtins.dict": _rebuild_ordered_dict,
    "torch.Size": _rebuild_size,
    **arrays.CALLS,
}


_CALLS["torch.storage._load_from_bytes"] = _make_opaque("tensor pickled without torch.save")
"""What the calls in checkpoints become; unsupported kinds of tensors keep only their names."""


def load_persistent(machine: Machine, identity: Any) -> Any:
    """A storage: ('storage', class, key, location, numel), and in the legacy format a view of it."""
    if isinstance(identity, tuple) and identity[:1] == ("module",):
        return identity[1] if len(identity) > 1 else None
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleFault(f"a persistent id is {describe_kind(identity)}, not a storage")
    _, cls, key, _, numel = identity[:5]
    if not isinstance(key, str) or type(numel) is not int:
        raise PickleFault("a storage's key or size is of the wrong kind")
    if len(identity) == 6 and identity[5] is not None:
        return Opaque("torch storage that is a view of another")
    if not isinstance(cls, Global) or cls.module.partition(".")[0] != "torch":
        raise PickleFault(f"a storage's class is {describe_kind(cls)}")
    dtype = BY_STORAGE.get(cls.name)
    if dtype is None and cls.name != "UntypedStorage":
        machine.widths[key] = QUANTIZED_WIDTHS.get(cls.name, 0)
        return Opaque(str(cls))
    width = DTYPE_BITS[dtype] // 8 if dtype else 1
    if machine.widths.setdefault(key, width) != width:
        machine.widths[key] = 0
    return PickledStorage(key, dtype, numel)


_CALLS |= {
    f"torch._utils.{name}": _make_opaque(words)
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
