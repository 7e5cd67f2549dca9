"""Hold an adapter against the model that it is for: which of its modules the model has, and whether the shapes fit.

The result is the header that the adapter would have if all of it fitted, so that it is compared as weights are with
the header of a model. Values are not read: an adapter whose up matrices are zeros fits, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from remapkit.adapters.derive import find_key, store_magnitude
from remapkit.adapters.names import Adapter, Module, get_module, read_adapter
from remapkit.adapters.push import Stored, fits, shape_magnitude
from remapkit.companions.formats import Role
from remapkit.diagnostics.errors import UsageError
from remapkit.tensors.families import mask_indices
from remapkit.tensors.roots import list_roots
from remapkit.tensors.spec import StateDictSpec, TensorSpec

_BIASES: tuple[Role, ...] = ("diff_bias", "up_bias")


@dataclass(frozen=True, slots=True)
class ModelFit:
    """How an adapter fits a model: `fitting` is its header with the shapes that fit, without what the model lacks.

    `root` is where the model's keys were found in its header. `untouched` are the weights that it does not change:
    matrices and convolutions. `misfits` says what is missing, or of another shape than the model's weights need.
    """

    adapter: Adapter
    fitting: StateDictSpec
    root: str
    untouched: tuple[str, ...]
    misfits: tuple[str, ...] = ()

    @property
    def modules(self) -> int:
        """The number of modules that the adapter changes."""
        return len(self.adapter.modules) + len(self.adapter.whole)

    def count_untouched(self) -> list[tuple[str, int]]:
        """Return the families of modules that are not changed, with their numbers, the largest first."""
        return Counter(mask_indices(get_module(key)) for key in self.untouched).most_common()


def fit_to_model(
    header: StateDictSpec, model: StateDictSpec, prefix: str | None = None, *, lenient: bool = False
) -> ModelFit:
    """Hold the header of an adapter against that of a model; with `prefix`, only modules with this prefix.

    `lenient` leaves shapes that fit no weight as they are. Raises what `read_adapter` raises.

    >>> model = StateDictSpec({"q.weight": TensorSpec("F32", (8, 6)), "k.weight": TensorSpec("F32", (8, 6))})
    >>> shapes = {"q.lora_A.weight": (2, 5), "q.lora_B.weight": (8, 2)}
    >>> fit = fit_to_model(StateDictSpec({fqn: TensorSpec("BF16", shape) for fqn, shape in shapes.items()}), model)
    >>> fit.fitting["q.lora_A.weight"].shape, fit.untouched
    ((2, 6), ('k.weight',))
    """
    adapter, model, root = _read_below(header, model, prefix)
    foreign = {*adapter.unknown, *(fqn for fqns in adapter.outside.values() for fqn in fqns)}
    fitting = {fqn: spec for fqn, spec in header.items() if fqn not in foreign}
    misfits: list[str] = []
    for module in adapter.modules:
        needed = dict(_list_fitting(module, adapter, model))
        misfits += _list_misfits(module, header, needed)
        if not lenient:
            fitting.update(needed)
        for role in _BIASES:
            if (fqn := module.tensors.get(role)) is not None and find_key(module, role) not in model:
                del fitting[fqn]
    for fqn, key in adapter.whole.items():
        if header[fqn].shape != model[key].shape:
            misfits.append(f"{fqn} must be {list(model[key].shape)}, got {list(header[fqn].shape)}")
        fitting[fqn] = replace(header[fqn], shape=header[fqn].shape if lenient else model[key].shape)
    touched = {*(module.weight for module in adapter.modules), *adapter.whole.values()}
    untouched = tuple(key for key, spec in model.items() if len(spec.shape) > 1 and key not in touched)
    return ModelFit(adapter, StateDictSpec(fitting, name=model.name), root, untouched, tuple(misfits))


def _list_misfits(module: Module, header: StateDictSpec, needed: Mapping[str, TensorSpec]) -> Iterator[str]:
    """Yield what a module lacks, and what has another shape than is needed."""
    for fqn, spec in needed.items():
        if fqn not in header:
            yield f"{fqn} is missing: an adapter needs both of its matrices"
        elif header[fqn].shape != spec.shape:
            yield f"{fqn} must be {list(spec.shape)}, got {list(header[fqn].shape)}"


def _read_below(
    header: StateDictSpec, model: StateDictSpec, prefix: str | None
) -> tuple[Adapter, StateDictSpec, str]:
    """Return the adapter by the keys of the model, or by those below the root where most of its modules are."""
    try:
        return read_adapter(header, model, prefix), model, ""
    except UsageError as error:
        if error.diagnostics[0].code != "RK720":
            raise
        found = []
        for root in (each.path for each in list_roots(model)):
            start = f"{root}."
            inside = {key.removeprefix(start): spec for key, spec in model.items() if key.startswith(start)}
            below = StateDictSpec(inside, name=model.name)
            try:
                found.append((read_adapter(header, below, prefix), below, root))
            except UsageError:
                continue
        if not found:
            raise
        return min(found, key=lambda each: len(each[0].unknown))


def _list_fitting(
    module: Module, adapter: Adapter, model: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, TensorSpec]]:
    """Yield the tensors of a module with the shapes that fit its weight; a matrix that is missing too."""
    own, header, weight = module.tensors, adapter.header, model[module.weight]
    rows = weight.shape[:1]
    if ("up" in own or "down" in own) and not module.is_loose and not _do_matrices_fit(module, header, weight):
        up, down = own.get("up"), own.get("down")
        rank = header[up].shape[1:2] if up else header[down].shape[:1] if down else ()
        dtype = header[up or down or ""].dtype
        yield up or _name_matrix(module, adapter, "up"), TensorSpec(dtype, (*rows, *rank))
        yield down or _name_matrix(module, adapter, "down"), TensorSpec(dtype, (*rank, *weight.shape[1:]))
    bias = model.get(find_key(module, "up_bias"), TensorSpec("F32", rows)).shape
    if (fqn := own.get("magnitude")) is not None and not fits(stored := store_magnitude(module, header), weight):
        yield fqn, replace(header[fqn], shape=shape_magnitude(weight.shape, is_tall=stored.is_tall))
    wanted: dict[Role, tuple[int, ...]] = {"diff_bias": bias, "up_bias": bias, "alpha": ()}
    for role, shape in wanted.items():
        if (fqn := own.get(role)) is not None and header[fqn].numel != TensorSpec("F32", shape).numel:
            yield fqn, replace(header[fqn], shape=shape)
    if (fqn := own.get("diff")) is not None:
        yield fqn, replace(header[fqn], shape=weight.shape)


def _name_matrix(module: Module, adapter: Adapter, role: Role) -> str:
    return f"{module.name}.{adapter.style.leaf(role)}"


def fits_whole(adapter: Adapter, model: StateDictSpec) -> bool:
    """Return whether the matrices of every module of an adapter fit the weights of its model."""
    return all(
        module.is_loose
        or "up" not in module.tensors
        or _do_matrices_fit(module, adapter.header, model[module.weight])
        for module in adapter.modules
    )


def _do_matrices_fit(module: Module, header: StateDictSpec, weight: TensorSpec) -> bool:
    own = module.tensors
    return "up" in own and "down" in own and fits(Stored("lora", header[own["up"]], header[own["down"]]), weight)
