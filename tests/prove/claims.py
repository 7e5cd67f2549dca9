"""Holds what a proof says against what is true: its level, its witnesses, its findings, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from key_oracle import Truth, Truths, can_be, can_meet
from rule_reader import Made, Rule, covers

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.witness import Witness

CODES = {"ambiguous": "RK201", "within": "RK202", "across": "RK203", "cut": "RK204", "open": "RK206"}

# ------------------------------------------------------------------------------------------------ what is claimed


@dataclass
class Claims:
    """A proof, each of its witnesses with the rules that its finding names."""

    proof: Proof
    witnesses: list[tuple[Witness, tuple[str, ...]]]
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, proof: Proof) -> Claims:
        problems = [f"self-blame: {each.title}" for each in proof.findings if "disagree" in each.title]
        left = list(proof.findings)
        named = []
        for witness in proof.witnesses:
            found = next((each for each in left if _is_about(each, witness)), None)
            if found is None:
                problems.append(f"unnamed: no finding names {witness.fault} {witness.keys}")
                continue
            left.remove(found)
            ids = tuple(found.values["rules"])
            named.append((witness, ids[:1] if witness.fault == "within" else ids))
        return cls(proof, named, problems)

    def sizes(self, kind: str, rules: tuple[str, ...], *admitted: bool) -> list[int]:
        return [
            sum(map(len, witness.keys))
            for witness, ids in self.witnesses
            if witness.fault == kind and sorted(ids) == sorted(rules) and witness.admitted in admitted
        ]

    def is_unsure(self, rules: Iterable[str]) -> bool:
        """Return whether a question about one of these rules is undecided."""
        asked = [set(each) for each in self.proof.undecided]
        return any(not each or each & set(rules) for each in asked)

    def is_cut(self, rules: Iterable[str]) -> bool:
        return any(witness.fault == "cut" and ids[0] in rules for witness, ids in self.witnesses)


def _is_about(finding: Diagnostic, witness: Witness) -> bool:
    values = finding.values or {}
    return finding.code == CODES.get(witness.fault) and values.get("keys") == list(witness.keys)


def disagreements(truths: Truths, proof: Proof) -> list[str]:
    """Return where a proof and the truth disagree; each begins with the kind of disagreement."""
    claims = Claims.of(proof)
    truth = truths.everywhere if proof.level is Level.ALL else truths.in_domain
    # What is proven for keys like the known ones comes with the witnesses that are not like them.
    by_header = proof.level is Level.DOMAIN and not truths.file.domain
    return [
        *claims.problems,
        *_false_levels(truths.of_known_shapes if by_header else truth, claims),
        *_false_witnesses(truth, claims),
        *_false_findings(truth, claims),
        *_missed_faults(truth, claims),
        *_larger_witnesses(truth, claims),
    ]


def _false_levels(truth: Truth, claims: Claims) -> list[str]:
    level, faults = claims.proof.level, truth.smallest.values()
    if level is Level.UNDECIDED:
        return [] if claims.proof.undecided else ["level: undecided without a question"]
    hard = [each for each in faults if not each.admitted and each.kind != "open"]
    if hard and level is not Level.REFUTED:
        return [f"level: {level.value}, but {hard[0]}"]
    if level in (Level.ALL, Level.DOMAIN) and faults:
        return [f"level: {level.value}, but {next(iter(faults))}"]
    if level is Level.REFUTED and not any(each.severity.name == "ERROR" for each in claims.proof.findings):
        return ["level: refuted without an error"]
    if level is Level.KEYS and not (claims.proof.witnesses or claims.proof.undecided):
        return ["level: a weaker one without a witness"]
    return []


# ------------------------------------------------------------------------------------------------ witnesses


def _false_witnesses(truth: Truth, claims: Claims) -> list[str]:
    problems = []
    for witness, rules in claims.witnesses:
        why = _disprove(truth, witness, rules)
        if why:
            problems.append(f"witness: {why}: {witness.fault} {'/'.join(rules)} {witness.keys} -> {witness.targets}")
    return problems


def _disprove(truth: Truth, witness: Witness, rules: tuple[str, ...]) -> str:
    """Return why a witness is none, or nothing."""
    if not all(map(truth.covers, witness.keys)):
        return "not in the domain"
    if witness.fault == "open" and rules[0].startswith("add["):
        added = dict(truth.file.added)[rules[0]]
        return "" if witness.keys[0] in added and not truth.file.matches(witness.keys[0]) else "does not pass through"
    left, right = truth.file.by_id[rules[0]], truth.file.by_id[rules[-1]]
    if witness.fault == "ambiguous":
        return _disprove_ambiguous(witness, left, right)
    if witness.fault == "cut":
        return _disprove_cut(witness, left)
    if witness.fault == "open":
        return _disprove_open(truth, witness, left)
    ends = left.make(witness.keys[0]), right.make(witness.keys[1])
    by_id = truth.file.by_id
    for made, target in zip(ends, witness.targets, strict=True):
        if not _has_target(made, target, by_id):
            return f"no target {target!r}"
    pairs = [(a, b) for a in ends[0] for b in ends[1] if can_meet(a, b, by_id)]
    if not pairs:
        return "targets differ"
    if witness.fault == "across":
        return "one key" if left == right or witness.keys[0] == witness.keys[1] else ""
    pairs = [(a, b) for a, b in pairs if left.collide(a, b)]
    if left != right or not pairs:
        return "no fault"
    # Of a pair that meets through two outputs, or is declared by another output, both can be said.
    admitted = {left.is_admitted(a, b, (a.output,)) and a.output == b.output for a, b in pairs}
    admitted |= {left.is_admitted(a, b) for a, b in pairs}
    if witness.admitted not in admitted:
        return "admitted, but an error" if not witness.admitted else "not admitted"
    return ""


def _disprove_ambiguous(witness: Witness, left: Rule, right: Rule) -> str:
    hits = [sum(pattern.matches(witness.keys[0]) for pattern in rule.sources) for rule in (left, right)]
    return "" if min(hits) >= (2 if left == right else 1) else "not matched twice"


def _disprove_cut(witness: Witness, rule: Rule) -> str:
    """Return why no source has two readings with these two targets; the first is that of the reading that counts."""
    key, by_id = witness.keys[0], {rule.id: rule}
    if ["".join(reading) for reading in witness.readings] != [key, key]:
        return "no readings"
    for source, pattern in enumerate(rule.sources):
        captures = pattern.captures(key)
        taken = [] if captures is None else rule.targets(source, key, captures)
        cuts = [dict(zip(pattern.names, cut, strict=True)) for cut in pattern.readings(key)]
        others = [made for made in (rule.targets(source, key, cut) for cut in cuts) if made != taken]
        if _has_target(taken, witness.targets[0], by_id) and any(
            _has_target(other, witness.targets[1], by_id) for other in others
        ):
            return ""
    return "one target"


def _has_target(made: Iterable[Made], target: str, rules: Mapping[str, Rule]) -> bool:
    return any(can_be(each, target, rules) for each in made)


def _disprove_open(truth: Truth, witness: Witness, rule: Rule) -> str:
    if truth.file.unmatched != "keep" or truth.file.matches(witness.keys[1]):
        return "does not pass through"
    passing = Made("", 0, 0, witness.keys[1], witness.keys[1])
    by_id = {**truth.file.by_id, "": Rule("", "keep", ())}
    return "" if any(can_meet(each, passing, by_id) for each in rule.make(witness.keys[0])) else "another target"


def _false_findings(truth: Truth, claims: Claims) -> list[str]:
    """Return the false ones among the findings without a witness: targets of `add`, and rules that are dead."""
    problems = []
    used = {rule.id for rule in truth.file.rules if any(map(rule.matches, truth.file.header))}
    for each in claims.proof.findings:
        values = each.values or {}
        if each.code == "RK205" and "domain" in each.title:
            alive = [key for key in truth.matched[values["rule"]] if covers(truth.file.domain, key)]
            # Of a rule with several sources one may be dead.
            if truth.file.by_id[values["rule"]].is_alive(alive):
                problems.append(f"dead: {values['rule']} is not")
        if each.code == "RK205" and "source" in each.title and "domain" not in each.title and values["rule"] in used:
            problems.append(f"unread: {values['rule']} is not")
        if each.code == "RK207" and "keys" in values:
            entry, id = values["rules"]
            key, target = values["keys"][0], values["target"]
            passing = Made("", 0, 0, target, target)
            by_id = {**truth.file.by_id, "": Rule("", "keep", ())}
            met = any(can_meet(made, passing, by_id) for made in truth.file.by_id[id].make(key))
            if not (met and target in dict(truth.file.added)[entry] and truth.covers(key)):
                problems.append(f"added: no clash: {id} {key!r} -> {target!r}")
    for witness, rules in claims.witnesses:
        for number in witness.covered:
            place = witness.key_maps.index(number)
            covered, by = truth.file.by_id[rules[place]], truth.file.by_id[rules[1 - place]]
            if len(covered.sources) == 1 and not all(by.matches(key) for key in truth.matched[covered.id]):
                problems.append(f"covered: {by.id} does not match all of {covered.id}")
    return problems


# ------------------------------------------------------------------------------------------------ completeness


def _missed_faults(truth: Truth, claims: Claims) -> list[str]:
    """Return the faults that the proof does not name although nothing stood in its way."""
    if claims.proof.level not in (Level.REFUTED, Level.KEYS):
        return []
    problems = []
    opened = any(witness.fault == "open" for witness, _ in claims.witnesses)
    for fault in truth.smallest.values():
        if claims.is_unsure(fault.rules) or (fault.kind not in ("ambiguous", "cut") and claims.is_cut(fault.rules)):
            continue
        if fault.kind == "open":
            named = opened or claims.proof.level is Level.REFUTED
        elif fault.kind == "added":
            named = any(each.code == "RK207" for each in claims.proof.findings)
        elif fault.kind == "across":
            named = (
                bool(claims.sizes("across", fault.rules, False)) or truth.best("ambiguous", fault.rules) is not None
            )
        else:
            named = bool(claims.sizes(fault.kind, fault.rules, fault.admitted, False))
        if not named:
            problems.append(f"missed: {'admitted ' * fault.admitted}{fault}")
    return problems


def _larger_witnesses(truth: Truth, claims: Claims) -> list[str]:
    """Return the witnesses beside which there is a smaller one of their kind, for the same rules."""
    problems = []
    for kind, rules, admitted in {(w.fault, tuple(sorted(rules)), w.admitted) for w, rules in claims.witnesses}:
        if kind == "across" and truth.best("ambiguous", rules) is not None:
            continue
        if kind not in ("ambiguous", "cut") and claims.is_cut(rules):
            continue
        asked = (False, True) if admitted else (False,)
        best = truth.best(kind, rules, *asked)
        size = min(claims.sizes(kind, rules, *asked))
        if best is not None and best.size < size:
            problems.append(f"larger: {kind} of size {size}, but {best}")
    return problems
