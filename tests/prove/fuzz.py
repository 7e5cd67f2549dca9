"""Random rule files, proven and tried out: `python tests/prove/fuzz.py SEED COUNT [KEYS]`.

Every key up to a length is read by `key_oracle.py`, which shares no code with remapkit, and what a proof claims is held
against it: no claim may be false, every fault must be named, and every witness must be real and the smallest. At most
about KEYS strings are tried for one file (6,000 where it is not given). Prints the figures and the first files that
disagree, made as small as possible; exits with 1 if any does. Seeds are independent: slices can run side by side.
"""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from key_oracle import Fault, Made, Pattern, Rule, RuleFile, Truth, can_be, can_meet, count_readings, read_rules
from rule_maker import files, is_plain, write_text

import remapkit
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.witness import Witness

KEYS = 6_000
"""The most strings that are tried for one file."""
MAX_LENGTH = 9
MAX_SHOWN = 3
"""So many files of each label are printed."""
CODES = {"ambiguous": "RK201", "within": "RK202", "across": "RK203", "cut": "RK204", "open": "RK206"}
SIGNS = "ab.012xqy"
"""All characters of random patterns."""


def choose_size(file: RuleFile, keys: int = KEYS) -> tuple[str, int]:
    """Choose the characters that matter, and the greatest length up to which every key can be tried in little time."""
    signs = set("a.")
    for part in (part for pattern in (*_list_patterns(file), *file.domain) for part in pattern.parts):
        literal = re.sub(r"\\[dws]|\{[\d,]+\}|0-9|1-9", "", part.expression) if part.words is None else "".join(part.words)
        signs |= set(literal) & set(SIGNS)
        signs |= set("01") if "\\d" in part.expression or "0-9" in part.expression else set()
    alphabet = "".join(sorted(signs))
    length = MAX_LENGTH
    while length > 3 and len(alphabet) ** length > keys:
        length -= 1
    while length > 3 and sum(_count(pattern, alphabet, length) for pattern in _list_patterns(file)) > keys:
        length -= 1
    return alphabet, length


def _list_patterns(file: RuleFile) -> Iterator[Pattern]:
    for rule in file.rules:
        yield from rule.sources


def _count(pattern: Pattern, alphabet: str, length: int) -> int:
    return sum(count_readings(pattern, alphabet, length))


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


def _is_about(finding: Any, witness: Witness) -> bool:
    values = finding.values or {}
    return finding.code == CODES.get(witness.fault) and values.get("keys") == list(witness.keys)


def disagreements(data: Mapping[str, Any], proof: Proof, keys: int = KEYS) -> list[str]:
    """Return where a proof and the truth disagree; each begins with the kind of disagreement."""
    file = read_rules(data)
    alphabet, length = choose_size(file, keys)
    claims = Claims.of(proof)
    truth = Truth(file, alphabet, length, () if proof.level is Level.ALL else file.domain)
    # What is proven for keys like the known ones comes with the witnesses that are not like them.
    by_header = proof.level is Level.DOMAIN and not file.domain
    return [
        *claims.problems,
        *_false_levels(Truth(file, alphabet, length, file.shapes) if by_header else truth, claims),
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
        return "" if witness.keys[0] in added and not truth.file.matching(witness.keys[0]) else "does not pass through"
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
        if not any(can_be(each, target, by_id) for each in made):
            return f"no target {target!r}"
    pairs = [(a, b) for a in ends[0] for b in ends[1] if can_meet(a, b, by_id)]
    if not pairs:
        return "targets differ"
    if witness.fault == "across":
        return "one key" if left == right or witness.keys[0] == witness.keys[1] else ""
    pairs = [(a, b) for a, b in pairs if left.collide(a, b)]
    if left != right or not pairs:
        return "no fault"
    if witness.admitted not in [left.is_admitted(a, b) and a.output == b.output for a, b in pairs]:
        return "admitted, but an error" if not witness.admitted else "not admitted"
    return ""


def _disprove_ambiguous(witness: Witness, left: Rule, right: Rule) -> str:
    hits = [sum(pattern.matches(witness.keys[0]) for pattern in rule.sources) for rule in (left, right)]
    return "" if min(hits) >= (2 if left == right else 1) else "not matched twice"


def _disprove_cut(witness: Witness, rule: Rule) -> str:
    for source, pattern in enumerate(rule.sources):
        cuts = pattern.readings(witness.keys[0])
        made = [rule.targets(source, witness.keys[0], dict(zip(pattern.names, cut, strict=True))) for cut in cuts]
        texts = ["".join(reading) for reading in witness.readings]
        if any(each != made[0] for each in made) and texts == list(witness.keys * 2):
            return ""
    return "one target"


def _disprove_open(truth: Truth, witness: Witness, rule: Rule) -> str:
    if truth.file.unmatched != "keep" or truth.file.matching(witness.keys[1]):
        return "does not pass through"
    passing = Made("", 0, 0, witness.keys[1], witness.keys[1])
    by_id = {**truth.file.by_id, "": Rule("", "keep", ())}
    return "" if any(can_meet(each, passing, by_id) for each in rule.make(witness.keys[0])) else "another target"


def _false_findings(truth: Truth, claims: Claims) -> list[str]:
    """Return the false ones among the findings without a witness: targets of `add`, and rules that are dead."""
    problems = []
    used = {id for key in truth.file.header for id, _ in truth.file.matching(key)}
    for each in claims.proof.findings:
        values = each.values or {}
        if each.code == "RK205" and "domain" in each.title:
            alive = filter(truth.file.has_in_domain, truth.matched[values["rule"]])
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
            named = bool(claims.sizes("across", fault.rules, False)) or truth.best("ambiguous", fault.rules) is not None
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


# ------------------------------------------------------------------------------------------------ one file, many files


@dataclass(frozen=True)
class Judgement:
    """What came of one file: its level in words, and what is wrong. `asked` are the undecided questions."""

    level: str
    wrong: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The kind of the first disagreement, else of the undecided questions; empty if all is well."""
        return " ".join(self.wrong[0].split()[:2]) if self.wrong else ", ".join(self.asked)


def judge(data: Mapping[str, Any], keys: int = KEYS) -> Judgement:
    """Prove a file, and hold what is claimed against the truth."""
    try:
        proof = remapkit.loads(write_text(data)).prove(header=data.get("header"))
    except InvalidRules:
        return Judgement("refused")
    except Exception:
        lines = traceback.format_exc().strip().splitlines()
        return Judgement("traceback", (f"traceback: {lines[-1]} {lines[-3].strip()}",))
    asked: Sequence[str] = ()
    if proof.level is Level.UNDECIDED:
        findings = [each.values or {} for each in proof.findings if each.code == "RK200"]
        asked = sorted({f"undecided: {values.get('asked', 'added')}" for values in findings})
    return Judgement(proof.level.value, tuple(disagreements(data, proof, keys)), tuple(asked))


def run(seed: int, count: int, keys: int = KEYS) -> tuple[Counter[str], list[tuple[int, Judgement]]]:
    """Return the figures, and the seeds that disagree or are undecided."""
    figures: Counter[str] = Counter()
    found = []
    for number, data in files(seed, count):
        judged = judge(data, keys)
        kind = "renames" if is_plain(data) else "with operations"
        figures["files"] += 1
        figures[judged.level] += 1
        figures["wrong"] += bool(judged.wrong)
        if judged.level != "refused":
            figures[kind] += 1
            figures[f"{kind}, undecided"] += judged.level == Level.UNDECIDED.value
        if judged.label:
            found.append((number, judged))
    return figures, found


def main() -> int:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    keys = int(sys.argv[3]) if len(sys.argv) > 3 else KEYS
    started = time.time()
    total: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for begin in range(seed, seed + count, 500):
        figures, found = run(begin, min(500, seed + count - begin), keys)
        total.update(figures)
        for number, judged in found:
            shown[judged.label] += 1
            print(f"seed {number}: {judged.wrong[:3] or judged.label}", flush=True)
            if shown[judged.label] <= MAX_SHOWN:
                ((_, data),) = files(number, 1)
                print(write_text(shrink(data, keys)), flush=True)
        print(f"{time.time() - started:.0f} s: {dict(total)}", flush=True)
    print(dict(shown))
    return 1 if total["wrong"] else 0


# ------------------------------------------------------------------------------------------------ smaller files


def shrink(data: Mapping[str, Any], keys: int = KEYS, tries: int = 500) -> Mapping[str, Any]:
    """Return a smaller file with the same label; at most so many files are tried."""
    wanted = judge(data, keys).label
    smaller = iter(_list_smaller(data))
    while tries and (candidate := next(smaller, None)) is not None:
        tries -= 1
        if judge(candidate, keys).label == wanted:
            data = candidate
            smaller = iter(_list_smaller(data))
    return data


def _list_smaller(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the file without one of its entries, then with a piece of one of its texts left out."""
    for path, _ in _list_entries(data):
        if path[0] not in ("remapkit", "name"):
            yield _replace(data, path)
    for path, value in _list_entries(data):
        if isinstance(value, str) and path[0] not in ("name", "unmatched") and path[-1] != "id":
            for shorter in _list_shorter(value):
                yield _replace(data, path, shorter)


def _list_entries(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the place of every entry with its value, outer ones first."""
    entries = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for name, value in entries:
        yield (*path, name), value
        yield from _list_entries(value, (*path, name))


def _replace(data: Mapping[str, Any], path: tuple[Any, ...], value: str | None = None) -> Mapping[str, Any]:
    """Return a copy in which one entry is another one, or is left out."""
    whole = deepcopy(dict(data))
    at: Any = whole
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return whole


def _list_shorter(text: str) -> Iterator[str]:
    """Yield a text without one of its groups, fields, classes and characters, or with a group unwrapped."""
    for start, sign in enumerate(text):
        if sign == "(":
            end = next((e for e in range(start + 1, len(text) + 1) if text[start:e].count("(") == text[start:e].count(")")), 0)
            if end:
                yield text[:start] + text[end:]
                yield text[:start] + re.sub(r"^\(\?:|^\((?!\?)", "", text[start : end - 1]) + text[end:]
        elif sign in "[{":
            end = text.find("]" if sign == "[" else "}", start) + 1
            yield text[:start] + text[end:] if end else text
        if sign not in "()?P<>:[]{}" or text[start - 1] in "*+?])}":
            width = 2 if sign == "\\" else 1
            yield text[:start] + text[start + width :]


if __name__ == "__main__":
    sys.exit(main())
