"""Build the rules of an adapter: name its tensors, decide what becomes of alphas, derive, and write rule files.

A plan of one rule file gives one rule file. Where alphas must be multiplied in first (an adapter of joined weights
whose factors differ, or a format that has no alphas), a rule file that does that comes before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.carry import Carrier, ReadNumber
from remapkit.adapters.derive import Derived, Deriver, write_rules
from remapkit.adapters.names import WEIGHT, Adapter, ModuleNames, get_module, read_adapter, split_leaf
from remapkit.adapters.orient import find_transposed
from remapkit.companions.formats import Style, read_formats
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun, find_close_name, list_names
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
    config: Mapping[str, Any] | None
    """The `adapter_config.json` of the result, if its alphas are there."""
    diagnostics: tuple[Diagnostic, ...] = ()
    renamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The new modules that each module of the model goes to, by names in the models: without prefix, with dots."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """The LoRA rank of each new module."""
    alphas: Mapping[str, float | None] = field(default_factory=dict)
    """The alpha of each new module, after folding; None if it is not known."""
    fields: Mapping[str, Any] | None = None
    """The fields of a PEFT config of the result, whatever its format; None if alphas are not known.

    diffusers' files may have them in `__metadata__`, as JSON in `lora_adapter_metadata`, each name behind that of the
    model, which is the prefix of the result: `transformer.lora_alpha`.
    """

    @property
    def factors(self) -> dict[str, tuple[int, float]]:
        """Return the LoRA rank of each new module, and what its up @ down is multiplied by, where that is known."""
        known = {module: alpha for module, alpha in self.alphas.items() if alpha is not None}
        return {module: (self.ranks[module], alpha / self.ranks[module]) for module, alpha in known.items()}


def build_adapter(
    rules: CompiledRules, base: StateDictSpec, header: StateDictSpec, options: Options, read: ReadNumber
) -> AdapterRules:
    """Return the rules of an adapter of the model whose header is `base`, derived from the rules of its weights.

    Raises `FailedCheck` with everything that cannot follow (RK723, RK724, RK726, RK728, RK735, RK737), and what
    `read_adapter` and the plan of the weights raise.
    """
    adapter = read_adapter(header, base, options.prefix)
    _raise(_report_unknown(adapter, base))
    builder = _Builder(adapter, base, options, read)
    for number, part in enumerate(rules.parts, 1):
        builder.follow(part, is_last=number == len(rules.parts))
    return builder.finish()


class _Builder:
    """Follows an adapter through the rule files of a route; `base` and `adapter` are what the next one reads."""

    def __init__(self, adapter: Adapter, base: StateDictSpec, options: Options, read: ReadNumber) -> None:
        self.first = self.adapter = adapter
        self.base, self.style = base, _choose_style(adapter, options)
        config = _choose_config(adapter, options)
        self.carrier = Carrier(adapter, base, config, options.alpha, options.fold, read)
        _raise(self.carrier.problems)
        is_flagged = config is not None and config.data.get("fan_in_fan_out") is True
        self.transposed = find_transposed(adapter, base, is_flagged=is_flagged)
        self.texts: list[str] = []
        self.notes = list(_report_outside(adapter))
        self.renamed: Mapping[str, tuple[str, ...]] | None = None
        self.found = Derived()

    def follow(self, part: CompiledRules, *, is_last: bool) -> None:
        """Write the rule files for one of the weights, and take what they make."""
        plan = make_plan(part, self.base)
        plan.raise_for_problems()
        style = self.style if is_last else self.adapter.style
        found = self._derive(plan, style)
        _raise(_report_unfoldable(self.adapter, found) if self.carrier.fold else [])
        if folding := self.carrier.choose_folded(found, style):
            _raise(found.problems)
            self._write(self.carrier.write_fold(folding, f"{part.name}.alphas"))
            self.carrier.forget(self.adapter, folding)
            found = self._derive(plan, style)
        self.carrier.follow(found, style)
        _raise(found.problems or _report_nothing(self.first, found))
        self.notes += [*_report_resized(self.first, found), *_report_dropped(self.first, found)]
        self.renamed = _follow_names(self.renamed, plan, self.adapter)
        self.base, self.found = plan.target, found
        text = write_rules(
            f"{part.name}.adapter", f"an adapter, by the rules of {part.name}", found, self.adapter.header
        )
        if is_last:
            self.texts.append(text)
            return
        self._write(text)
        self.carrier.move_to(self.adapter)
        self.transposed = {
            each.weight for each in self.adapter.modules if get_module(each.weight) in found.transposed
        }

    def finish(self) -> AdapterRules:
        """Return all rule files, and what is known of the result."""
        fields = self.carrier.make_fields(self.found, ModuleNames.of(self.base).weights)
        made = self.carrier.made
        return AdapterRules(
            tuple(self.texts),
            self.first,
            self.style,
            fields if self.style.alpha == "config" else None,
            (*self.notes, *self.carrier.notes),
            self.renamed or {},
            {module: factor.rank for module, factor in made.items()},
            {module: factor.find_alpha() for module, factor in made.items()},
            fields,
        )

    def _derive(self, plan: ResolvedPlan, style: Style) -> Derived:
        found = Deriver(plan, self.adapter, style, self.transposed).derive()
        found.dropped += [fqn for fqns in self.adapter.outside.values() for fqn in fqns]
        _raise(found.problems)
        return found

    def _write(self, text: str) -> None:
        """Add a rule file, and read the adapter that it makes."""
        plan = make_plan(compile_rules(read_text(text)), self.adapter.header)
        plan.raise_for_problems()
        self.texts.append(text)
        self.adapter = read_adapter(plan.target, self.base, self.adapter.style.prefix)


def _raise(problems: Sequence[Diagnostic]) -> None:
    if problems:
        raise FailedCheck(problems)


def _follow_names(
    before: Mapping[str, tuple[str, ...]] | None, plan: ResolvedPlan, adapter: Adapter
) -> dict[str, tuple[str, ...]]:
    """Return where modules go, after those of earlier rule files went to the modules of this adapter."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    whole = set(adapter.whole.values())
    for move in plan.moves:
        for fqn in move.sources:
            if fqn.endswith(WEIGHT) or fqn in whole or not move.target.endswith(WEIGHT):
                found[get_module(fqn)].append(get_module(move.target))
    if before is None:
        return {name: tuple(dict.fromkeys(targets)) for name, targets in found.items()}
    return {
        name: tuple(dict.fromkeys(target for each in names for target in found.get(each, ())))
        for name, names in before.items()
    }


def _choose_config(adapter: Adapter, options: Options) -> PeftConfig | None:
    """Return the config that an adapter's alphas are in: the file beside it for PEFT's names, else its metadata."""
    style = adapter.style
    if style.format == "diffusers" and style.prefix:
        return PeftConfig.find_in_metadata(adapter.header.metadata, style.prefix.removesuffix("."))
    has_peft_names = read_formats().own_leaves[style.format] == "peft"
    return options.config if has_peft_names else None


def _choose_style(adapter: Adapter, options: Options) -> Style:
    """Return how the result is named: like the input, unless a format is asked for."""
    if options.format is None:
        return adapter.style
    formats = read_formats()
    modules = [get_module(module.weight) for module in adapter.modules]
    return formats.style(options.format, formats.find_component(adapter.style.prefix, modules))


def _report_unknown(adapter: Adapter, base: StateDictSpec) -> list[Diagnostic]:
    """Refuse tensors whose module the model does not have, and say which one has a name like theirs."""
    if not adapter.unknown:
        return []
    title = f"the model has no module for {count_noun(len(adapter.unknown), 'tensor')}"
    names, start = ModuleNames.of(base), adapter.style.prefix
    near = {}
    for fqn in adapter.unknown[:3]:
        module = (leaf.module if (leaf := split_leaf(fqn, read_formats())) else get_module(fqn)).removeprefix(start)
        close = find_close_name(module, names.flat if adapter.style.is_flat else names.weights)
        near[module] = f"the module of the model with the name nearest to {module} is {close}" if close else ""
    help = (
        *filter(None, near.values()),
        "check that the adapter is for this model; one of another size needs that: --base MODEL",
    )
    notes, place = (list_names(adapter.unknown),), adapter.header.name
    return [Diagnostic("RK728", title, notes=notes, help=help, place=place)]


def _report_outside(adapter: Adapter) -> Iterator[Diagnostic]:
    for prefix, fqns in adapter.outside.items():
        where = f"under {prefix}" if prefix else "without a prefix"
        title = f"{count_noun(len(fqns), 'tensor')} {where} left out: the rules are not for that model"
        yield _warn("RK727", title, fqns, adapter, "apply the rules of that model for them")


def _report_resized(adapter: Adapter, found: Derived) -> Iterator[Diagnostic]:
    if found.resized:
        title = f"the adapter of {count_noun(len(found.resized), 'tensor')} is for another size than the model's"
        sizes = [f"{key}: {list(own)}, and the model has {list(spec)}" for key, (spec, own) in found.resized.items()]
        yield _warn("RK738", title, sizes, adapter, "use the result with a variant of the model that has these sizes")


def _report_nothing(adapter: Adapter, found: Derived) -> list[Diagnostic]:
    if found.written:
        return []
    title = "nothing of the adapter would be left: the rules drop the weights that it changes"
    return [Diagnostic("RK729", title, notes=(list_names(found.dropped),), place=adapter.header.name)]


def _report_unfoldable(adapter: Adapter, found: Derived) -> list[Diagnostic]:
    """Refuse to multiply in the alphas of modules that are only renamed, instead of keeping them silently."""
    loose = found.loose.values()  # a module may become several
    alphas = list(dict.fromkeys(module.tensors["alpha"] for module in loose if "alpha" in module.tensors))
    if not alphas:
        return []
    title = f"{count_noun(len(alphas), 'alpha')} cannot be multiplied in: the modules are no product of two matrices"
    help = ("leave --fold-alpha out: these alphas stay in the file",)
    return [Diagnostic("RK723", title, notes=(list_names(alphas),), help=help, place=adapter.header.name)]


def _report_dropped(adapter: Adapter, found: Derived) -> Iterator[Diagnostic]:
    """Warn of what is dropped with its weight, and of alphas where nothing is multiplied by them."""
    gone = set(found.dropped).difference(*adapter.outside.values())
    idle = {
        module.tensors["alpha"]
        for module in adapter.modules
        if "alpha" in module.tensors and "up" not in module.tensors and not module.is_loose
    }
    if alphas := [fqn for fqn in found.dropped if fqn in gone & idle]:
        title = f"{count_noun(len(alphas), 'alpha')} dropped: their modules have no matrices that they would multiply"
        yield _warn("RK729", title, alphas, adapter)
    if others := [fqn for fqn in found.dropped if fqn in gone - idle]:
        title = (
            f"{count_noun(len(others), 'tensor')} of the adapter dropped: the rules make nothing of what they change"
        )
        yield _warn("RK729", title, others, adapter)


def _warn(code: str, title: str, fqns: Sequence[str], adapter: Adapter, *help: str) -> Diagnostic:
    notes, place = (list_names(fqns),), adapter.header.name
    return Diagnostic(code, title, notes=notes, help=help, severity=Severity.WARNING, place=place)
