"""Carry the alphas of an adapter to its new modules, or multiply them in first.

The factor of a module is alpha / r. A module that is made of one other keeps its LoRA rank, and so its alpha. Where
several are joined, LoRA ranks add up to r': if their factors agree, the new alpha is factor * r'; else the factors
are multiplied in before the join, and the new factor is 1. Which modules are multiplied is closed under sharing: all
modules that a new one is made of are, or none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from remapkit.adapters.alphas import Details, PeftConfig, find_peft_start, make_config
from remapkit.adapters.derive import BIAS, Derived, Written, imply_shape
from remapkit.adapters.factors import CannotFollow
from remapkit.adapters.names import Adapter, Module, get_module
from remapkit.adapters.numbers import is_exact
from remapkit.adapters.push import Part, Side, Stored, find_rank
from remapkit.companions.formats import Style
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.patterns.literals import literal_text
from remapkit.rulefile.yaml.emit import emit_flow, emit_scalar
from remapkit.tensors.dtypes import PLAIN_FLOATS
from remapkit.tensors.spec import TensorSpec

ReadNumber = Callable[[str], float | None]
"""Returns the number that a tensor of the file holds; None if values are not at hand."""
MOST_FACTOR = 32
"""F16 has few exponents: matrices of a LoRA keep their digits with factors from 1 / this number up to it."""


@dataclass(frozen=True, slots=True)
class Factor:
    """The factor alpha / r of a module's update: `number`, None if it is not known.

    `tensor` holds the alpha, if one does; `alpha` is then what it holds, None if values are not at hand.
    """

    rank: int
    number: float | None
    tensor: str | None = None
    alpha: float | None = None

    def find_alpha(self) -> float | None:
        """Return the alpha, if it or the factor is known."""
        return self.alpha if self.alpha is not None or self.number is None else self.number * self.rank


class Carrier:
    """The factors of the modules of an adapter, by the key of their weight, through its rule files.

    `config` and `alpha` say what files without alpha tensors do not.
    """

    def __init__(
        self,
        adapter: Adapter,
        base: Mapping[str, TensorSpec],
        config: PeftConfig | None,
        alpha: float | None,
        fold: bool,
        read: ReadNumber,
    ) -> None:
        self.adapter, self.fold, self.config, self.alpha, self.read = adapter, fold, config, alpha, read
        self.style = adapter.style
        self.factors: dict[str, Factor] = {}
        self.loose: dict[str, Factor] = {}
        self.made: dict[str, Factor] = {}
        self.literal: dict[str, float] = {}
        self.problems: list[Diagnostic] = []
        self.notes: list[Diagnostic] = []
        empty: list[str] = []
        for module in adapter.modules:
            ranks = [_find_rank(module, adapter.header, base)] if not module.is_loose else []
            embeddings = [fqn for leaf, fqn in module.opaque.items() if leaf.startswith("lora_embedding_A")]
            embedded = [next(iter(adapter.header[fqn].shape), 0) for fqn in embeddings]
            if 0 in (*ranks, *embedded):
                empty.append(module.name)
                continue
            for rank in ranks:
                if rank is not None:
                    self.factors[module.weight] = self._find_factor(module, rank)
                    self._compare_rank(module, rank)
            for rank in embedded:
                self.loose[module.weight] = Factor(rank, self._find_number(get_module(module.weight), rank))
        if empty:
            title = f"the adapter of {count_noun(len(empty), 'module')} has the LoRA rank 0: it changes nothing"
            help = ("check that the file is whole, or remove these tensors from it",)
            place = adapter.header.name
            self.problems.append(Diagnostic("RK735", title, notes=(list_names(empty),), help=help, place=place))

    def _compare_rank(self, module: Module, rank: int) -> None:
        """Add a problem if the config has another LoRA rank than the matrices: its alphas are of another adapter."""
        if self.config is None or "alpha" in module.tensors or any(each.code == "RK739" for each in self.problems):
            return
        declared = self.config.find_rank(find_peft_start(self.adapter.style.prefix) + get_module(module.weight))
        if declared not in (None, rank):
            title = f"the config gives {module.name} the LoRA rank {declared}, and its matrices have {rank}"
            help = ("check that the config belongs to this file; its alphas are not used otherwise",)
            self.problems.append(Diagnostic("RK739", title, help=help, place=self.config.place))

    def _find_factor(self, module: Module, rank: int) -> Factor:
        if (tensor := module.tensors.get("alpha")) is None:
            return Factor(rank, self._find_number(get_module(module.weight), rank))
        value, spec = self.read(tensor), self.adapter.header[tensor]
        if spec.numel != 1 or (value is not None and not math.isfinite(value)):
            got = f"the shape {list(spec.shape)}" if spec.numel != 1 else str(value)
            title = f"{tensor} must hold one finite number, got {got}"
            help = ("check the file: it may be damaged",)
            self.problems.append(Diagnostic("RK737", title, help=help, place=self.adapter.header.name))
            value = None
        return Factor(rank, None if value is None else value / rank, tensor, value)

    def _find_number(self, module: str, rank: int) -> float | None:
        """Return the factor of a module without an alpha tensor."""
        if self.config is not None:
            return self.config.find_factor(find_peft_start(self.adapter.style.prefix) + module, rank)
        if self.alpha is not None:
            return self.alpha / rank
        return None if self.adapter.style.alpha == "config" else 1.0

    # -------------------------------------------------------------------------------------------- folding

    def choose_folded(self, found: Derived, style: Style) -> list[str]:
        """Return the weights whose alpha tensors must be multiplied in first; numbers are, when they are followed."""
        chosen = {weight for weight in self.factors if self._must_fold(weight, style)}
        chosen |= {weight for weight in found.with_factor_one if weight in self.factors}
        while True:
            mixed = {
                weight
                for rank, sources in found.ranks.values()
                if not self._can_carry(sources, rank, chosen)
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
        folded = [weight for weight in self.factors if weight in chosen and self.factors[weight].tensor is not None]
        if zeros := [self.factors[weight].tensor or "" for weight in folded if self.factors[weight].alpha == 0]:
            what = count_noun(len(zeros), "alpha")
            title = f"{what} of 0 would be multiplied in, and some programs take 0 for the LoRA rank"
            help = ("remove it from the file if it is the LoRA rank, or remove the tensors of its module",)
            notes, place = (list_names(zeros),), self.adapter.header.name
            found.problems.append(Diagnostic("RK737", title, notes=notes, help=help, place=place))
        modules = {module.weight: module for module in self.adapter.modules}
        self._check_dtypes(folded, modules, found)
        self._warn_of_halves([*folded, *self.literal], modules)
        if biased := [weight for weight in folded if "up_bias" in modules[weight].tensors]:
            title = "an alpha tensor is multiplied in, and the bias of the layer of up would need it too"
            help = ("choose a format that keeps alphas and such biases: --adapter-format peft",)
            notes, place = (list_names(biased),), self.adapter.header.name
            found.problems.append(Diagnostic("RK723", title, notes=notes, help=help, place=place))
        return folded

    def _check_dtypes(self, weights: Sequence[str], modules: Mapping[str, Module], found: Derived) -> None:
        """Add a problem for alphas, and matrices, that are no plain floats: nothing is multiplied then."""
        header = self.adapter.header
        tensors = [fqn for weight in weights for fqn in (self.factors[weight].tensor, modules[weight].tensors["up"])]
        wrong = [f"{fqn} is {header[fqn].dtype}" for fqn in tensors if fqn and header[fqn].dtype not in PLAIN_FLOATS]
        if wrong:
            known = join_words(PLAIN_FLOATS, conjunction="or")
            title = f"alphas are multiplied into up matrices, and both must be {known}"
            help = ("convert these tensors before, or choose a format that keeps alphas: --adapter-format kohya",)
            notes, place = (list_names(wrong),), header.name
            found.problems.append(Diagnostic("RK737", title, notes=notes, help=help, place=place))

    def _warn_of_halves(self, weights: Sequence[str], modules: Mapping[str, Module]) -> None:
        """Note that F16 has few exponents: large factors make infinite values, small ones lose digits."""
        found = []
        for weight in weights:
            number, up = self.factors[weight].number, modules[weight].tensors.get("up")
            far = number is None or not 1 / MOST_FACTOR <= abs(number) <= MOST_FACTOR
            if up is not None and self.adapter.header[up].dtype == "F16" and far:
                found.append(f"{modules[weight].name}: {'not known' if number is None else f'{number:g}'}")
        if found and not self.notes:
            what = f"alpha / r of {count_noun(len(found), 'module')}"
            title = f"{what} is multiplied into F16 and may be lost or infinite there"
            help = ("choose a format that keeps alphas (kohya, comfy), or convert the adapter to BF16 or F32 before",)
            place, notes = self.adapter.header.name, (list_names(found),)
            warning = Diagnostic("RK734", title, notes=notes, help=help, severity=Severity.WARNING, place=place)
            self.notes.append(warning)

    def _must_fold(self, weight: str, style: Style) -> bool:
        factor = self.factors[weight]
        if factor.tensor is not None:
            return self.fold or style.alpha != "tensor"
        return factor.number not in (None, 1.0) and (self.fold or style.alpha == "none")

    def _can_carry(self, sources: Sequence[str], rank: int, chosen: Collection[str]) -> bool:
        """Return whether the factors of the modules of a new one are known to be one, and can be carried as it is."""
        kept = [self.factors[weight] for weight in sources if weight not in chosen]
        if not kept or (len(sources) == 1 and kept[0].rank == rank):
            return True
        if any(factor.tensor is not None for factor in kept):
            return len(kept) == len(sources) and self._can_merge(kept, rank)
        numbers = [factor.number for factor in kept] + [1.0] * (len(sources) > len(kept))
        return len(set(numbers)) == 1

    def _can_merge(self, own: Sequence[Factor], rank: int) -> bool:
        """Return whether alphas, each multiplied by new rank / own rank, are one and the same tensor."""
        if any(factor.tensor is None or factor.alpha is None for factor in own):
            return False
        specs = {self.adapter.header[factor.tensor or ""] for factor in own}
        wanted = {Fraction(factor.alpha or 0) * rank / factor.rank for factor in own}
        if len(specs) > 1 or len(wanted) > 1:
            return False
        ((dtype, alpha),) = {(spec.dtype, alpha) for spec in specs for alpha in wanted}
        return all(
            is_exact(factor.alpha or 0.0, rank / factor.rank, alpha, dtype)
            and rank / factor.rank * factor.rank == rank  # what the plan's judge calculates
            for factor in own
        )

    def write_fold(self, weights: Collection[str], name: str) -> str:
        """Return the text of a rule file that multiplies these alphas in and keeps everything else."""
        lines = ["remapkit: 1", f"name: {emit_scalar(name)}", "rules:"]
        gone: set[str] = set()
        for number, module in enumerate((each for each in self.adapter.modules if each.weight in weights), 1):
            up, alpha = module.tensors["up"], module.tensors["alpha"]
            over = self.factors[module.weight].rank
            rule = {"id": f"alpha.{number}", "path": literal_text(up)}
            product = {"multiply": {"by": literal_text(alpha), "over": over}, "to": literal_text(up)}
            lines.append("  - " + emit_flow({**rule, **product}))
            gone |= {up, alpha}
        rest = [fqn for fqn in self.adapter.header if fqn not in gone]
        if rest:
            lines += ["keep:", *(f"  - {emit_flow(literal_text(fqn))}" for fqn in rest)]
        return "\n".join(lines) + "\n"

    def forget(self, adapter: Adapter, weights: Collection[str]) -> None:
        """Take the adapter with these alphas multiplied in."""
        self.adapter = adapter
        self.factors |= {weight: Factor(self.factors[weight].rank, 1.0) for weight in weights}

    # -------------------------------------------------------------------------------------------- carrying

    def follow(self, found: Derived, style: Style) -> None:
        """Add the alphas of the new modules, and multiply numbers in where they cannot be carried."""
        self.style = style
        scaled = _find_scaled(found) if self.literal else {}
        for weight, number in self.literal.items():
            self.factors[weight] = replace(self.factors[weight], number=1.0)
            for at, source in scaled.get(get_module(weight), ()):
                found.written[at] = _scale(found.written[at], source, number)
        self.literal, self.made = {}, {}
        unknown: list[str] = []
        for module, (rank, sources) in found.ranks.items():
            own = [self.factors[weight] for weight in sources]
            tensors = [factor.tensor for factor in own if factor.tensor is not None]
            if len(tensors) == len(own):
                made, self.made[module] = self._write_alpha(module, rank, sources, style, found)
                found.written.append(made)
                continue
            known = own[0].number
            self.made[module] = Factor(rank, known)
            is_unknown = known is None and self._needs_number(own, rank, style)
            if tensors or is_unknown or len({factor.number for factor in own}) > 1:
                unknown.append(module)
            elif known is not None and style.alpha == "tensor" and (known != 1 or self._is_new_kohya(style)):
                found.added[style.name(module, style.leaf("alpha") or "alpha")] = known * rank
        self._follow_loose(found, style, unknown)
        unknown += [get_module(weight) for weight in found.with_factor_one if self._is_unknown(weight)]
        if unknown:
            found.problems.append(self._explain_unknown(unknown, style))

    def _needs_number(self, own: Sequence[Factor], rank: int, style: Style) -> bool:
        """Return whether a factor that is not known would change: with the LoRA rank, or because none means 1."""
        return any(factor.rank != rank for factor in own) or style.format != self.adapter.style.format

    def _is_new_kohya(self, style: Style) -> bool:
        """Return whether the file becomes one of kohya's, which always have alphas, so that readers require them."""
        return style.format == "kohya" != self.adapter.style.format

    def _is_unknown(self, weight: str) -> bool:
        return weight in self.factors and self.factors[weight].number is None and self.factors[weight].tensor is None

    def _follow_loose(self, found: Derived, style: Style, unknown: list[str]) -> None:
        """Follow the numbers of modules that are only renamed: those of the LoRA of an embedding."""
        lost: list[str] = []
        for target, module in found.loose.items():
            if (factor := self.loose.get(module.weight)) is not None:
                self.made[target] = factor
                if style.alpha != "config" and factor.number is None:
                    unknown.append(target)
                elif style.alpha != "config" and factor.number != 1.0:
                    lost.append(target)
        if lost:
            title = (
                f"the LoRA of {count_noun(len(lost), 'embedding')} cannot follow: its alpha / LoRA rank is not 1, "
                f"and {style.format} files have no place for it"
            )
            help = ("choose another format: --adapter-format peft",)
            notes, place = (list_names(lost),), self.adapter.header.name
            found.problems.append(Diagnostic("RK723", title, notes=notes, help=help, place=place))

    def _explain_unknown(self, modules: Sequence[str], style: Style) -> Diagnostic:
        title = f"the alpha of {count_noun(len(modules), 'module')} is not known, and the result depends on it"
        help = ("name the folder with its adapter_config.json", "or give the alpha of all: --alpha NUMBER")
        place = self.adapter.header.name
        return Diagnostic("RK726", title, notes=(list_names(modules),), help=help, place=place)

    def _write_alpha(
        self, module: str, rank: int, sources: tuple[str, ...], style: Style, found: Derived
    ) -> tuple[Written, Factor]:
        """Return how the alpha of a new module is made: that of one, or of several that agree, for the new rank."""
        own = [self.factors[weight] for weight in sources]
        files = tuple(factor.tensor or "" for factor in own)
        ratios = [rank / factor.rank for factor in own]
        parts = tuple(
            Part(weight, 0, ({"scale": by},) if by != 1 else ()) for weight, by in zip(sources, ratios, strict=True)
        )
        shape = self.adapter.header[files[0]].shape
        after = parts[0].ops if len(parts) == 1 else ()
        parts = (replace(parts[0], ops=()),) if len(parts) == 1 else parts
        name = style.name(module, style.leaf("alpha") or "alpha")
        side = Side(parts, 0, after, shape, merged=len(parts) > 1)
        alpha = None if own[0].alpha is None else own[0].alpha * ratios[0]
        return Written(name, side, files, found.rules[module], "alpha"), Factor(rank, own[0].number, files[0], alpha)

    def move_to(self, adapter: Adapter) -> None:
        """Take the adapter that was made, as the source of the next rule file."""
        self.adapter = adapter
        old, self.factors, self.loose = self.made, {}, {}
        for module in adapter.modules:
            factor = old.get(get_module(module.weight))
            if factor is None:
                continue
            tensor = module.tensors.get("alpha")
            alpha = factor.find_alpha()
            own = self.loose if module.is_loose else self.factors
            own[module.weight] = replace(factor, tensor=tensor, alpha=None if tensor is None else alpha)

    def make_fields(self, found: Derived, modules: Collection[str]) -> Mapping[str, Any] | None:
        """Return the fields of a PEFT config of the result; None if there are no modules, or alphas are not known.

        `modules` are those of the new model.
        """
        start = find_peft_start(self.style.prefix)
        known = {
            start + name: (made.rank, made.number) for name, made in self.made.items() if made.number is not None
        }
        if not known or len(known) < len(self.made):
            return None
        roles = {each.role for each in found.written}
        whole = sorted({key.rpartition(".")[0] for key in found.whole if not key.endswith(BIAS)} - {""})
        modules, whole = [start + each for each in modules], [start + each for each in whole]
        biased = bool(roles & {"up_bias", "diff_bias"})
        details = Details(modules, whole, "magnitude" in roles, biased, bool(found.transposed))
        if self.config is not None:
            return self.config.rewrite(known, details)
        return {"peft_type": "LORA", **make_config(known, details)}


def _find_rank(module: Module, header: Mapping[str, TensorSpec], base: Mapping[str, TensorSpec]) -> int | None:
    """Return the LoRA rank of a module; None if it has no two matrices that fit each other."""
    own = module.tensors
    if "up" not in own or "down" not in own:
        return None
    stored = Stored("lora", header[own["up"]], header[own["down"]])
    try:
        return find_rank(stored, base[module.weight])
    except CannotFollow:
        return None if imply_shape(stored) is None else stored.first.shape[1]


def _find_scaled(found: Derived) -> Mapping[str, list[tuple[int, str]]]:
    """Return, for each module, where what is made of its first matrix (up) is, or of the bias of that layer.

    With each place is the key of the weight, or of the bias.
    """
    places: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for at, each in enumerate(found.written):
        for key in {part.source for part in each.side.parts if part.place == 0}:
            if each.role in ("up", "down"):
                places[get_module(key)].append((at, key))
            elif each.role == "up_bias":
                places[key.removesuffix(BIAS)].append((at, key))
    return places


def _scale(made: Written, source: str, number: float) -> Written:
    """Return what is made with a number multiplied into its first matrices of the adapter of a weight or bias."""
    parts = tuple(
        replace(part, ops=({"scale": number}, *part.ops)) if part.source == source and part.place == 0 else part
        for part in made.side.parts
    )
    ops = made.side.ops
    if len(parts) == 1 and not made.side.merged:
        ops, parts = (*parts[0].ops, *ops), (replace(parts[0], ops=()),)
    return replace(made, side=replace(made.side, parts=parts, ops=ops))
