"""Model references, `wan.vae:WanVAE` and `py:package.module:Class`, resolved to classes and factories."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import suggest_name
from remapkit.models.isolation import isolate_guest
from remapkit.registry.installed import Plugin, add_current_folder, find_folder, plugins


def resolve_reference(reference: str) -> Callable[..., Any]:
    """Return the class or factory that `plugin.module:attr` or `py:package.module:attr` names; imports the module.

    >>> resolve_reference("py:collections:OrderedDict").__name__
    'OrderedDict'
    """
    value = resolve_value(reference)
    if not callable(value):
        raise UsageError(
            Diagnostic(
                "RK606",
                f"{reference} is a {type(value).__name__}, which cannot be called",
                help=("name a class derived from torch.nn.Module, or a function that returns one",),
            )
        )
    return value  # type: ignore[no-any-return]


def resolve_value(reference: str) -> Any:
    """Return whatever `plugin.module:attr` or `py:package.module:attr` names; imports the module."""
    module_name, attribute = _split_reference(reference)
    if reference.startswith("py:"):
        add_current_folder()
    try:
        with isolate_guest():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(_diagnose_import(reference, module_name, error)) from error
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}"
        raise UsageError(
            Diagnostic("RK604", f"{reference}: importing {module_name} failed", notes=(cause,))
        ) from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UsageError(_diagnose_attribute(reference, module_name, value, part))
        value = getattr(value, part)
    return value


def _split_reference(reference: str) -> tuple[str, str]:
    """Return the full name of the module, and the attribute within it."""
    if reference.startswith("py:"):
        module, _, attribute = reference.removeprefix("py:").partition(":")
        if module and attribute:
            return module, attribute
        raise UsageError(_diagnose_reference(reference))
    dotted, _, attribute = reference.partition(":")
    name, _, rest = dotted.partition(".")
    if not name or not attribute:
        raise UsageError(_diagnose_reference(reference))
    package = _find_plugin(name, reference).package
    return (f"{package}.{rest}" if rest else package), attribute


def _diagnose_reference(reference: str) -> Diagnostic:
    return Diagnostic(
        "RK603",
        f"{reference!r} does not name a model",
        help=("write plugin.module:Class (wan.vae:WanVAE), or py:package.module:Class for anything importable",),
    )


def _find_plugin(name: str, reference: str) -> Plugin:
    known = {plugin.name: plugin for plugin in plugins()}
    if name in known:
        return known[name]
    help = [suggest_name(name, known, f"installed plugins: {', '.join(known) or 'none'}")]
    if find_folder(name) is not None:
        help.append(f"for the importable package write py:{reference}")
    raise UsageError(Diagnostic("RK603", f"{reference}: there is no plugin named {name!r}", help=tuple(help)))


def _diagnose_import(reference: str, module: str, error: ImportError) -> Diagnostic:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return Diagnostic(
            "RK603",
            f"{reference}: there is no module {missing}",
            help=("check the spelling, or install its package; files of the current folder are found too",),
        )
    return Diagnostic("RK604", f"{reference}: importing {module} failed", notes=(f"{error}",))


def _diagnose_attribute(reference: str, module: str, value: Any, part: str) -> Diagnostic:
    public = [name for name in dir(value) if not name.startswith("_")]
    help = filter(None, [suggest_name(part, public)])
    return Diagnostic("RK603", f"{reference}: {module} has no {part!r}", help=tuple(help))
