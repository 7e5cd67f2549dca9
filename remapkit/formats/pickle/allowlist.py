"""The globals that state dicts consist of: `--strict-pickle` checks every name of a pickle against this list."""

from __future__ import annotations

from remapkit.formats.pickle.values import QUANTIZED_WIDTHS
from remapkit.tensors.dtypes import BY_STORAGE, BY_TORCH_NAME

_TENSORS = {
    f"torch._utils.{name}"
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
        "_rebuild_qtensor",
        "_rebuild_sparse_tensor",
        "_rebuild_meta_tensor_no_storage",
        "_rebuild_nested_tensor",
    )
}
_CLASSES = {
    "torch._tensor._rebuild_from_type_v2",
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.Size",
    "torch.device",
    "torch.storage.UntypedStorage",
    "torch.storage.TypedStorage",
    "torch.UntypedStorage",
    "torch.serialization._get_layout",
}
_STORAGES = {f"torch.{name}" for name in (*BY_STORAGE, *QUANTIZED_WIDTHS)}
_DTYPES = {
    f"torch.{name}"
    for name in (
        *BY_TORCH_NAME,
        *("complex32", "float4_e2m1fn_x2"),
        *("qint8", "quint8", "qint32", "quint4x2", "quint2x4", "per_tensor_affine", "per_channel_affine"),
        *("strided", "sparse_coo", "contiguous_format", "preserve_format"),
    )
}
_CONTAINERS = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "collections.deque",
    "_codecs.encode",
}
_BUILTINS = {
    f"builtins.{name}"
    for name in (
        *(
            "dict",
            "list",
            "tuple",
            "set",
            "frozenset",
            "int",
            "float",
            "complex",
            "bool",
            "str",
            "bytes",
            "bytearray",
        ),
        *("slice", "range"),
    )
}
_ARRAYS = {
    f"numpy.{package}.multiarray.{name}" for package in ("core", "_core") for name in ("_reconstruct", "scalar")
}
_ARRAYS |= {f"numpy.{package}.numeric._frombuffer" for package in ("core", "_core")}
_ARRAYS |= {"numpy.ndarray", "numpy.dtype"}

ALLOWED = frozenset(_TENSORS | _CLASSES | _STORAGES | _DTYPES | _CONTAINERS | _BUILTINS | _ARRAYS)
"""By full name. Everything else is refused, so that no list of dangerous globals has to be complete."""


def is_allowed(name: str) -> bool:
    """Whether a state dict may name this global.

    >>> is_allowed("collections.OrderedDict"), is_allowed("trace.Trace.run"), is_allowed("torch.hub.load")
    (True, False, False)
    """
    return name in ALLOWED or (name.startswith("numpy.dtypes.") and name.count(".") == 2)
