"""What `learn` returns, and the comments at the end of its file: what the author has to check or decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.authoring.derive import write_patterns
from remapkit.authoring.relation import Relation
from remapkit.authoring.settle import By, Settled
from remapkit.diagnostics.wording import count_noun, escape_line
from remapkit.tensors.families import find_families
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Learned:
    """A derived rule file, the pairs that it maps, and what the examples leave open.

    Every key of A is in one of `pairs`, `undecided`, `only_a` and `unsaid`; every key of B is the target of a pair,
    or in one of `open_b` and `only_b`. `settled` are the pairs that values alone leave open (constants, and bytes of
    several keys), with the evidence for them. `relations` are the targets that follow by operations: their
    keys are in no other field. `undecided` are keys of A that nothing decides, with the free keys of
    B that have the same bytes; `open_b` are keys of B that have an equal tensor in A, but that no rule produces;
    `only_a` and `only_b` have no equal tensor on the other side, `reasons` says of the latter why no operation gives
    them; `unsaid` are pairs that no rule can express.
    """

    text: str
    pairs: Mapping[str, str]
    settled: Mapping[str, Settled]
    undecided: Mapping[str, tuple[str, ...]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    open_b: tuple[str, ...] = ()
    unsaid: Mapping[str, str] = field(default_factory=dict)
    relations: tuple[Relation, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    by_value: bool = True
    """Whether values were compared; if not, `only_a` and `only_b` are keys of which nobody said anything."""

    @property
    def by_module(self) -> Mapping[str, str]:
        """The pairs that were decided because all other tensors of their module went to one module."""
        return {fqn: settled.target for fqn, settled in self.settled.items() if settled.by is By.MODULE}


def write_leftovers(source: StateDictSpec, target: StateDictSpec, learned: Learned) -> Iterator[str]:
    """Yield comments on what the author has to check or decide."""
    for by in By:
        fqns = [fqn for fqn, settled in learned.settled.items() if settled.by is by]
        if fqns:
            yield ""
            kinds = "symmetric values" if by is By.SIMPLEST else "constants, bytes of several keys"
            yield f"# Values alone do not decide these ({kinds}). Paired because {by.value}:"
            yield from _write_families(source, fqns)
    reasons = dict.fromkeys(each.by for each in learned.relations if each.by)
    for reason in reasons:
        yield ""
        yield f"# Values alone do not decide these. Their operations were chosen because {escape_line(reason)}:"
        made = [fqn for each in learned.relations if each.by == reason for fqn in each.targets]
        yield from _write_families(target, made)
    for dtype in dict.fromkeys(each.rounded for each in learned.relations if each.rounded):
        yield ""
        yield f"# Equal only after rounding to {dtype}. The rules give B rounded, not bit for bit:"
        made = [fqn for each in learned.relations if each.rounded == dtype for fqn in each.targets]
        yield from _write_families(target, made)
    if learned.undecided:
        yield ""
        yield "# Values alone do not pair these (constants, bytes of several keys), and there is no other evidence:"
        yield from _write_families(source, tuple(learned.undecided))
    if learned.open_b:
        yield "# Target keys with an equal in the source that no rule produces:"
        yield from _write_families(target, learned.open_b)
    for fqn, other in learned.unsaid.items():
        yield f"# No rule can express this pair: {escape_line(fqn)} -> {escape_line(other)}"
    for rest, header, what in ((learned.only_a, source, "source"), (learned.only_b, target, "target")):
        if rest:
            yield ""
            count = f"{len(rest)} of {count_noun(len(header), 'key')}"
            words = f"In the {what} only, or changed by the conversion" if learned.by_value else "In no given pair"
            yield f"# {words}: {count}{'' if learned.by_value else f' of the {what}'}."
            by_reason: dict[str, list[str]] = {reason: [] for reason in ("", *learned.reasons.values())}
            for fqn in rest:
                by_reason[learned.reasons.get(fqn, "") if header is target else ""].append(fqn)
            for reason, fqns in by_reason.items():
                if reason and fqns:
                    yield f"# {escape_line(reason[:1].upper() + reason[1:])}:"
                yield from _write_families(header, fqns)
    yield from _write_drop(source, learned)


def _write_drop(source: StateDictSpec, learned: Learned) -> Iterator[str]:
    """Yield a list of all keys that no rule reads, to be uncommented: only the author leaves out anything."""
    read = {*learned.pairs, *(fqn for each in learned.relations for fqn in each.sources)}
    left = [fqn for fqn in source if fqn not in read and fqn]
    if left:
        yield ""
        yield f"# No rule reads {count_noun(len(left), 'key')}, so `remapkit apply` refuses a checkpoint with"
        yield f"# {'it' if len(left) == 1 else 'them'}. To leave out those that the target does not need, uncomment:"
        yield "# drop:"
        yield from (f"#   - {escape_line(pattern)}" for pattern in write_patterns(left))


def _write_families(header: StateDictSpec, fqns: Sequence[str]) -> Iterator[str]:
    some = StateDictSpec({fqn: header[fqn] for fqn in fqns}, name=header.name)
    yield from (f"#   {escape_line(family.pattern)}  # {len(family.fqns)}" for family in find_families(some))
