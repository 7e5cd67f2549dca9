"""Loading of rule sets by name or path, with params and a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.registry.installed import find_rules, read_user_json

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules


def load_rules(
    name_or_path: str | Path,
    *,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> CompiledRules:
    """Return the compiled rules of an installed pack's name, or of a path.

    Params, config and exceptions are those of `remapkit.load`.
    """
    from remapkit.rulefile.read import examine
    from remapkit.rules.compile import compile_rules

    reading = examine(find_rules(name_or_path))
    problems = list(reading.problems)
    if reading.file is not None:
        # The valid parts are compiled even if the structure has problems, so that all problems are reported at once.
        try:
            rules = compile_rules(reading.file, params, read_config(config))
        except InvalidRules as error:
            problems += [
                problem for problem in error.diagnostics if not problems or problem.severity is Severity.ERROR
            ]
        else:
            if not problems:
                return rules
    raise InvalidRules(problems)


def read_config(config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Read a model's config: a JSON object in a file, or its content. Raises `UsageError` (RK611)."""
    if config is None or isinstance(config, Mapping):
        return config
    path = Path(config)
    value = read_user_json(path)
    if not isinstance(value, dict):
        raise UsageError(Diagnostic("RK611", f"{path} holds a {type(value).__name__}, not a JSON object"))
    return value
