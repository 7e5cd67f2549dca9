"""Holds what a proof says against what is true: its level, its witnesses, its findings, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from key_oracle import Truth, Truths, can_be, can_meet
from rule_reader import Made, Rule, covers

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.witness import Witness

CODES = {
    "ambiguous": "RK201",
    "within": "RK202",
    "across": "RK203",
    "cut": "RK204",
    "open": "RK206",
    "added": "RK207",
}

# ------------------------------------------------------------------------------------------------ what is claimed


@dataclass(frozen=True)
class Claim:
    """One fault that a proof claims, with the rules that its finding names."""

    kind: str
    rules: tuple[str, ...]
    keys: tuple[str, ...]
    targets: tuple[str, ...]
    witness: Witness | None = None

    @property
    def admitted(self) -> bool:
        return self.witness is not None and self.witness.admitted

    @property
    def size(self) -> int:
        return sum(map(len, self.keys))

    def __str__(self) -> str:
        return f"{self.kind} {'/'.join(self.rules)} {self.keys} -> {self.targets}"


@dataclass
class Claims:
    """A proof as claims: its witnesses, and the clashes with `add:`, which only findings tell."""

    proof: Proof
    claims: list[Claim]
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, proof: Proof) -> Claims:
        problems = [f"self-blame: {each.title}" for each in proof.findings if "disagree" in each.title]
        found = []
        for witness in proof.witnesses:
            rules = witness.rules[:1] if witness.fault == "within" else witness.rules
            added = [each for each in rules if each.startswith("add[")]
            kind, keys, targets = witness.fault, witness.keys, witness.targets
            if added and kind != "open":
                kind, rules = "added", (added[0], next((each for each in rules if each not in added), added[-1]))
                targets = targets[:1]
            if not any(_is_about(each, CODES[kind], rules, keys) for each in proof.findings):
                problems.append(f"unnamed: no finding names {kind} {keys}")
            found.append(Claim(kind, rules, keys, targets, witness))
        return cls(proof, found, problems)

    def sizes(self, kind: str, rules: tuple[str, ...], *admitted: bool) -> list[int]:
        return [
            each.size
            for each in self.claims
            if each.kind == kind and sorted(each.rules) == sorted(rules) and each.admitted in admitted
        ]

    def is_unsure(self, rules: Iterable[str]) -> bool:
        """Return whether a question about one of these rules is undecided."""
        asked = [set(each) for each in self.proof.undecided]
        return any(not each or each & set(rules) for each in asked)

    def is_cut(self, rules: Iterable[str]) -> bool:
        return any(each.kind == "cut" and each.rules[0] in rules for each in self.claims)


def _is_about(finding: Diagnostic, code: str, rules: Sequence[str], keys: Sequence[str]) -> bool:
    """Return whether a finding is about a fault; one about several has the keys of each."""
    values = finding.values or {}
    known = [values.get("keys", []), *values.get("witnesses", [])]
    if code == "RK207":
        known += [[key] for key in values.get("keys", [])]
    return finding.code == code and set(rules).issubset(values.get("rules", ())) and list(keys) in known


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
    found = ((_disprove(truth, claim), claim) for claim in claims.claims)
    return [f"witness: {why}: {claim}" for why, claim in found if why]


def _disprove(truth: Truth, claim: Claim) -> str:
    """Return why a claim is false, or nothing."""
    if not all(map(truth.covers, claim.keys)):
        return "not in the domain"
    rules = [truth.file.by_id[id] for id in claim.rules if id in truth.file.by_id]
    if claim.kind == "ambiguous":
        hits = [sum(pattern.matches(claim.keys[0]) for pattern in rule.sources) for rule in rules]
        return "" if min(hits) >= (2 if rules[0] == rules[1] else 1) else "not matched twice"
    if claim.kind == "cut":
        return _disprove_cut(claim, rules[0])
    if claim.kind == "open":
        passes = truth.file.unmatched == "keep" and not truth.file.matches(claim.keys[-1])
        return _disprove_target(truth, claim, rules, claim.keys[-1]) if passes else "does not pass through"
    if claim.kind == "added":
        return _disprove_target(truth, claim, rules, claim.targets[0])
    return _disprove_pair(truth, claim, rules[0], rules[-1])


def _disprove_target(truth: Truth, claim: Claim, rules: Sequence[Rule], target: str) -> str:
    """Return why the first key does not become a target, or why that is not added."""
    entry = claim.rules[0]
    if entry.startswith("add[") and target not in dict(truth.file.added)[entry]:
        return "not added"
    if rules and not _has_target(rules[0].make(claim.keys[0]), target, truth.file.by_id):
        return "another target"
    return ""


def _disprove_pair(truth: Truth, claim: Claim, left: Rule, right: Rule) -> str:
    ends, by_id = (left.make(claim.keys[0]), right.make(claim.keys[1])), truth.file.by_id
    for made, target in zip(ends, claim.targets, strict=True):
        if not _has_target(made, target, by_id):
            return f"no target {target!r}"
    pairs = [(a, b) for a in ends[0] for b in ends[1] if can_meet(a, b, by_id)]
    if not pairs:
        return "targets differ"
    if claim.kind == "across":
        return "one key" if left == right or claim.keys[0] == claim.keys[1] else ""
    pairs = [(a, b) for a, b in pairs if left.collide(a, b)]
    if left != right or not pairs:
        return "no fault"
    # Of a pair that meets through two outputs, or is declared by another output, both can be said.
    admitted = {left.is_admitted(a, b, (a.output,)) and a.output == b.output for a, b in pairs}
    admitted |= {left.is_admitted(a, b) for a, b in pairs}
    if claim.admitted not in admitted:
        return "not admitted" if claim.admitted else "admitted, but an error"
    return ""


def _disprove_cut(claim: Claim, rule: Rule) -> str:
    """Return why no source has two readings with these two targets; the first is that of the reading that counts."""
    key, by_id = claim.keys[0], {rule.id: rule}
    if claim.witness is None or ["".join(reading) for reading in claim.witness.readings] != [key, key]:
        return "no readings"
    for source, pattern in enumerate(rule.sources):
        captures = pattern.captures(key)
        taken = [] if captures is None else rule.targets(source, key, captures)
        cuts = [dict(zip(pattern.names, cut, strict=True)) for cut in pattern.readings(key)]
        others = [made for made in (rule.targets(source, key, cut) for cut in cuts) if made != taken]
        if _has_target(taken, claim.targets[0], by_id) and any(
            _has_target(other, claim.targets[1], by_id) for other in others
        ):
            return ""
    return "one target"


def _has_target(made: Iterable[Made], target: str, rules: Mapping[str, Rule]) -> bool:
    return any(can_be(each, target, rules) for each in made)


def _false_findings(truth: Truth, claims: Claims) -> list[str]:
    """Return what is false about rules that are dead, unread, or covered by others."""
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
    for claim in claims.claims:
        for number in claim.witness.covered if claim.witness is not None else ():
            place = claim.witness.key_maps.index(number)
            covered, by = truth.file.by_id[claim.rules[place]], truth.file.by_id[claim.rules[1 - place]]
            if len(covered.sources) == 1 and not all(by.matches(key) for key in truth.matched[covered.id]):
                problems.append(f"covered: {by.id} does not match all of {covered.id}")
    return problems


# ------------------------------------------------------------------------------------------------ completeness


def _missed_faults(truth: Truth, claims: Claims) -> list[str]:
    """Return the faults that the proof does not name although nothing stood in its way."""
    if claims.proof.level not in (Level.REFUTED, Level.KEYS):
        return []
    problems = []
    opened = any(claim.kind == "open" for claim in claims.claims)
    for fault in truth.smallest.values():
        if claims.is_unsure(fault.rules) or (fault.kind not in ("ambiguous", "cut") and claims.is_cut(fault.rules)):
            continue
        named = bool(claims.sizes(fault.kind, fault.rules, fault.admitted, False))
        if fault.kind == "open":
            named = opened or claims.proof.level is Level.REFUTED
        elif fault.kind == "added" and not fault.keys:
            named = any(each.code == "RK207" for each in claims.proof.findings)
        elif fault.kind == "across":
            named = named or truth.best("ambiguous", fault.rules) is not None
        if not named:
            problems.append(f"missed: {'admitted ' * fault.admitted}{fault}")
    return problems


def _larger_witnesses(truth: Truth, claims: Claims) -> list[str]:
    """Return the witnesses beside which there is a smaller one of their kind, for the same rules."""
    problems = []
    asked_of = {(claim.kind, tuple(sorted(claim.rules)), claim.admitted) for claim in claims.claims}
    for kind, rules, admitted in sorted(asked_of):
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
