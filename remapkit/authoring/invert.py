"""`remapkit invert`: the inverse of a rule set, which maps every target key back to its source key.

It exists exactly when no varying part of a key is lost, every target can be split in one way, and no two rules share
a target; a proof shows this. `invert_rule` inverts one rule, `write_inverse` writes the file; this module reads it
back and proves it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from remapkit.authoring.invert_pipeline import InversePipeline, invert_pipeline, invert_targets, list_one_way
from remapkit.authoring.invert_rule import InverseRule, NoInverse, Tables, invert_rule
from remapkit.authoring.write_inverse import InverseWriter, Lost
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.plans.make import make_plan
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.prover import prove
from remapkit.rulefile.arithmetic import ParamValue
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.rules.pipeline import Pipeline
from remapkit.tensors.spec import StateDictSpec


def list_lost(rule_set: CompiledRules, keys: Iterable[str] = ()) -> tuple[Lost, ...]:
    """Return what a rule set drops or changes for good, with those of the known keys that are lost so.

    >>> import remapkit
    >>> rules = remapkit.loads("remapkit: 1\\nname: t\\nkeep: [w]\\ndrop: ['{m:**}.mask']\\n")
    >>> print(*list_lost(rules, ["w", "a.mask"]))
    '{m:**}.mask' (drop[0]): a.mask
    """
    known: dict[str, list[str]] = {}
    for key in keys:
        matches = rule_set.match(key)
        for rule in [match.rule.id for match in matches] if matches else ["unmatched"]:
            known.setdefault(rule, []).append(key)
    lost = [Lost(rule.id, (rule.pattern.text.value,), tuple(known.get(rule.id, ()))) for rule in rule_set.drop]
    if rule_set.unmatched == "drop":
        lost.append(Lost("unmatched", (), tuple(known.get("unmatched", ()))))
    for pipeline in _list_one_way_rules(rule_set):
        texts = tuple(pattern.text.value for pattern in pipeline.patterns)
        lost.append(Lost(pipeline.id, texts, tuple(known.get(pipeline.id, ())), one_way=True))
    return tuple(lost)


def _list_one_way_rules(rule_set: CompiledRules) -> list[Pipeline]:
    rules = (rule.pipeline for rule in rule_set.rules if rule.branch == 0 and rule.pipeline is not None)
    return [pipeline for pipeline in rules if list_one_way(pipeline)]


def invert(
    rule_set: CompiledRules,
    *,
    header: Iterable[str] | None = None,
    beside: Path | None = None,
    partial: bool = False,
    proof: Proof | None = None,
) -> str:
    """Return the inverse of a rule set as the text of a rule file.

    `header` are known source keys, which are mapped there and back as a check; `beside` is the folder for the text
    (paths in a rule file are relative to it; None leaves them unchanged). `partial`: if keys are dropped, or the
    operations of a rule have no inverse, return the inverse of the rest, which names them; `proof`: that of these
    rules with these keys, where it is known already. Raises `InvalidRules`
    with the reason, the rule and the witness if there is no inverse. The result is proven, and maps the target of
    every test and of every known key back to its source.

    >>> import remapkit
    >>> print(invert(remapkit.load("wan22_pth")).splitlines()[2])
    name: wan22_pth_inverse
    """
    keys = tuple(header) if header is not None else ()
    _refuse_unproven(rule_set, keys, proof)
    lost = list_lost(rule_set, keys)
    _refuse_lossy(rule_set, partial=partial)
    tables = Tables()
    known = rule_set.tables
    problems: list[Diagnostic] = []
    inverses: list[InverseRule | InversePipeline] = []
    left: list[InverseRule] = []
    one_way = {id(pipeline) for pipeline in _list_one_way_rules(rule_set)} if partial else set()
    if len({rule.id for rule in rule_set.rules}) == len(one_way) and not rule_set.keep:
        one_way = set()  # nothing would be left: the reasons say more
    for rule in rule_set.rules:
        try:
            if rule.pipeline is not None and id(rule.pipeline) in one_way:
                left += invert_targets(rule_set, rule.pipeline, tables, known) if rule.branch == 0 else []
                continue
            if rule.pipeline is None:
                inverses += invert_rule(rule, tables, known)
            elif rule.branch == 0:
                inverses.append(invert_pipeline(rule_set, rule.pipeline, tables, known))
        except NoInverse as error:
            problems += error.diagnostics
    if problems:
        raise InvalidRules(problems)
    text = InverseWriter(rule_set, inverses, tables, beside, lost, left).text()
    inverse = _check_inverse(rule_set, text, keys)
    if isinstance(header, StateDictSpec) and rule_set.has_operations:
        _check_header(rule_set, inverse, header, {key for each in lost for key in each.keys})
    return text


def _refuse_unproven(rule_set: CompiledRules, keys: tuple[str, ...], proof: Proof | None) -> None:
    if not rule_set.everything and rule_set.key_params:
        title = f"{rule_set.name} has no inverse: the ranges of all its rules are empty"
        help = (f"give other values with --param ({', '.join(rule_set.key_params)})",)
        raise InvalidRules(Diagnostic("RK210", title, help=help, place=rule_set.file.source.name))
    proof = proof or prove(rule_set, header=keys)
    if proof.level is Level.ALL or (proof.level is Level.DOMAIN and not proof.witnesses):
        return
    reason = "it is not proven for all keys" if proof.level is Level.UNDECIDED else "two keys map to one target"
    if proof.witnesses and proof.witnesses[0].fault in ("ambiguous", "cut"):
        reason = "a key has no target, or several"
    if proof.witnesses and all(witness.fault == "open" for witness in proof.witnesses):
        reason = "an unmatched key that passes through can equal the target of another key"
    title = f"{rule_set.name} has no inverse: {reason}"
    help = ("fix the findings below: rules that are proven for all keys have an inverse",)
    raise InvalidRules([Diagnostic("RK210", title, help=help, place=rule_set.file.source.name), *proof.findings])


def _refuse_lossy(rule_set: CompiledRules, *, partial: bool) -> None:
    problems = []
    rest = "--partial writes the inverse of the rest, and names these keys"
    for rule in () if partial else rule_set.drop:
        title = f"{rule_set.name} has no inverse: {rule.id} drops tensors, which nothing can restore"
        help: tuple[str, ...] = (rest,)
        problems.append(Diagnostic("RK211", title, (Label(rule.pattern.text.span),), help))
    if rule_set.unmatched == "keep" or (rule_set.unmatched == "drop" and not partial):
        span = rule_set.file.unmatched_span
        what = "pass through" if rule_set.unmatched == "keep" else "are dropped"
        title = f"{rule_set.name} has no inverse: keys that no rule matches {what}"
        help = ("list those keys under `keep:` and remove `unmatched`", *([rest] if what == "are dropped" else []))
        problems.append(Diagnostic("RK212", title, (Label(span),) if span is not None else (), help))
    if problems:
        raise InvalidRules(problems)


def _check_inverse(rule_set: CompiledRules, text: str, keys: Sequence[str]) -> CompiledRules:
    """Compile and prove the inverse, and check that it maps every known key and every test back."""
    name = f"the inverse of {rule_set.name}"
    try:
        inverse = compile_rules(read_text(text, name), collect_param_values(rule_set))
        proof = prove(inverse)
        problems = list(proof.findings) if proof.level is not Level.ALL else []
    except InvalidRules as error:
        problems = list(error.diagnostics)
    if problems:
        title = f"the inverse of {rule_set.name} could not be proven for all keys"
        help = ("the messages below are about the inverse that was tried",)
        raise InvalidRules([Diagnostic("RK214", title, help=help, place=rule_set.file.source.name), *problems])
    for key in (*keys, *(test.source.value for test in rule_set.tests)):
        matches = rule_set.match(key)
        there = [match.target for match in matches]
        if any(match.rule.pipeline is not None for match in matches):
            continue  # needs all sources of the rule at once: `_check_header` checks it
        back = [match.target for match in inverse.match(there[0])] if len(there) == 1 and there[0] else [key]
        if back != [key]:
            title = f"the inverse of {rule_set.name} does not map {key!r} back: {there} becomes {back}"
            raise InvalidRules(Diagnostic("RK214", title, help=("this is a bug in remapkit: please report it",)))
    return inverse


def _check_header(
    rule_set: CompiledRules, inverse: CompiledRules, header: StateDictSpec, lost: Collection[str]
) -> None:
    """Map a known header there and back, shapes and dtypes included; skipped if the rules do not fit the header.

    `lost` are its keys that the rules drop.
    """
    there = make_plan(rule_set, header)
    if not there.ok:
        return
    back = make_plan(inverse, there.target)
    kept = {key: spec for key, spec in header.items() if key not in lost}
    if dict(back.target) != kept or not back.ok:
        title = f"the inverse of {rule_set.name} does not restore {header.name}"
        differing = sorted(set(kept.items()) ^ set(back.target.items()), key=str)[:5]
        notes = ("\n".join(f"{fqn}: {spec}" for fqn, spec in differing),) if differing else ()
        help = ("the messages below are about the inverse that was tried",)
        raise InvalidRules([Diagnostic("RK214", title, notes=notes, help=help), *back.problems])


def collect_param_values(rule_set: CompiledRules) -> dict[str, ParamValue]:
    """Return the params of a rule set that have values."""
    return {name: value for name, value in rule_set.params.items() if value is not None}
