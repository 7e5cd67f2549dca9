"""Carry the alphas of an adapter to its new modules, or multiply them in first.

The factor of a module is alpha / r. A module that is made of one other keeps its LoRA rank, and so its alpha. Where
several are joined, LoRA ranks add up to r': if their factors agree, the new alpha is factor * r'; else the factors
are multiplied in before the join, and the new factor is 1. Which modules are multiplied is closed under sharing: all
modules that a new one is made of are, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from remapkit.adapters.alphas import PeftConfig, agree, make_config
from remapkit.adapters.derive import Derived, Written, quote_key
from remapkit.adapters.factors import CannotFollow
from remapkit.adapters.names import Adapter, Module, get_module
from remapkit.adapters.push import Part, Side, Stored, find_rank
from remapkit.companions.formats import Style
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.rulefile.yaml.emit import emit_flow, emit_scalar
from remapkit.tensors.spec import TensorSpec

ReadNumber = Callable[[str], float | None]
"""Returns the number that a tensor of the file holds; None if values are not at hand."""


@dataclass(frozen=True, slots=True)
class Factor:
    """The factor of a module's update: `number`, None if it is not known; `tensor` holds the alpha, if one does."""

    rank: int
    number: float | None
    tensor: str | None = None


class Carrier:
    """The factors of the modules of an adapter, by the key of their weight, through its rule files."""

    def __init__(
        self,
        adapter: Adapter,
        base: Mapping[str, TensorSpec],
        config: PeftConfig | None,
        alpha: float | None,
        fold: bool,
        read: ReadNumber,
    ) -> None:
        self.adapter, self.fold = adapter, fold
        self.config = config
        self.factors: dict[str, Factor] = {}
        self.made: dict[str, Factor] = {}
        self.literal: dict[str, float] = {}
        for module in adapter.modules:
            if (rank := _find_rank(module, adapter.header, base)) is not None:
                tensor = module.tensors.get("alpha")
                self.factors[module.weight] = _find_factor(adapter, module.weight, rank, tensor, config, alpha, read)

    # -------------------------------------------------------------------------------------------- folding

    def choose_folded(self, found: Derived, style: Style) -> list[str]:
        """Return the weights whose alpha tensors must be multiplied in first; numbers are, when they are followed."""
        chosen = {weight for weight in self.factors if self._must_fold(weight, style)}
        while True:
            mixed = {
                weight
                for _, sources in found.ranks.values()
                if len(sources) > 1 and not self._can_join(sources, chosen)
                for weight in sources
                if self.factors[weight].number != 1.0 or self.factors[weight].tensor is not None
            }
            if mixed <= chosen:
                break
            chosen |= mixed
        self.literal = {
            weight: number
            for weight in chosen
            if self.factors[weight].tensor is None and (number := self.factors[weight].number) is not None
        }
        return [weight for weight in self.factors if weight in chosen and self.factors[weight].tensor is not None]

    def _must_fold(self, weight: str, style: Style) -> bool:
        factor = self.factors[weight]
        if factor.tensor is not None:
            return self.fold or style.alpha != "tensor"
        return factor.number not in (None, 1.0) and (self.fold or style.alpha == "none")

    def _can_join(self, sources: Collection[str], chosen: Collection[str]) -> bool:
        """Return whether the factors of joined modules are known to be one, and are in one place."""
        own = [self.factors[weight] for weight in sources]
        numbers = [1.0 if weight in chosen else self.factors[weight].number for weight in sources]
        if any(number is None for number in numbers):
            return all(factor.tensor is None for factor in own)
        places = {weight not in chosen and self.factors[weight].tensor is not None for weight in sources}
        return agree([number for number in numbers if number is not None]) and len(places) == 1

    def write_fold(self, weights: Collection[str], name: str) -> str:
        """Return the text of a rule file that multiplies these alphas in and keeps everything else."""
        lines = ["remapkit: 1", f"name: {emit_scalar(name)}", "rules:"]
        gone: set[str] = set()
        for number, module in enumerate((each for each in self.adapter.modules if each.weight in weights), 1):
            up, alpha = module.tensors["up"], module.tensors["alpha"]
            over = self.factors[module.weight].rank
            rule = {"id": f"alpha.{number}", "path": quote_key(up)}
            product = {"multiply": {"by": quote_key(alpha), "over": over}, "to": quote_key(up)}
            lines.append("  - " + emit_flow({**rule, **product}))
            gone |= {up, alpha}
        rest = [fqn for fqn in self.adapter.header if fqn not in gone]
        if rest:
            lines += ["keep:", *(f"  - {emit_flow(quote_key(fqn))}" for fqn in rest)]
        return "\n".join(lines) + "\n"

    def forget(self, adapter: Adapter, weights: Collection[str]) -> None:
        """Take the adapter with these alphas multiplied in."""
        self.adapter = adapter
        self.factors |= {weight: Factor(self.factors[weight].rank, 1.0) for weight in weights}

    # -------------------------------------------------------------------------------------------- carrying

    def follow(self, found: Derived, style: Style) -> None:
        """Add the alphas of the new modules, and multiply numbers in where they cannot be carried."""
        for weight, number in self.literal.items():
            self.factors[weight] = replace(self.factors[weight], number=1.0)
            _scale(found, weight, number)
        self.literal = {}
        self.made = {}
        for module, (rank, sources) in found.ranks.items():
            own = [self.factors[weight] for weight in sources]
            if all(factor.tensor is not None for factor in own):
                found.written.append(self._write_alpha(module, rank, sources, style, found))
                self.made[module] = Factor(rank, own[0].number, "there")
                continue
            known = own[0].number
            self.made[module] = Factor(rank, known)
            if known is None and any(factor.rank != rank for factor in own):
                title = f"joining weights makes the LoRA rank of {module} {rank}, and its alpha is not known"
                helps = ("name the folder with its adapter_config.json", "or give the alpha of all: --alpha NUMBER")
                place = self.adapter.header.name
                found.problems.append(Diagnostic("RK726", title, help=helps, place=place))
            elif known is not None and known != 1 and style.alpha == "tensor":
                found.added[style.name(module, style.leaf("alpha") or "alpha")] = known * rank

    def _write_alpha(self, module: str, rank: int, sources: tuple[str, ...], style: Style, found: Derived) -> Written:
        """Return how the alpha of a new module is made: that of one, or of several that agree, for the new rank."""
        files = tuple(self.factors[weight].tensor or "" for weight in sources)
        ops = [rank / self.factors[weight].rank for weight in sources]
        parts = tuple(
            Part(weight, 0, ({"scale": by},) if by != 1 else ()) for weight, by in zip(sources, ops, strict=True)
        )
        shape = self.adapter.header[files[0]].shape
        after = parts[0].ops if len(parts) == 1 else ()
        parts = (replace(parts[0], ops=()),) if len(parts) == 1 else parts
        name = style.name(module, style.leaf("alpha") or "alpha")
        return Written(name, Side(parts, 0, after, shape, merged=len(parts) > 1), files, found.rules[module])

    def move_to(self, adapter: Adapter) -> None:
        """Take the adapter that was made, as the source of the next rule file."""
        self.adapter = adapter
        old, self.factors = self.made, {}
        for module in adapter.modules:
            factor = old.get(get_module(module.weight))
            if factor is not None:
                self.factors[module.weight] = replace(factor, tensor=module.tensors.get("alpha"))

    def make_config(self, style: Style) -> Mapping[str, object] | None:
        """Return the adapter_config.json of the result; None if its format has none, or alphas are not known."""
        numbers = {module: (factor.rank, factor.number) for module, factor in self.made.items()}
        known = {module: (rank, number) for module, (rank, number) in numbers.items() if number is not None}
        if style.alpha != "config" or not known or len(known) < len(numbers):
            return None
        return self.config.rewrite(known) if self.config is not None else {"peft_type": "LORA", **make_config(known)}


def _find_rank(module: Module, header: Mapping[str, TensorSpec], base: Mapping[str, TensorSpec]) -> int | None:
    """Return the LoRA rank of a module; None if it has no two matrices that fit its weight."""
    own = module.tensors
    if "up" not in own or "down" not in own:
        return None
    try:
        return find_rank(Stored("lora", header[own["up"]], header[own["down"]]), base[module.weight])
    except CannotFollow:
        return None


def _find_factor(
    adapter: Adapter,
    weight: str,
    rank: int,
    tensor: str | None,
    config: PeftConfig | None,
    alpha: float | None,
    read: ReadNumber,
) -> Factor:
    if tensor is not None:
        value = read(tensor)
        return Factor(rank, None if value is None else value / rank, tensor)
    if config is not None:
        return Factor(rank, config.find_factor(get_module(weight), rank))
    if alpha is not None:
        return Factor(rank, alpha / rank)
    return Factor(rank, None if adapter.style.alpha == "config" else 1.0)


def _scale(found: Derived, weight: str, number: float) -> None:
    """Multiply a number into what is made of the first matrix (up) of a module."""
    for at, each in enumerate(found.written):
        if not any(part.source == weight and part.place == 0 for part in each.side.parts) or not each.is_matrix:
            continue
        parts = tuple(
            replace(part, ops=({"scale": number}, *part.ops)) if part.source == weight and part.place == 0 else part
            for part in each.side.parts
        )
        ops = each.side.ops
        if len(parts) == 1 and not each.side.merged:
            ops, parts = (*parts[0].ops, *ops), (replace(parts[0], ops=()),)
        found.written[at] = replace(each, side=replace(each.side, parts=parts, ops=ops))
