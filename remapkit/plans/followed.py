"""Companions that no rule takes follow their weights: their moves are derived from those of the weights.

Rules are written for plain weights; a quantised checkpoint has scales beside them. Each goes where its weight goes,
under the name that it has there in the same spelling, changed as the weight is (`follow`), or the weight is refused
by name. What a rule takes is never touched, and `unmatched: drop` is a word about companions too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remapkit.companions.names import (
    MARKER,
    Kind,
    can_have_companions,
    find_followers,
    is_marker,
    is_of_module,
    read_kind,
    spell_kind,
)
from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.wording import count_noun, join_words, list_names, show_key
from remapkit.ops.join import Join
from remapkit.plans.follow import Follower
from remapkit.plans.moves import UNMATCHED, Dropped, Move, RuleRef
from remapkit.plans.spread import DEQUANTIZE, Block, NoCounterpart
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec

BLOCK_SIZE = "weight_block_size"
"""The name of the size of blocks: in the `quantization_config` of a config, in metadata, and as a param."""

INPUT = "it is for the input of the layer: write a rule for it, or drop it if nothing reads it"


@dataclass(slots=True)
class Followed:
    """The moves of companions that follow their weights, those that are dropped with them, and what is refused.

    `follower` says what becomes of companions, also of those that rules take.
    """

    follower: Follower
    moves: list[Move] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    notes: list[Diagnostic] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    """Companions that need no rule: they follow, go with their weights, or are named in a problem."""
    refused: set[str] = field(default_factory=set)
    """Weights whose companions cannot follow."""


def follow_companions(
    rules: CompiledRules,
    route: CompiledRules,
    source: StateDictSpec,
    matched: Mapping[str, Sequence[object]],
    moves: Sequence[Move],
    dropped: Sequence[Dropped],
) -> Followed:
    """Return what becomes of the companions that no rule takes; `matched` has the matches of every key.

    Any rules of the `route` may know the size of blocks.
    """
    block, problems = find_block(route, source) if can_have_companions(source) else (None, [])
    made = Followed(Follower(source, block), problems=problems)
    return made if rules.unmatched == "drop" else _Derivation(source, made, matched, moves, dropped).derive()


class _Derivation:
    def __init__(
        self,
        source: StateDictSpec,
        made: Followed,
        matched: Mapping[str, Sequence[object]],
        moves: Sequence[Move],
        dropped: Sequence[Dropped],
    ) -> None:
        self.source, self.made, self.moves, self.dropped = source, made, moves, dropped
        owners: defaultdict[str, list[str]] = defaultdict(list)
        for weight, companions in find_followers(source).items():
            for each in companions:
                owners[each].append(weight)
        # What could belong to two weights is left to rules.
        self.loose: defaultdict[str, dict[Kind, str]] = defaultdict(dict)
        for companion, weights in owners.items():
            kind = read_kind(companion, weights[0])
            if len(weights) == 1 and not matched[companion] and matched[weights[0]] and kind is not None:
                self.loose[weights[0]][kind] = companion
        self.matched = matched
        self.faults: defaultdict[tuple[RuleRef, str, tuple[str, ...]], list[str]] = defaultdict(list)

    def derive(self) -> Followed:
        gone = {each.fqn: each.rule for each in self.dropped}
        moved: set[str] = set()
        for move in self.moves:
            if any(fqn in self.loose for fqn in move.sources):
                moved.update(move.sources)
                if not _uses_up(move):
                    self._follow(move)
        for weight, companions in self.loose.items():
            if weight in gone:
                self.made.dropped += (Dropped(each, gone[weight]) for each in companions.values())
            if weight in gone or weight not in moved:  # without a move, its rule has a problem of its own
                self.made.taken.update(companions.values())
        self._keep_markers()
        self.made.problems += (self._report_fault(*key, names) for key, names in self.faults.items())
        self.made.notes += () if self.faults else self._describe()
        return self.made

    def _follow(self, move: Move) -> None:
        """Add the moves of the companions of the target of a move."""
        for kind in dict.fromkeys(kind for fqn in move.sources for kind in self.loose.get(fqn, ())):
            names = [self.loose.get(fqn, {}).get(kind) for fqn in move.sources]
            companions = [name for name in names if name is not None]
            if any(self._is_ruled(fqn, kind) for fqn in move.sources):
                continue  # rules take a part of them: the others are keys without a rule
            self.made.taken.update(companions)
            try:
                if len(companions) < len(names):
                    lacking = [fqn for fqn, name in zip(move.sources, names, strict=True) if name is None]
                    help = "write rules that take these weights apart from the others"
                    raise NoCounterpart(f"{join_words(lacking, 2)} has no companion like {companions[0]}", help)
                target = spell_kind(kind, move.target)
                if target is None:
                    title = f"{show_key(move.target)} cannot have a companion spelt like {companions[0]}"
                    raise NoCounterpart(title, "write a rule that names it")
                ops, spec = self.made.follower.follow(move, companions, kind)
            except NoCounterpart as reason:
                shown = f"{', '.join(move.sources[:2])} ({self.source[move.sources[0]]}), with {companions[0]} "
                shown += f"({self.source[companions[0]]}) -> {move.target}"
                advice = reason.help or (INPUT if is_of_module(kind) else DEQUANTIZE,)
                self.faults[move.rule, str(reason), advice].append(shown)
                self.made.refused.update(move.sources)
                continue
            self.made.moves.append(Move(target, tuple(companions), ops, move.rule, spec))

    def _is_ruled(self, weight: str, kind: Kind) -> bool:
        """Return whether a rule takes the companion of this kind of a weight."""
        name = spell_kind(kind, weight)
        return name is not None and bool(self.matched.get(name))

    def _keep_markers(self) -> None:
        """Keep the tensor that marks a file of scaled weights, where its prefix is still that of weights."""
        for fqn in filter(is_marker, self.source):
            prefix = fqn.removesuffix(MARKER)
            below = not prefix or any(move.target.startswith(prefix) for move in self.moves)
            if not self.matched[fqn] and below:
                self.made.taken.add(fqn)
                self.made.moves.append(Move(fqn, (fqn,), (), UNMATCHED, self.source[fqn]))

    def _report_fault(self, rule: RuleRef, reason: str, help: tuple[str, ...], names: list[str]) -> Diagnostic:
        where = count_noun(len(names), "target")
        title = f"{rule.id}: companions of scaled weights cannot follow to {where}: {reason}"
        labels = (Label(rule.span),) if rule.span is not None else ()
        values = {"rule": rule.id, "names": names}
        return Diagnostic("RK745", title, labels, help, (list_names(names),), place=self.source.name, values=values)

    def _describe(self) -> Iterator[Diagnostic]:
        """Say which companions follow, a note for each spelling."""
        spelt: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for move in self.made.moves:
            for fqn in move.sources:
                spelt[fqn.rpartition(".")[2]][fqn].append(move.target)
        for spelling, targets in spelt.items():
            if spelling == MARKER:
                yield self._note(f"{MARKER} marks a file of scaled weights, and is kept", list(targets))
                continue
            what = "it follows its weight" if len(targets) == 1 else "they follow their weights"
            title = f"no rule takes {count_noun(len(targets), 'key')} `{spelling}`: {what}"
            yield self._note(title, [f"{fqn} -> {join_words(made, 3)}" for fqn, made in targets.items()])
        if names := [each.fqn for each in self.made.dropped]:
            yield self._note(f"{count_noun(len(names), 'key')} dropped with the weights that they belong to", names)

    def _note(self, title: str, lines: Sequence[str]) -> Diagnostic:
        return Diagnostic("RK746", title, notes=(list_names(lines),), severity=Severity.NOTE, place=self.source.name)


def _uses_up(move: Move) -> bool:
    """Return whether a move multiplies its weight by its scale, or does other arithmetic with it."""
    first = move.ops[0] if move.ops else None
    return isinstance(first, Join) and first.combine is not None


# ------------------------------------------------------------------------------------------------ the size of blocks


def find_block(rules: CompiledRules, source: StateDictSpec) -> tuple[Block | None, list[Diagnostic]]:
    """Return the size of the blocks of a checkpoint's scales, where a param, a config or its metadata has one.

    An error (RK748) if a size is none, or if two of them differ.

    >>> quoted = {"quantization_config": '{"weight_block_size": [128, 128]}'}
    >>> from remapkit.rulefile.read import read_text
    >>> from remapkit.rules.compile import compile_rules
    >>> rules = compile_rules(read_text("remapkit: 1\\nname: t\\nkeep: [a]"))
    >>> find_block(rules, StateDictSpec({}, metadata=quoted))[0]
    (128, 128)
    """
    found = dict(_list_sizes(rules, source))
    sizes: set[Block] = set()
    for where, size in found.items():
        block = _read_block(size)
        if block is None:
            title = f"the size of blocks must be two positive numbers, rows and columns, got {json.dumps(size)}"
            return None, [_report_size(title, [where], source)]
        sizes.add(block)
    if len(sizes) > 1:
        shown = join_words(sorted(f"{where}: {json.dumps(size)}" for where, size in found.items()))
        return None, [_report_size(f"two sizes of blocks: {shown}", list(found), source)]
    return next(iter(sizes), None), []


def _list_sizes(rules: CompiledRules, source: StateDictSpec) -> Iterator[tuple[str, Any]]:
    for part in rules.parts:
        if (given := part.params.get(BLOCK_SIZE)) is not None:
            yield f"the param {BLOCK_SIZE}", [given] if isinstance(given, int) else list(given)
        config = part.inputs[1]
        if config is not None and (size := _look_up(config)) is not None:
            yield "the config", size
    for entry in ("quantization_config", "config"):
        try:
            value = json.loads(source.metadata.get(entry, "null"))
        except (ValueError, RecursionError):  # any text may be an entry
            continue
        size = _look_up({entry: value} if entry == "quantization_config" else value)
        if size is not None:
            yield f"`{entry}` in the metadata", size


def _look_up(config: object) -> Any:
    quantization = config.get("quantization_config") if isinstance(config, Mapping) else None
    return quantization.get(BLOCK_SIZE) if isinstance(quantization, Mapping) else None


def _read_block(size: object) -> Block | None:
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        return None
    rows, columns = size
    is_number = all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in size)
    return (rows, columns) if is_number else None


def _report_size(title: str, where: Sequence[str], source: StateDictSpec) -> Diagnostic:
    help = (f"correct {BLOCK_SIZE}, for example [128, 128], in {join_words(where)}",)
    return Diagnostic("RK748", title, help=help, place=source.name)
