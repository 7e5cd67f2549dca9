"""Find moves and drops that would change the value of a scaled weight or an adapter, as far as a header shows it.

The value of a scaled weight is its numbers times its scales. It is preserved if the weight and every companion are
only renamed and still belong together under their new names; anything else is an error that names the tensors.
Likewise, alpha divided by the LoRA rank is a factor of its adapter.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.companions.names import (
    can_be_scaled,
    can_have_companions,
    find_adapter_module,
    find_adapters,
    find_scaled_weights,
    is_companion_of,
    pair_companions,
    read_kind,
)
from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.ops.base import Op
from remapkit.ops.dtype import CastOp, ScaleOp
from remapkit.ops.join import FillOp, Join
from remapkit.ops.shape import ReshapeOp, Squeeze, Unsqueeze
from remapkit.plans.follow import Follower, can_follow, describe_op, find_follow_fault, list_steps
from remapkit.plans.moves import Dropped, Move, RuleRef
from remapkit.plans.spread import DEQUANTIZE, NoCounterpart
from remapkit.tensors.dtypes import is_exact_cast
from remapkit.tensors.spec import StateDictSpec, TensorSpec

_FACTOR = re.compile(r"lora(?:_linear_layer|_embedding)?[._](up|down|mid|A|B)(?:\.|$)")
NEUTRAL = "if it changes nothing (a scale of 1, an alpha that equals its LoRA rank), add {path: ..., neutral: true}"


UNLIKE = NoCounterpart("its scales are moved in another way")


@dataclass(slots=True)
class Judged:
    """The errors and the warnings about companions."""

    problems: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)


def judge_companions(
    follower: Follower,
    source: StateDictSpec,
    moves: Sequence[Move],
    dropped: Sequence[Dropped],
    neutral: frozenset[str],
    refused: Collection[str] = (),
) -> Judged:
    """Report every way in which moves and drops would change scaled weights and adapters.

    `neutral` has the ids of the drops that the author declares to have no effect; `refused` are weights of which it
    is said already that their companions cannot follow. Scales may do what `follower` would do with them.
    """
    if not (can_have_companions(source) or can_have_companions(move.target for move in moves)):
        return Judged()
    return _Judge(follower, source, moves, dropped, neutral, refused).judge_moves()


@dataclass(slots=True)
class _Fault:
    """A fault shared by several tensors of one rule."""

    rule: RuleRef
    names: list[str] = field(default_factory=list)


class _Judge:
    def __init__(
        self,
        follower: Follower,
        source: StateDictSpec,
        moves: Sequence[Move],
        dropped: Sequence[Dropped],
        neutral: frozenset[str],
        refused: Collection[str],
    ) -> None:
        self.follower, self.source, self.moves = follower, source, moves
        self.refused = refused
        self.dropped = {gone.fqn: gone.rule for gone in dropped}
        self.neutral = neutral
        self.scaled = find_scaled_weights(source)
        self.companions = {each for names in self.scaled.values() for each in names}
        self.of: defaultdict[str, list[Move]] = defaultdict(list)
        for move in moves:
            for fqn in dict.fromkeys(move.sources):
                self.of[fqn].append(move)
        self.targets = {move.target: move for move in moves}
        self.paired = pair_companions(self.targets)
        self.owned = {name for names in self.paired.values() for name in names}
        self.adapters = find_adapters(source)
        self.modules: defaultdict[str, list[str]] | None = None
        self.faults: defaultdict[tuple[str, str, str], dict[str, _Fault]] = defaultdict(dict)

    def judge_moves(self) -> Judged:
        for weight, companions in self.scaled.items():
            for move in self.of.get(weight, ()) if weight not in self.refused else ():
                if _is_dequantized(move, weight, companions) or self._judge_following(weight, move):
                    continue
                self._judge_weight(weight, companions, move)
        for move in self.moves:
            self._judge_strangers(move)
        for alpha, tensors in self.adapters.items():
            self._judge_alpha(alpha, [move for fqn in tensors for move in self.of.get(fqn, ())])
        made = Judged()
        for (code, title, help), by_rule in self.faults.items():
            for fault in by_rule.values():
                found = self._report_fault(code, title, help, fault)
                (made.problems if found.severity is Severity.ERROR else made.warnings).append(found)
        return made

    def _add_fault(self, code: str, title: str, help: str, rule: RuleRef, name: str) -> None:
        fault = self.faults[code, title, help].setdefault(rule.id, _Fault(rule))
        if name not in fault.names:
            fault.names.append(name)

    def _report_fault(self, code: str, title: str, help: str, fault: _Fault) -> Diagnostic:
        severity = _SEVERITY.get(code, Severity.ERROR)
        many = f" ({count_noun(len(fault.names), 'time')})" if len(fault.names) > 1 else ""
        return Diagnostic(
            code,
            f"{fault.rule.id}: {title}{many}",
            labels=(Label(fault.rule.span),) if fault.rule.span is not None else (),
            notes=(list_names(fault.names),),
            help=(help,) if help else (),
            severity=severity,
            place=self.source.name,
            values={"rule": fault.rule.id, "names": fault.names},
        )

    # ------------------------------------------------------------------------------------------ scaled weights

    def _judge_weight(self, weight: str, companions: Sequence[str], move: Move) -> None:
        spec = self.source[weight]
        shown = f"{weight} ({spec}), scaled by {join_words(companions)}"
        if move.ops and not (_has_only_casts(move.ops) and spec.dtype.startswith(("F8_", "I8"))):
            ops = join_words(op.name for op in move.ops)
            title = f"{ops} on a scaled weight, but not on its scales"
            help = "only rename the weight and its scales, or `dequantize` the weight with all of its scales"
            self._add_fault("RK362", title, help, move.rule, shown)
            return
        if move.ops and all(self.of.get(each) for each in companions):
            title = "a scaled weight is cast, but its scales are kept"
            help = "code that loads it must still multiply by them"
            self._add_fault("RK365", title, help, move.rule, shown)
        for companion in companions:
            self._judge_companion(companion, weight, move)

    def _judge_following(self, weight: str, move: Move) -> bool:
        """Return whether an operation on a scaled weight was judged together with the moves of its scales."""
        kinds = [self.scaled.get(fqn, ()) for fqn in move.sources]
        names = [name for each in kinds for name in each]
        if not all(name in self.of for name in names) or {len(each) for each in kinds} != {len(kinds[0]) or 1}:
            return False
        columns = list(zip(*kinds, strict=True))
        faults = [self._find_unlike(move, scales) for scales in columns] if move.ops else [UNLIKE]
        if not any(faults):
            return True
        if not can_follow(move.ops, self.source[weight], names):
            return False
        for scales, known in zip(columns, faults, strict=True) if weight == move.sources[0] else ():
            images = self._list_images(scales, move)
            if known and (fault := find_follow_fault(move, scales, images, self.source)):
                shown = f"{', '.join(move.sources[:2])} ({self.source[weight]}), scaled by {join_words(scales, 2)}"
                has_reason = self.follower.block is not None and known is not UNLIKE
                title = f"{describe_op(move.ops[0])} of a scaled weight: {known if has_reason else fault}"
                help = "; ".join(known.help) if has_reason else f"or {DEQUANTIZE}"
                self._add_fault("RK362", title, help, move.rule, shown)
        return True

    def _list_images(self, scales: Sequence[str], move: Move) -> list[Move]:
        """Return the moves of the scales of a weight whose targets belong to that of the weight."""
        return [each for each in self.of[scales[0]] if self._is_companion(each.target, move.target)]

    def _find_unlike(self, move: Move, scales: Sequence[str]) -> NoCounterpart | None:
        """Return why no move of these scales is the one that keeps the value of the weight; None if one is."""
        kind = read_kind(scales[0], move.sources[0])
        if kind is None:
            return UNLIKE
        try:
            ops, _ = self.follower.follow(move, scales, kind)
        except NoCounterpart as reason:
            return reason
        specs = [self.source[fqn] for fqn in scales]
        wanted = list_steps(ops, specs)
        images = self._list_images(scales, move)
        alike = (each.sources == tuple(scales) and list_steps(each.ops, specs) == wanted for each in images)
        return None if any(alike) else UNLIKE

    def _judge_companion(self, companion: str, weight: str, move: Move) -> None:
        """Check one companion of a weight that becomes `move.target`."""
        spec = self.source[companion]
        images = self.of.get(companion, [])
        if not images:
            self._judge_dropped(companion, f"{companion} ({spec}) belongs to {weight}", move)
            return
        for image in images:
            if image.ops and not _is_value_kept(image.ops, spec):
                title = (
                    f"{join_words(op.name for op in image.ops)} on the scale of a weight changes the weight's value"
                )
                help = f"only rename {companion}"
                self._add_fault("RK363", title, help, image.rule, f"{companion} ({spec}) belongs to {weight}")
        if not any(self._is_companion(image.target, move.target) for image in images):
            title = "a weight and its scale no longer belong together"
            help = "move both to the same module, for example by one rule with a capture for the leaf"
            away = join_words(image.target for image in images)
            self._add_fault("RK364", title, help, move.rule, f"{weight} -> {move.target}, but {companion} -> {away}")

    def _is_companion(self, companion: str, weight: str) -> bool:
        """Return whether its name marks it as one, or it is in the same module and its name fits no other weight."""
        if is_companion_of(companion, weight):
            return True
        same = companion.rpartition(".")[0] == weight.rpartition(".")[0]
        return same and companion not in self.owned

    def _judge_dropped(self, companion: str, shown: str, move: Move) -> None:
        rule = self.dropped.get(companion, move.rule)
        if rule.id in self.neutral:
            self._add_fault("RK367", "dropped as neutral: their values were not read", "", rule, shown)
            return
        title = "dropped, but the weight that it scales is kept; the weight would change its value"
        help = f"keep or rename it with its weight; {NEUTRAL}"
        self._add_fault("RK366", title, help, rule, shown)

    def _judge_strangers(self, move: Move) -> None:
        """Report scales that apply to a different weight under their new name."""
        if len(move.sources) != 1 or not can_be_scaled(move.sources[0], self.source[move.sources[0]]):
            return
        own = self.scaled.get(move.sources[0], ())
        if move.sources[0] in self.companions:
            return
        for name in self.paired.get(move.target, ()):
            image = self.targets[name]
            if (set(image.sources) <= set(own) and image.sources) or _is_one(image.ops):
                continue
            title = "a weight would be scaled by a tensor that did not scale it before"
            help = "choose another target for it, or move it to its own weight"
            made = join_words(image.sources) or "(no source)"
            self._add_fault(
                "RK364", title, help, image.rule, f"{made} -> {name}, beside {move.sources[0]} -> {move.target}"
            )

    # ------------------------------------------------------------------------------------------------ adapters

    def _judge_alpha(self, alpha: str, tensors: Sequence[Move]) -> None:
        if not tensors:
            return
        if any(_reads_alpha(move, alpha) for move in tensors):
            self._judge_folded(alpha, tensors)
            return
        images = self.of.get(alpha, [])
        shown = f"{alpha} belongs to {join_words(fqn for move in tensors[:2] for fqn in move.sources[:1])}"
        if not images:
            rule = self.dropped.get(alpha, tensors[0].rule)
            if rule.id in self.neutral:
                self._add_fault("RK367", "dropped as neutral: their values were not read", "", rule, shown)
                return
            title = "an alpha is dropped and not folded; the adapter would lose the factor alpha / LoRA rank"
            help = f"keep or rename it with its adapter; {NEUTRAL}"
            self._add_fault("RK366", title, help, rule, shown)
            return
        for move in tensors:
            joined = len(set(move.sources)) > 1 and any(isinstance(op, Join) and not op.merge for op in move.ops)
            if joined and not self._is_alpha_carried(move):
                title = "adapters with alphas are joined, which changes their LoRA rank and so alpha / LoRA rank"
                help = "keep the adapters apart, each with its alpha"
                self._add_fault("RK362", title, help, move.rule, f"{join_words(move.sources[:3])} -> {move.target}")
            module = find_adapter_module(move.target)
            if module is not None and not any(image.target.startswith(module + ".") for image in images):
                title = "an adapter and its alpha no longer belong together"
                help = "move both to the same module"
                away = join_words(image.target for image in images)
                self._add_fault(
                    "RK364", title, help, move.rule, f"{move.sources[0]} -> {move.target}, but {alpha} -> {away}"
                )

    def _is_alpha_carried(self, move: Move) -> bool:
        """Return whether the module of joined adapters has an alpha for its LoRA rank, from all of their alphas.

        With equal factors alpha / r, that is one of the alphas times (new rank / own rank), which are compared before
        anything is written (`merge`).
        """
        module = find_adapter_module(move.target)
        image = self.targets.get(f"{module}.alpha")
        rank = self._find_new_rank(module or "")
        join = image.ops[0] if image is not None and len(image.ops) == 1 else None
        if image is None or rank is None or not isinstance(join, Join) or not join.merge:
            return False
        modules = [find_adapter_module(fqn) for fqn in move.sources]
        if {f"{each}.alpha" for each in modules} != set(image.sources):
            return False
        ranks = {
            f"{each}.alpha": self._find_own_rank(f"{each}.alpha", fqn)
            for each, fqn in zip(modules, move.sources, strict=True)
        }
        for alpha, ops in zip(image.sources, itertools.cycle(join.branches), strict=False):
            own, factors = ranks[alpha], [op.factor for op in ops if isinstance(op, ScaleOp)]
            if own is None or len(factors) < len(ops) or math.prod(factors) * own != rank:
                return False
        return True

    def _find_own_rank(self, alpha: str, fqn: str) -> int | None:
        """Return the LoRA rank that the matrices with an alpha show, of which a tensor may be no one: a magnitude."""
        rank = _read_lora_rank({each: self.source[each] for each in self.adapters.get(alpha, ())})
        return _find_lora_rank(fqn, self.source) if rank is None else rank

    def _list_of_module(self, module: str) -> Sequence[str]:
        if self.modules is None:
            self.modules = defaultdict(list)
            for fqn in self.targets:
                self.modules[find_adapter_module(fqn) or ""].append(fqn)
        return self.modules.get(module, ())

    def _find_new_rank(self, module: str) -> int | None:
        """Return the LoRA rank of a new module: of matrices, of convolutions, or of stacks of matrices."""
        return _read_lora_rank({fqn: self.targets[fqn].spec for fqn in self._list_of_module(module)})

    def _judge_folded(self, alpha: str, tensors: Sequence[Move]) -> None:
        """Check that an alpha, divided by the LoRA rank, is multiplied into one tensor, and nowhere else."""
        folds = [move for move in tensors if _reads_alpha(move, alpha)]
        (*_, fold) = folds
        rank = _read_lora_rank({fqn: self.source[fqn] for fqn in self.adapters[alpha]})
        rank = _find_lora_rank(fold.sources[0], self.source) if rank is None else rank
        join = fold.ops[0]
        assert isinstance(join, Join) and join.combine is not None
        over = join.combine.find_over(self.source[fold.sources[0]])
        title = None
        if len(folds) > 1 or len(self.of.get(alpha, [])) > 1:
            title = "an alpha must be folded into one tensor of its adapter, and not be kept"
        elif over != rank:
            known = f"its LoRA rank, {rank}" if rank is not None else "a LoRA rank, which this tensor does not show"
            title = f"an alpha must be divided by {known}, got `over: {over}`"
        if title is not None:
            help = "multiply the up matrix: `multiply: {by: '{m}.alpha', over: size(1)}`, and rename the others"
            self._add_fault("RK362", title, help, fold.rule, f"{fold.sources[0]} and {alpha} -> {fold.target}")


_SEVERITY: Mapping[str, Severity] = {"RK365": Severity.WARNING, "RK367": Severity.NOTE}


def _is_dequantized(move: Move, weight: str, companions: Sequence[str]) -> bool:
    """Return whether a move multiplies a weight by its only companion: its value is then in the result."""
    join = move.ops[0] if move.ops else None
    if not isinstance(join, Join) or join.combine is None or join.combine.kind != "dequantize":
        return False
    if not all(isinstance(op, Squeeze | Unsqueeze) for branch in join.branches for op in branch):
        return False
    place = move.sources.index(weight)
    return place % 2 == 0 and move.sources[place + 1 : place + 2] == tuple(companions)


def _reads_alpha(move: Move, alpha: str) -> bool:
    """Return whether a move multiplies one tensor by an alpha, and does nothing else before that."""
    join = move.ops[0] if move.ops else None
    is_product = isinstance(join, Join) and join.combine is not None and join.combine.kind == "multiply"
    return is_product and isinstance(join, Join) and not any(join.branches) and move.sources[1:] == (alpha,)


def _read_lora_rank(tensors: Mapping[str, TensorSpec]) -> int | None:
    """Return the LoRA rank that both matrices of a module show: plain ones, of convolutions, or stacked."""
    shapes = {found[1]: spec.shape for fqn, spec in tensors.items() if (found := _FACTOR.search(fqn))}
    up, down = shapes.get("up", shapes.get("B", ())), shapes.get("down", shapes.get("A", ()))
    if min(len(up), len(down)) < 2:
        return None
    is_stack = len(up) == len(down) == 3 and up[0] == down[0] and up[2] == down[1]
    return up[2] if is_stack else up[1]


def _find_lora_rank(fqn: str, header: Mapping[str, TensorSpec]) -> int | None:
    """Return the LoRA rank that the shape of an up or down matrix shows."""
    shape = header[fqn].shape
    if len(shape) < 2:
        return None
    found = _FACTOR.search(fqn)
    return None if found is None else shape[1] if found[1] in ("up", "B") else shape[0]


def _has_only_casts(ops: Iterable[Op]) -> bool:
    return all(isinstance(op, CastOp) for op in ops)


def _is_one(ops: Sequence[Op]) -> bool:
    """Return whether a tensor is created as all ones, that is, a scale without effect."""
    return bool(ops) and isinstance(ops[0], FillOp) and ops[0].value in ("ones", 1, 1.0)


def _is_value_kept(ops: Iterable[Op], spec: TensorSpec) -> bool:
    """Return whether a companion keeps its value: an exact cast, or a single number in another shape."""
    dtype = spec.dtype
    for op in ops:
        if isinstance(op, CastOp) and is_exact_cast(dtype, op.dtype):
            dtype = op.dtype
        elif not (isinstance(op, ReshapeOp | Squeeze | Unsqueeze) and spec.numel == 1):
            return False
    return True
