"""Build the rules of an adapter: name its tensors, decide what becomes of alphas, derive, and write rule files.

A plan of one rule file gives one rule file. Where alphas must be multiplied in first (an adapter of joined weights
whose factors differ, or a format that has no alphas), a rule file that does that comes before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.carry import Carrier, ReadNumber
from remapkit.adapters.derive import Derived, Deriver, write_rules
from remapkit.adapters.names import Adapter, get_module, read_adapter
from remapkit.companions.formats import Style, read_formats
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Options:
    """How the result is wanted: its format, and whether alphas are multiplied in; and where alphas are.

    `config` and `alpha` are for files without alpha tensors; `prefix` chooses among the models of a file.
    """

    format: str | None = None
    fold: bool = False
    config: PeftConfig | None = None
    alpha: float | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterRules:
    """Rule files in their order, as texts; the adapter as it was read, and as it will be."""

    texts: tuple[str, ...]
    adapter: Adapter
    style: Style
    config: Mapping[str, object] | None
    """The `adapter_config.json` of the result, if its alphas are there."""
    diagnostics: tuple[Diagnostic, ...] = ()


def build_adapter(
    rules: CompiledRules, base: StateDictSpec, header: StateDictSpec, options: Options, read: ReadNumber
) -> AdapterRules:
    """Return the rules of an adapter of the model whose header is `base`, derived from the rules of its weights.

    Raises `FailedCheck` with everything that cannot follow (RK723, RK724, RK726, RK728), and what `read_adapter` and
    the plan of the weights raise.
    """
    texts: list[str] = []
    adapter = first = read_adapter(header, base, options.prefix)
    final = _choose_style(adapter, options)
    carrier = Carrier(adapter, base, options.config, options.alpha, options.fold, read)
    for number, part in enumerate(rules.parts, 1):
        is_last = number == len(rules.parts)
        plan = make_plan(part, base)
        plan.raise_for_problems()
        style = final if is_last else adapter.style
        found = _derive(plan, adapter, style)
        if folding := carrier.choose_folded(found, style):
            texts.append(carrier.write_fold(folding, f"{part.name}.alphas"))
            adapter = read_adapter(_plan_text(texts[-1], adapter.header), base, options.prefix)
            carrier.forget(adapter, folding)
            found = _derive(plan, adapter, style)
        carrier.follow(found, style)
        _raise_problems(found)
        texts.append(write_rules(f"{part.name}.adapter", f"an adapter, by the rules of {part.name}", found))
        if not is_last:
            base = plan.target
            adapter = read_adapter(_plan_text(texts[-1], adapter.header), base)
            carrier.move_to(adapter)
    notes = (*_report_outside(first), *_report_dropped(first, found))
    return AdapterRules(tuple(texts), first, final, carrier.make_config(final), notes)


def _derive(plan: ResolvedPlan, adapter: Adapter, style: Style) -> Derived:
    found = Deriver(plan, adapter, style).derive()
    found.dropped += [fqn for fqns in adapter.outside.values() for fqn in fqns]
    if adapter.unknown:
        title = f"{count_noun(len(adapter.unknown), 'tensor')} belong to no module of the model"
        help = ("check that the adapter is for this model and this size of it",)
        names = list_names(adapter.unknown)
        found.problems.append(Diagnostic("RK728", title, notes=(names,), help=help, place=adapter.header.name))
    _raise_problems(found)
    return found


def _raise_problems(found: Derived) -> None:
    if found.problems:
        raise FailedCheck(found.problems)


def _plan_text(text: str, header: StateDictSpec) -> StateDictSpec:
    """Return the header that the rules of a text make."""
    plan = make_plan(compile_rules(read_text(text)), header)
    plan.raise_for_problems()
    return plan.target


def _choose_style(adapter: Adapter, options: Options) -> Style:
    """Return how the result is named: like the input, unless another format is asked for."""
    style, formats = adapter.style, read_formats()
    if options.format is None or options.format == style.format:
        return style
    modules = [get_module(module.weight) for module in adapter.modules]
    return formats.style(options.format, formats.find_component(style.prefix, modules))


def _report_outside(adapter: Adapter) -> Iterator[Diagnostic]:
    for prefix, fqns in adapter.outside.items():
        title = f"{count_noun(len(fqns), 'tensor')} under {prefix} left out: the rules are not for that model"
        yield _warn("RK727", title, fqns, adapter, "apply the rules of that model for them")


def _report_dropped(adapter: Adapter, found: Derived) -> Iterator[Diagnostic]:
    away = {fqn for fqns in adapter.outside.values() for fqn in fqns}
    if gone := [fqn for fqn in found.dropped if fqn not in away]:
        title = f"{count_noun(len(gone), 'tensor')} of the adapter dropped, because the rules drop the weights"
        yield _warn("RK729", title, gone, adapter)


def _warn(code: str, title: str, fqns: Sequence[str], adapter: Adapter, *help: str) -> Diagnostic:
    notes, place = (list_names(fqns),), adapter.header.name
    return Diagnostic(code, title, notes=notes, help=help, severity=Severity.WARNING, place=place)
