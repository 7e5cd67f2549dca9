"""`remapkit.learn`: rules derived from two checkpoints that hold the same weights, or from written pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from remapkit.api.inputs import Side, list_files_read, open_sides
from remapkit.api.ruleset import checked
from remapkit.authoring import learn as authoring
from remapkit.authoring.find_rounded import Operations, find_operations, has_equal_rounded
from remapkit.authoring.pair_by_value import Pairing, add_given, find_contradictions, pair_by_value
from remapkit.authoring.relation import Relation
from remapkit.authoring.settle import By
from remapkit.authoring.verify_relation import has_equal_bytes
from remapkit.compute.move_bytes import read_target_chunks
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.files.text import write_texts
from remapkit.formats import Reader
from remapkit.formats.manifest import manifest_json
from remapkit.formats.options import make_read_options
from remapkit.plans.moves import Move
from remapkit.registry.installed import read_user_json
from remapkit.sources.mounts import SourceLike
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class LearnReport:
    """The rule file that `learn` derived, and what the two sides leave undecided.

    `learned` has the text and the result for every key; `source` and `target` are the headers of A and B. `output`
    is the written file, with its manifests in `keys/` next to it.
    """

    learned: authoring.Learned
    source: StateDictSpec
    target: StateDictSpec
    output: Path | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        read = len(self.learned.pairs) + len({fqn for each in self.learned.relations for fqn in each.sources})
        made = len(self.learned.pairs) + sum(len(each.targets) for each in self.learned.relations)
        return f"rules that map {read} of {len(self.source)} keys to {made} of {len(self.target)}"

    @property
    def ok(self) -> bool:
        """Whether the rules read every key of A and make every key of B."""
        left = self.learned
        return not (left.undecided or left.only_a or left.only_b or left.open_b or left.unsaid)

    @property
    def text(self) -> str:
        """The rule file."""
        return self.learned.text


@checked
def learn(
    a: SourceLike,
    b: SourceLike,
    output: str | Path | None = None,
    *,
    name: str | None = None,
    pairs: str | Path | Mapping[str, str] | None = None,
    root_a: str | None = None,
    root_b: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
    force: bool = False,
) -> LearnReport:
    """Derive the rules that map A to B, two checkpoints that hold the same weights under different names.

    Args:
        a, b: The checkpoints, each one or several files; see `open_checkpoint`.
        output: The file to write, with the manifests of both in `keys/` next to it; without it only the text is
            returned.
        name: The name of the pack; by default that of the file, else `learned`.
        pairs: The key of B for keys of A where values do not say it: a mapping, or the path of one as JSON. Of
            manifests, which have no values, these are the only pairs.
        root_a, root_b: Where the state dict is in a checkpoint that holds several.
        strip, strict_pickle, allow_expand, follow_links: How both are read; see `open_checkpoint`.
        force: Replace the files if they exist.

    Returns:
        `LearnReport`. The rules are proven for all keys. Its `diagnostics` list what values leave open; they are
        logged too (logger `remapkit`).

    Raises:
        UsageError: Values pair no keys, no correct rules can be written, or `pairs` is wrong.
        UnreadableCheckpoint: A checkpoint that cannot be read.
        UnwritableOutput: A file that cannot be written, or exists (`OutputExists`). Nothing was changed.

    >>> import pathlib, tempfile, torch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> weights = [torch.arange(4.0) + n for n in range(3)]
    >>> torch.save({f"layers.{n}.w": weight for n, weight in enumerate(weights)}, folder / "a.pth")
    >>> torch.save({f"h.{n}.w": weight for n, weight in enumerate(weights)}, folder / "b.pth")
    >>> report = learn(folder / "a.pth", folder / "b.pth")
    >>> report.learned.pairs["layers.1.w"], report.diagnostics
    ('h.1.w', ())
    """
    arguments = dict(locals())
    name = name or ("learned" if output is None else Path(output).stem)
    output = None if output is None else Path(output)
    options = make_read_options(None, strip, strict_pickle, allow_expand, follow_links)
    with ExitStack() as stack:
        readers = open_sides(stack, Side(a, root_a), Side(b, root_b), options)
        source, target = (reader.header() for reader in readers)
        sources = list_files_read(arguments, *readers, but=("output",))
        given = None if pairs is None else _read_pairs(pairs, source, target)
        has_values = all(reader.format != "manifest" for reader in readers)
        pairing = given if given is not None and not has_values else _pair_readers(*readers)
        source, target = source.with_recorded(pairing.recorded_a), target.with_recorded(pairing.recorded_b)
        where: tuple[str | None, str | None] = (None, None)
        if output is not None:
            where = (f"keys/{output.stem}.source.json", f"keys/{output.stem}.target.json")
        found, replay = _find_operations(*readers, pairing) if pairing.by_value else (Operations((), {}), None)
        pairing = replace(pairing, symmetric=found.symmetric)
        if given is not None and pairing.by_value:
            pairing, found = _add_given(pairing, found, given.pairs)
        learned = authoring.learn(
            name, source, target, pairing, *where, found.relations, replay, reasons=found.reasons
        )
    if output is not None:
        manifests = zip(where, (source, target), strict=True)
        texts = {output.parent / str(file): manifest_json(header) for file, header in manifests}
        write_texts({**texts, output: learned.text}, force=force, sources=sources, folders=[output.parent / "keys"])
    diagnostics = tuple(_report_leftovers(learned, source, target))
    log_diagnostics(diagnostics)
    return LearnReport(learned, source, target, output, diagnostics)


def _pair_readers(a: Reader, b: Reader) -> Pairing:
    for reader in (a, b):
        if reader.format == "manifest":
            title = f"{reader.header().name} is a manifest, which has no values to compare"
            help = ("pass the checkpoint itself, or known pairs as a JSON object: --pairs FILE",)
            raise UsageError(Diagnostic("RK626", title, help=help))
    return pair_by_value(a, b)


def _find_operations(a: Reader, b: Reader, pairing: Pairing) -> tuple[Operations, authoring.Replay]:
    """Return the operations that values show, and a replay that runs each move once."""
    found = find_operations(a, b, pairing)
    rounded = found.rounded
    known: dict[tuple[object, ...], bool] = {}

    def replay(move: Move) -> bool:
        key = (move.sources, move.target, repr(move.ops))
        if key not in known:
            made, wanted = read_target_chunks(move, a), b.chunks(move.target)
            known[key] = (
                has_equal_rounded(made, wanted, move.spec.dtype, rounded[move.target])
                if move.target in rounded
                else has_equal_bytes(made, wanted)
            )
        return known[key]

    return found, replay


def _add_given(pairing: Pairing, found: Operations, given: Mapping[str, str]) -> tuple[Pairing, Operations]:
    """Complete what values say by given pairs; raises `UsageError` (RK627) if these contradict it."""
    wrong = find_contradictions(pairing, given)
    makers = {fqn: each for each in found.relations for fqn in each.targets}
    users = {fqn: each for each in found.relations for fqn in each.sources}
    beaten: list[Relation] = []
    for fqn, other in given.items():
        relations = [each for each in (users.get(fqn), makers.get(other)) if each is not None]
        if all(fqn in each.sources and other in each.targets for each in relations):
            continue
        certain = next((each for each in relations if not each.by), None)
        beaten += [each for each in relations if each.by]
        if certain is not None:
            names = f"{' and '.join(certain.sources)} -> {' and '.join(certain.targets)}"
            wrong.append(f"{fqn} -> {other}: by value, an operation makes {names}")
    if wrong:
        title = (
            f"{count_noun(len(wrong), 'given pair')} {'contradicts' if len(wrong) == 1 else 'contradict'} the values"
        )
        help = ("take these pairs out, or correct them: values decide where they are unique",)
        raise UsageError(Diagnostic("RK627", title, notes=(list_names(wrong),), help=help))
    kept = tuple(each for each in found.relations if each not in beaten)
    covered = {fqn for each in kept for fqn in each.sources}
    added = add_given(pairing, {fqn: other for fqn, other in given.items() if fqn not in covered})
    return added, replace(found, relations=kept)


def _read_pairs(pairs: str | Path | Mapping[str, str], source: StateDictSpec, target: StateDictSpec) -> Pairing:
    """Read pairs written by hand, source key to target key; raises `UsageError` with all problems at once."""
    place = pairs if isinstance(pairs, str | Path) else "pairs"
    value = read_user_json(Path(pairs)) if isinstance(pairs, str | Path) else pairs
    if not isinstance(value, Mapping) or not all(isinstance(fqn, str) for fqn in value.values()):
        raise UsageError(Diagnostic("RK611", f"{place} must be a JSON object from source keys to target keys"))
    by_target: dict[str, list[str]] = {}
    for fqn, other in value.items():
        by_target.setdefault(other, []).append(fqn)
    recorded = (
        tuple(fqn for fqn in value if fqn in source.recorded),
        tuple(f for f in by_target if f in target.recorded),
    )
    source, target = source.with_recorded(recorded[0]), target.with_recorded(recorded[1])
    wrong = [f"{fqn} is not a key of {source.name}" for fqn in value if fqn not in source]
    wrong += [f"{other} is not a key of {target.name}" for other in by_target if other not in target]
    wrong += [
        f"{fqn} is {source[fqn]} and {other} is {target[other]}"
        for fqn, other in value.items()
        if fqn in source and other in target and source[fqn].shape != target[other].shape
    ]
    wrong += [f"{' and '.join(fqns)} both become {other}" for other, fqns in by_target.items() if len(fqns) > 1]
    if wrong:
        raise UsageError(
            Diagnostic(
                "RK627", f"{place}: {count_noun(len(wrong), 'pair')} cannot be right", notes=(list_names(wrong),)
            )
        )
    only_a = tuple(fqn for fqn in source if fqn not in value)
    only_b = tuple(fqn for fqn in target if fqn not in by_target)
    pairs = {fqn: value[fqn] for fqn in source if fqn in value}
    return Pairing(pairs, {}, only_a, only_b, *recorded, by_value=False)


def _report_leftovers(learned: authoring.Learned, source: StateDictSpec, target: StateDictSpec) -> list[Diagnostic]:
    found = []
    for by in By:
        pairs = [f"{fqn} -> {each.target}" for fqn, each in learned.settled.items() if each.by is by]
        if pairs:
            title = f"{count_noun(len(pairs), 'pair')} cannot be decided by value; paired because {by.value}"
            found.append(Diagnostic("RK628", title, notes=(list_names(pairs),), severity=Severity.NOTE))
    for reason in dict.fromkeys(each.by for each in learned.relations if each.by):
        targets = [fqn for each in learned.relations if each.by == reason for fqn in each.targets]
        title = (
            f"{count_noun(len(targets), 'key')} of B cannot be decided by value; operations chosen because {reason}"
        )
        found.append(Diagnostic("RK628", title, notes=(list_names(targets),), severity=Severity.NOTE))
    found += _report_rounded(learned)
    if learned.undecided:
        title = f"{count_noun(len(learned.undecided), 'key')} undetermined: constants, or bytes that other keys have"
        found.append(_make_warning("RK628", title, list(learned.undecided), source.name))
    if learned.open_b:
        verb = "has" if len(learned.open_b) == 1 else "have"
        title = f"no rule produces {count_noun(len(learned.open_b), 'key')} of B that {verb} an equal tensor in A"
        found.append(_make_warning("RK628", title, list(learned.open_b), target.name, {}))
    if learned.unsaid:
        title = f"no rule can express {count_noun(len(learned.unsaid), 'pair')}"
        found.append(_make_warning("RK656", title, list(learned.unsaid), source.name))
    for fqns, header in ((learned.only_a, source), (learned.only_b, target)):
        if fqns:
            verb = "has" if len(fqns) == 1 else "have"
            be = "is" if len(fqns) == 1 else "are"
            said = f"{verb} no equal tensor in the other checkpoint" if learned.by_value else f"{be} in no given pair"
            title = f"{count_noun(len(fqns), 'key')} of {len(header)} {said}"
            reasons = learned.reasons if header is target else None
            found.append(_make_warning("RK629", title, list(fqns), header.name, reasons))
    return found


def _report_rounded(learned: authoring.Learned) -> Iterator[Diagnostic]:
    for dtype in dict.fromkeys(each.rounded for each in learned.relations if each.rounded):
        targets = [fqn for each in learned.relations if each.rounded == dtype for fqn in each.targets]
        verb = "equals" if len(targets) == 1 else "equal"
        title = f"{count_noun(len(targets), 'key')} of B {verb} A only after rounding to {dtype}"
        help = (
            f"the rules give B rounded to {dtype}, not bit for bit; for all digits, learn from an A that has them",
        )
        found = Diagnostic("RK685", title, notes=(list_names(targets),), help=help, severity=Severity.NOTE)
        yield replace(found, values={"keys": targets, "dtype": dtype})


def _make_warning(
    code: str, title: str, fqns: list[str], place: str, reasons: Mapping[str, str] | None = None
) -> Diagnostic:
    """Return a warning about keys, which are listed by reason where there is one."""
    by_reason: dict[str, list[str]] = {}
    for fqn in fqns:
        by_reason.setdefault((reasons or {}).get(fqn, ""), []).append(fqn)
    notes = [f"{reason}:\n{list_names(some)}" if reason else list_names(some) for reason, some in by_reason.items()]
    # Only keys of A can be dropped.
    end = "" if reasons is not None else ", or name them under `drop:`"
    help = (f"the rule file lists them in comments: write rules for them{end}",)
    values: dict[str, object] = {"keys": fqns}
    if reasons:
        values["reasons"] = {fqn: reasons[fqn] for fqn in fqns if fqn in reasons}
    return Diagnostic(
        code, title, notes=tuple(notes), help=help, place=place, severity=Severity.WARNING, values=values
    )
