"""Rule sets loaded by name or path, with params and a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.registry.installed import find_rules, read_object

if TYPE_CHECKING:
    from remapkit.rules.model import RuleSet


def load(
    name_or_path: str | Path,
    *,
    params: Mapping[str, int] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> RuleSet:
    """Read and compile a rule file: an installed pack's name, or a path.

    `params` are values for the params of the file; `config` is a model's config.json (or its content), where params
    that name one of its entries are looked up.

    Returns a `RuleSet`: call it on a state dict, or ask it for a plan. Raises `InvalidRules` with every problem of
    the file, and `UsageError` where there is no such file or pack.

    >>> rules = load("wan22_pth")
    >>> rules.name, len(rules.rules)
    ('wan22_pth', 4)
    """
    from remapkit.rulefile.read import examine
    from remapkit.rules.compile import compile_rules

    reading = examine(find_rules(name_or_path))
    problems = list(reading.problems)
    if reading.file is not None:
        # What is sound is compiled even where the structure has problems, so that all of the file are said at once.
        try:
            rules = compile_rules(reading.file, params, read_config(config))
        except InvalidRules as error:
            problems += [each for each in error.diagnostics if not problems or each.severity is Severity.ERROR]
        else:
            if not problems:
                return rules
    raise InvalidRules(problems)


def read_config(config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A model's config: a JSON object in a file, or its content. Raises `UsageError` (RK611)."""
    if config is None or isinstance(config, Mapping):
        return config
    path = Path(config)
    found = read_object(path)
    if not isinstance(found, dict):
        raise UsageError(Diagnostic("RK611", f"{path} holds a {type(found).__name__}, not a JSON object"))
    return found
