"""`remapkit learn`: a rule file derived from two checkpoints that hold the same weights, or from written pairs."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from remapkit.authoring.learn import Learned, learn
from remapkit.authoring.pair_by_value import Pairing, pair_by_value
from remapkit.authoring.settle import By
from remapkit.cli.commands.common import list_files_read, open_sides
from remapkit.cli.render import CommandOutcome
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.files.text import write_texts
from remapkit.formats import Reader
from remapkit.formats.manifest import manifest_json
from remapkit.registry.installed import read_user_json
from remapkit.tensors.spec import StateDictSpec


def run(args: Namespace) -> CommandOutcome:
    """A rule file that says which key of A is which of B."""
    name = args.name or (Path(args.output).stem if args.output and args.output != "-" else "learned")
    output = None if args.output == "-" else Path(args.output or f"{name}.yaml")
    with ExitStack() as stack:
        a, b = open_sides(args, stack)
        source, target = a.header(), b.header()
        read = list_files_read(args, a, b, but=("output",))
        pairing = _read_pairs(Path(args.pairs), source, target) if args.pairs else _pair_readers(a, b)
    source, target = source.with_recorded(pairing.recorded_a), target.with_recorded(pairing.recorded_b)
    references = (f"keys/{output.stem}.source.json", f"keys/{output.stem}.target.json") if output else (None, None)
    learned = learn(name, source, target, pairing, *references)
    said = tuple(_report_leftovers(learned, source, target))
    if output is None:
        return CommandOutcome(
            data={"text": learned.text, **_dump_learned(learned)}, raw=learned.text, diagnostics=said
        )
    headers = {str(references[0]): source, str(references[1]): target}
    manifests = {output.parent / where: manifest_json(header) for where, header in headers.items()}
    texts = {**manifests, output: learned.text}
    write_texts(texts, force=args.force, sources=read, folders=[output.parent / "keys"])
    return CommandOutcome(
        data={"output": str(output), **_dump_learned(learned)},
        text=(
            f"wrote {output} with its manifests: rules, proven for all keys, that take "
            f"{len(learned.pairs)} of {count_noun(len(source), 'key')} to {len(learned.pairs)} of {len(target)}",
            f"next: read it; `remapkit lint {output}` and `remapkit test {output}` say the same again",
        ),
        diagnostics=said,
    )


def _dump_learned(learned: Learned) -> dict[str, object]:
    return {
        "pairs": dict(learned.pairs),
        "settled": {
            fqn: {"target": settled.target, "by": settled.by.name.lower()} for fqn, settled in learned.settled.items()
        },
        "undecided": _group_undecided(learned),
        "open_b": list(learned.open_b),
        "only_a": list(learned.only_a),
        "only_b": list(learned.only_b),
        "unsaid": dict(learned.unsaid),
    }


def _group_undecided(learned: Learned) -> list[dict[str, object]]:
    """The keys that share their candidates, together: thousands of zeros may all have thousands."""
    together: dict[int, list[str]] = {}
    for fqn, others in learned.undecided.items():
        together.setdefault(id(others), []).append(fqn)
    return [{"keys": fqns, "candidates": list(learned.undecided[fqns[0]])} for fqns in together.values()]


def _pair_readers(a: Reader, b: Reader) -> Pairing:
    for reader in (a, b):
        if reader.format == "manifest":
            title = f"{reader.header().name} is a manifest: it has no values to tell keys by"
            help = ("give the checkpoint itself, or the pairs that you know as a JSON object: --pairs FILE",)
            raise UsageError(Diagnostic("RK626", title, help=help))
    return pair_by_value(a, b)


def _read_pairs(path: Path, source: StateDictSpec, target: StateDictSpec) -> Pairing:
    """Pairs that somebody wrote: a JSON object, source key to target key; every problem of it at once."""
    value = read_user_json(path)
    if not isinstance(value, dict) or not all(isinstance(fqn, str) for fqn in value.values()):
        raise UsageError(Diagnostic("RK611", f"{path} is no JSON object of source keys to target keys"))
    by_target: dict[str, list[str]] = {}
    for fqn, other in value.items():
        by_target.setdefault(other, []).append(fqn)
    recorded = (
        tuple(fqn for fqn in value if fqn in source.recorded),
        tuple(f for f in by_target if f in target.recorded),
    )
    source, target = source.with_recorded(recorded[0]), target.with_recorded(recorded[1])
    wrong = [f"{fqn} is no key of {source.name}" for fqn in value if fqn not in source]
    wrong += [f"{other} is no key of {target.name}" for other in by_target if other not in target]
    wrong += [
        f"{fqn} is {source[fqn]} and {other} is {target[other]}"
        for fqn, other in value.items()
        if fqn in source and other in target and source[fqn].shape != target[other].shape
    ]
    wrong += [f"{' and '.join(fqns)} both become {other}" for other, fqns in by_target.items() if len(fqns) > 1]
    if wrong:
        raise UsageError(
            Diagnostic("RK627", f"{path}: {count_noun(len(wrong), 'pair')} cannot be", notes=(list_names(wrong),))
        )
    only_a = tuple(fqn for fqn in source if fqn not in value)
    only_b = tuple(fqn for fqn in target if fqn not in by_target)
    pairs = {fqn: value[fqn] for fqn in source if fqn in value}
    return Pairing(pairs, {}, only_a, only_b, *recorded, by_value=False)


def _report_leftovers(learned: Learned, source: StateDictSpec, target: StateDictSpec) -> list[Diagnostic]:
    found = []
    for by in By:
        pairs = [f"{fqn} -> {each.target}" for fqn, each in learned.settled.items() if each.by is by]
        if pairs:
            title = f"values leave {count_noun(len(pairs), 'pair')} open; taken, because {by.value}"
            found.append(Diagnostic("RK628", title, notes=(list_names(pairs),), severity=Severity.NOTE))
    if learned.undecided:
        title = f"{count_noun(len(learned.undecided), 'key')} undetermined: constants, or bytes that other keys have"
        found.append(_make_warning("RK628", title, list(learned.undecided), source.name))
    if learned.open_b:
        title = f"{count_noun(len(learned.open_b), 'key')} with an equal on the other side that no rule leads to"
        found.append(_make_warning("RK628", title, list(learned.open_b), target.name))
    if learned.unsaid:
        title = f"{count_noun(len(learned.unsaid), 'pair')} that no rule can say"
        found.append(_make_warning("RK656", title, list(learned.unsaid), source.name))
    for fqns, header in ((learned.only_a, source), (learned.only_b, target)):
        if fqns:
            title = f"{count_noun(len(fqns), 'key')} of {len(header)} have no equal on the other side"
            found.append(_make_warning("RK629", title, list(fqns), header.name))
    return found


def _make_warning(code: str, title: str, fqns: list[str], place: str) -> Diagnostic:
    help = ("the rule file lists them in comments: write rules for them, or name them under `drop:`",)
    return Diagnostic(
        code,
        title,
        notes=(list_names(fqns),),
        help=help,
        place=place,
        severity=Severity.WARNING,
        values={"keys": fqns},
    )
