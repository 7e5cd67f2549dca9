"""Targets that a plan is checked against: a model, a manifest or a checkpoint, each reduced to its header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.arguments import describe_value
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.formats.nested_memory import join_nested
from remapkit.models.reference import resolve_reference
from remapkit.registry.installed import packs
from remapkit.registry.load import read_config
from remapkit.sources.declared import read_declared, read_declared_config, read_header, resolve_declared_path
from remapkit.sources.mounts import is_path_mapping
from remapkit.tensors.spec import StateDictSpec, TensorSpec

if TYPE_CHECKING:
    from remapkit.diagnostics.source import Text
    from remapkit.rules.model import CompiledRules


@dataclass(frozen=True, slots=True)
class TargetRef:
    """A target by name: `model` with its arguments and config, or `keys`, the path of a manifest or checkpoint.

    `declared` is set if only a rule file outside the installed packs names it: such a file is untrusted, so it must
    not choose what is imported and called, and messages about its manifest do not show the content.
    """

    model: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    config: Path | str | Mapping[str, Any] | None = None
    keys: Path | None = None
    declared: bool = False

    def __str__(self) -> str:
        if self.model is None:
            return str(self.keys)
        args = ", ".join(f"{key}={value!r}" for key, value in self.args.items())
        return f"{self.model}({args})" if args else self.model


def find_declared_target(rules: CompiledRules) -> TargetRef | None:
    """Return the target that a rule file declares; of a route, that of the last."""
    rules = rules.last
    written = rules.file.target
    if written is None:
        return None
    if written.model is not None or written.config is not None:
        declared = not _is_installed(rules.file.path)
        config = read_declared_config(rules.file, written.config) if written.config is not None else None
        model = written.model.value if written.model is not None else _name_class(config or {}, written.config)
        return TargetRef(model, dict(written.model_args), config, declared=declared)
    if written.keys is None:
        return None
    return TargetRef(keys=resolve_declared_path(rules.file, written.keys), declared=True)


def _name_class(config: Mapping[str, Any], written: Text | None) -> str:
    """Return the reference of the class that a config names; raises `UsageError` (RK611) if it names none.

    >>> _name_class({"architectures": ["GPT2Model"]}, None), _name_class({"_class_name": "AutoencoderKL"}, None)
    ('py:transformers:GPT2Model', 'py:diffusers:AutoencoderKL')
    """
    listed = config.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else None
    for library, name in (("transformers", named), ("diffusers", config.get("_class_name"))):
        if isinstance(name, str) and name.isascii() and name.isidentifier():
            return f"py:{library}:{name}"
    title = "the declared config does not name the class of its model, under `architectures` or `_class_name`"
    help = ("name it too: target: {model: 'py:package.module:Class', config: FILE}",)
    raise UsageError(Diagnostic("RK611", title, (Label(written.span),) if written is not None else (), help))


def _is_installed(path: Path | None) -> bool:
    """Whether a rule file is an installed pack, which is as trusted as installed code."""
    return path is not None and any(path.resolve() == pack.path.resolve() for pack in packs())


def diagnose_code_target(reference: TargetRef, option: str = "--model") -> Diagnostic | None:
    """Return why a declared target is not imported: a rule file could make any function of any module be called.

    `option` is the option of the current command that names a target.
    """
    if not reference.declared or reference.model is None or not reference.model.startswith("py:"):
        return None
    title = f"the rule file names code to import and call: {reference.model}"
    config = f" {option}-config FILE" if reference.config is not None else ""
    help = [f"if you trust it, pass {option} {reference.model}{config}"]
    if option == "--model":
        help.append("a manifest needs no code: --target-keys FILE")
    return Diagnostic("RK612", title, help=tuple(help))


def read_target_header(reference: TargetRef) -> StateDictSpec:
    """Return the header of a target: build its model on the meta device, or read the header of its file."""
    if reference.model is None:
        assert reference.keys is not None
        return read_declared(reference.keys) if reference.declared else read_header(reference.keys)
    factory = import_factory(reference)
    from remapkit.models.build import build_on_meta
    from remapkit.tensors.from_torch import header_of

    config = read_config(reference.config) if reference.config else None
    return header_of(build_on_meta(factory, reference.model, reference.args, config), name=str(reference))


def read_config_target(rules: CompiledRules) -> StateDictSpec | str | None:
    """Return the header of the model whose config a rule file declares, or the reason why it is not built.

    None if no config is declared, or a manifest beside it, which needs no model. Only what may be imported is, and
    only if it is installed. Raises `UsageError` for a config or a model that is wrong.
    """
    written = rules.file.target
    if written is None or written.config is None or written.keys is not None:
        return None
    reference = find_declared_target(rules)
    assert reference is not None and reference.model is not None
    said = f"{rules.name} declares the model of {written.config.value}"
    if diagnose_code_target(reference) is not None:
        return f"{said}, which a rule file may not import: --model {reference.model} --model-config FILE"
    library = reference.model.split(":")[1].partition(".")[0] if reference.model.startswith("py:") else None
    if library is not None and find_spec(library) is None:
        return f"{said}, but {library} is not installed"
    return read_target_header(reference)


def import_factory(reference: TargetRef, option: str = "--model") -> Callable[..., Any]:
    """Import the class or factory of a target's model: any that the user named, or one that a rule file may name.

    A rule file may name a module class of a plugin, never a function. Raises `UsageError`: RK612, RK606, and
    what `resolve_reference` raises.
    """
    assert reference.model is not None
    if problem := diagnose_code_target(reference, option):
        raise UsageError(problem)
    factory = resolve_reference(reference.model)
    if reference.declared:
        from torch import nn

        if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
            title = f"the rule file's target {reference} is not a class derived from torch.nn.Module"
            help = (f"if you trust it, pass {option} {reference.model}",)
            raise UsageError(Diagnostic("RK606", title, help=help))
    return factory


def header(thing: object) -> StateDictSpec:
    """Return the header of any source that the library accepts.

    A path (checkpoint or manifest), several files (see `open_checkpoint`), an open `Reader`, a `StateDictSpec`, a
    mapping of `TensorSpec`s, a state dict of tensors (nested dicts are joined with dots, as in files), or a
    `torch.nn.Module`, on the meta device or not.

    Raises `UnreadableCheckpoint` for a file that cannot be read, `FailedCheck` for a mapping without tensors, and
    `TypeError` for anything else.

    >>> header({"weight": TensorSpec("F32", (2, 2))})["weight"].shape
    (2, 2)
    """
    if isinstance(thing, StateDictSpec):
        return thing
    if isinstance(thing, str | Path | list | tuple) or is_path_mapping(thing):
        return read_header(thing)
    if hasattr(thing, "chunks") and hasattr(thing, "header"):
        spec = thing.header()  # an open reader
        assert isinstance(spec, StateDictSpec)
        return spec
    if isinstance(thing, Mapping) and all(isinstance(value, TensorSpec) for value in thing.values()):
        return StateDictSpec(dict(thing))
    from torch import nn

    from remapkit.tensors.from_torch import explain_no_tensors, get_shape, header_of

    if isinstance(thing, nn.Module | Mapping):
        joined = join_nested(thing, get_shape) if isinstance(thing, Mapping) else None
        spec = header_of(thing if joined is None else joined.tensors)
        if isinstance(thing, Mapping) and not spec:
            raise FailedCheck(explain_no_tensors(thing))
        return spec
    if isinstance(thing, type) and issubclass(thing, nn.Module):
        raise TypeError(f"the class {thing.__name__} has no header: build it first, for example on the meta device")
    what = "a path, a header, a state dict or a module"
    raise TypeError(f"a header is read from {what}, got {describe_value(thing)}")
