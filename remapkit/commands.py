"""One function a command: arguments in, an `Outcome` out. Nothing is printed here."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.check import Check, known_keys_problem, make_check
from remapkit.checkpoint import Reader, open_checkpoint
from remapkit.diagnostic import Diagnostic, FailedCheck, InvalidRules, RemapkitError, UsageError
from remapkit.library import find_rules, load, packs, plugins, version
from remapkit.plan import Move, Plan, make_plan
from remapkit.report import Outcome, Table, human_bytes
from remapkit.spec import StateDictSpec
from remapkit.targets import TargetRef, pack_target, read_header, target_header

if TYPE_CHECKING:
    from remapkit.rules import RuleSet


# ------------------------------------------------------------------------------------------------ apply


def apply_command(args: Namespace) -> Outcome:
    """Prove, plan, check, stream."""
    rules = load(args.rules)
    source = Path(args.checkpoint)
    with ExitStack() as stack:
        reader = stack.enter_context(_open(source, args))
        plan = make_plan(rules, reader.header())
        check = _apply_check(rules, plan, args)
        moves = in_target_order(plan, check.target if check else None)
        if args.dry_run:
            return _dry_run(plan, check, moves, reader)
        output = Path(args.output) if args.output else default_output(source)
        return _write(rules, plan, moves, reader, output, args)


def _apply_check(rules: RuleSet, plan: Plan, args: Namespace) -> Check | None:
    """Against the named target if there is one, else against the keys that the pack is known to read."""
    reference = TargetRef.from_arguments(args)
    if reference is not None:
        check = make_check(plan, target_header(reference), strict_dtype=args.strict_dtype)
        check.raise_for_problems()
        return check
    known = known_source(rules)
    lacking = known_keys_problem(plan, known) if known is not None and not args.partial else []
    if plan.problems or lacking:
        raise FailedCheck([*plan.problems, *lacking])
    return None


def known_source(rules: RuleSet) -> StateDictSpec | None:
    """The manifest that a pack declares as its source, if it does."""
    written = rules.file.source_keys
    return read_header(beside(rules, written.value)) if written is not None else None


def beside(rules: RuleSet, path: str) -> Path:
    """A path that a rule file names is relative to that file."""
    return (rules.file.path.parent if rules.file.path else Path()) / path


def in_target_order(plan: Plan, target: StateDictSpec | None) -> tuple[Move, ...]:
    """The moves in the order of the target's names where it is known, else of the source's."""
    if target is None:
        return plan.moves
    order = {fqn: number for number, fqn in enumerate(target)}
    return tuple(sorted(plan.moves, key=lambda move: order.get(move.target, len(order))))


def default_output(source: Path) -> Path:
    """`ckpt.pth` -> `ckpt.safetensors`; shards and folders have no such name, so one must be given."""
    if source.is_dir() or source.name.endswith(".index.json"):
        raise UsageError(
            Diagnostic(
                "RK609", f"where should the remapped shards of {source} go?", help=("name a file with -o OUT",)
            )
        )
    return source.with_suffix(".safetensors")


def provenance(rules: RuleSet, source: Path) -> dict[str, str]:
    """What the written file says about where it comes from. No time: the same input gives the same bytes."""
    return {
        "remapkit.rules": rules.name,
        "remapkit.digest": rules.digest,
        "remapkit.source": source.name,
        "remapkit.version": version(),
    }


def _write(
    rules: RuleSet, plan: Plan, moves: Sequence[Move], reader: Reader, output: Path, args: Namespace
) -> Outcome:
    from remapkit.execute import execute
    from remapkit.progress import progress

    metadata = {**plan.source.metadata, **provenance(rules, Path(args.checkpoint))}
    started = time.monotonic()
    with progress(f"writing {output.name}") as advance:
        written = execute(
            moves, reader, output, metadata=metadata, tied=plan.tied, force=args.force, progress=advance
        )
    seconds = time.monotonic() - started
    rate = human_bytes(written.nbytes / max(seconds, 1e-9))
    return Outcome(
        data={
            **plan_data(plan),
            "output": [str(path) for path in written.files],
            "bytes": written.nbytes,
            "seconds": seconds,
        },
        text=(
            str(plan),
            *(f"wrote {path}" for path in written.files),
            f"{len(moves)} tensors, {human_bytes(written.nbytes)} in {seconds:.2f} s ({rate}/s)",
        ),
        diagnostics=(*reader.notes, *plan.warnings),
    )


def _dry_run(plan: Plan, check: Check | None, moves: Sequence[Move], reader: Reader) -> Outcome:
    rows = tuple((move.sources[0], move.target, str(move.spec), move.rule.id) for move in moves)
    rows += tuple((gone.fqn, "(dropped)", str(plan.source[gone.fqn]), gone.rule.id) for gone in plan.dropped)
    return Outcome(
        data={**plan_data(plan), "dry_run": True},
        text=(
            Table(("source", "target", "tensor", "rule"), rows),
            str(plan),
            *((str(check),) if check else ()),
            "nothing was written (--dry-run)",
        ),
        diagnostics=(*reader.notes, *plan.warnings),
    )


def plan_data(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {
        "rules": plan.name,
        "source": plan.source.name,
        "moves": [
            {
                "target": move.target,
                "sources": list(move.sources),
                "rule": move.rule.id,
                "dtype": move.spec.dtype,
                "shape": list(move.spec.shape),
            }
            for move in plan.moves
        ],
        "dropped": [{"fqn": gone.fqn, "rule": gone.rule.id} for gone in plan.dropped],
    }


def _open(path: Path, args: Namespace) -> Reader:
    return open_checkpoint(path, root=args.root, strict_pickle=args.strict_pickle)


# ------------------------------------------------------------------------------------------------ check


def check_command(args: Namespace) -> Outcome:
    """The verdict only, for one rule file or for every pack that leads to the model."""
    rule_sets = [load(name) for name in args.rules] or _packs_for(args)
    checks = [_check_one(rules, args) for rules in rule_sets]
    diagnostics = [diagnostic for each in checks for diagnostic in (*each.problems, *each.warnings, *each.notes)]
    rows = tuple(_verdict_row(each) for each in checks)
    failed = any(not each.ok for each in checks)
    return Outcome(
        data={"checks": [check_data(each) for each in checks]},
        text=(
            Table(("rules", "source", "target", ">matched", ">missing", ">unexpected", ">shapes", "verdict"), rows),
        ),
        diagnostics=tuple(diagnostics),
        failed=failed,
        findings=True,
    )


def _packs_for(args: Namespace) -> list[RuleSet]:
    """Every installed pack whose declared target is `--model` (every pack with a target where none is named)."""
    if args.ckpt or args.keys:
        raise UsageError(
            Diagnostic("RK609", "which rules should be checked against this source?", help=("name them: RULES",))
        )
    rule_sets = [load(pack.path) for pack in packs()]
    with_target = [rules for rules in rule_sets if pack_target(rules) is not None and rules.file.source_keys]
    if args.model is None:
        return with_target
    found = [rules for rules in with_target if rules.file.target and _names(rules.file.target.model, args.model)]
    if not found:
        known = sorted({str(rules.file.target.model) for rules in with_target if rules.file.target})
        raise UsageError(
            Diagnostic(
                "RK610",
                f"no installed pack has the target {args.model}",
                help=(f"packs lead to: {', '.join(known) or 'no model'}", "name the rules: remapkit check RULES ..."),
            )
        )
    return found


def _names(written: object, model: str) -> bool:
    return written is not None and str(written) == model


def _check_one(rules: RuleSet, args: Namespace) -> Check:
    reference = TargetRef.from_arguments(args) or pack_target(rules)
    if reference is None:
        raise UsageError(
            Diagnostic(
                "RK609",
                f"what should {rules.name} be checked against? It declares no target",
                help=("name it with --model M or --target-keys FILE, or declare `target:` in the rule file",),
            )
        )
    source = _check_source(rules, args)
    return make_check(make_plan(rules, source), target_header(reference), strict_dtype=args.strict_dtype)


def _check_source(rules: RuleSet, args: Namespace) -> StateDictSpec:
    if args.keys:
        return read_header(Path(args.keys))
    if args.ckpt:
        with _open(Path(args.ckpt), args) as reader:
            return reader.header()
    source = known_source(rules)
    if source is None:
        raise UsageError(
            Diagnostic(
                "RK609",
                f"which checkpoint should {rules.name} be checked on? It declares no source",
                help=("name one with --ckpt C or --keys FILE, or declare `source:` in the rule file",),
            )
        )
    return source


def _verdict_row(each: Check) -> tuple[str, ...]:
    return (
        each.plan.name,
        f"{each.plan.source.name} ({len(each.plan.source)})",
        f"{each.target.name} ({len(each.target)})",
        str(each.matched),
        str(len(each.missing_keys)),
        str(len(each.unexpected_keys)),
        str(len(each.shape_mismatches)),
        "ok" if each.ok else "fails",
    )


def check_data(each: Check) -> dict[str, Any]:
    """A check as JSON."""
    return {
        "rules": each.plan.name,
        "source": each.plan.source.name,
        "target": each.target.name,
        "ok": each.ok,
        "source_keys": len(each.plan.source),
        "target_keys": len(each.target),
        "matched": each.matched,
        "missing_keys": list(each.missing_keys),
        "unexpected_keys": list(each.unexpected_keys),
        "shape_mismatches": len(each.shape_mismatches),
        "dtype_mismatches": len(each.dtype_mismatches),
        "satisfied_by_tie": dict(each.satisfied_by_tie),
        "interchangeable": each.interchangeable,
    }


# ------------------------------------------------------------------------------------------------ lint, test, explain


def lint_command(args: Namespace) -> Outcome:
    """Schema and compilation of rule files."""
    diagnostics: list[Diagnostic] = []
    rows: list[tuple[str, ...]] = []
    for path in _rule_paths(args):
        try:
            rules = load(path)
        except InvalidRules as error:
            diagnostics += error.diagnostics
            rows.append((str(path), "", "", "", f"{len(error.diagnostics)} problems"))
            continue
        diagnostics += rules.warnings
        counts = (str(len(rules.rules)), str(len(rules.keep)), str(len(rules.drop)))
        rows.append((str(path), *counts, "ok"))
    failed = any(row[-1] != "ok" for row in rows)
    return Outcome(
        data={"files": [{"file": row[0], "ok": row[-1] == "ok"} for row in rows]},
        text=(Table(("file", ">rules", ">keep", ">drop", "verdict"), tuple(rows)),),
        diagnostics=tuple(diagnostics),
        failed=failed,
        findings=True,
    )


def _rule_paths(args: Namespace) -> list[Path]:
    return [find_rules(name) for name in args.rules] or [pack.path for pack in packs()]


def test_command(args: Namespace) -> Outcome:
    """The packs' own tests, then their manifests end to end."""
    from remapkit.ruletest import run_tests

    diagnostics: list[Diagnostic] = []
    rows: list[tuple[str, ...]] = []
    failed = False
    for path in _rule_paths(args):
        rules = load(path)
        report = run_tests(rules)
        found, manifest = _manifest_end_to_end(rules)
        diagnostics += [*report.problems, *found]
        failed = failed or bool(report.problems or found)
        verdict = "fails" if report.problems or found else "ok"
        rows.append((rules.name, f"{report.passed} of {report.total}", manifest, verdict))
    return Outcome(
        data={"packs": [dict(zip(("rules", "tests", "manifest", "verdict"), row, strict=True)) for row in rows]},
        text=(Table(("rules", "tests", "manifest", "verdict"), tuple(rows)),),
        diagnostics=tuple(diagnostics),
        failed=failed,
        findings=True,
    )


def _manifest_end_to_end(rules: RuleSet) -> tuple[list[Diagnostic], str]:
    """The declared source through the rules to the declared target: its problems, and a word for the table."""
    source = known_source(rules)
    if source is None:
        return [], "none declared"
    plan = make_plan(rules, source)
    reference = pack_target(rules)
    if reference is None:
        return list(plan.problems), f"{len(plan.moves)} of {len(source)} keys; no target declared"
    verdict = make_check(plan, target_header(reference))
    return list(verdict.problems), f"{verdict.matched} of {len(verdict.target)} targets"


def explain_command(args: Namespace) -> Outcome:
    """What every rule made of a key."""
    rules = load(args.rules)
    text: list[str | Table] = []
    data = []
    for fqn in args.keys:
        found = rules.match(fqn)
        text += _explained(rules, fqn)
        data.append(
            {
                "key": fqn,
                "matches": [
                    {"rule": each.rule.id, "target": each.target, "captures": dict(each.captures)} for each in found
                ],
                "stopped": [
                    {"rule": rule.id, "offset": stop.offset, "expected": stop.expected}
                    for rule in (*rules.rules, *rules.keep, *rules.drop)
                    if (stop := rule.stopped_at(fqn)) is not None
                ],
            }
        )
    failed = any(len(each["matches"]) != 1 for each in data) and rules.unmatched == "error"
    failed = failed or any(len(each["matches"]) > 1 for each in data)
    return Outcome(data={"keys": data}, text=tuple(text), failed=failed)


def _explained(rules: RuleSet, fqn: str) -> Iterator[str | Table]:
    found = rules.match(fqn)
    yield fqn
    if not found:
        words = {
            "error": "matched by no rule",
            "keep": "kept by `unmatched: keep`",
            "drop": "dropped by `unmatched: drop`",
        }
        yield f"  {words[rules.unmatched]}"
    for each in found:
        captures = ", ".join(f"{name} = {value!r}" for name, value in each.captures.items())
        yield f"  {each.rule.id} -> {each.target if each.target is not None else '(dropped)'}"
        yield f"    where {captures}" if captures else "    no captures"
    if len(found) > 1:
        yield f"  fails: {len(found)} rules match one key; the order of rules never decides"
    stops = [(rule, rule.stopped_at(fqn)) for rule in (*rules.rules, *rules.keep, *rules.drop)]
    rows = tuple(
        (rule.id, f"{fqn[: stop.offset]}^", stop.expected)
        for rule, stop in sorted(stops, key=lambda pair: -(pair[1].offset if pair[1] else 0))
        if stop is not None
    )
    if rows:
        yield Table(("other rules", "read up to", "expected there"), rows)


# ------------------------------------------------------------------------------------------------ inspect, diff


def inspect_command(args: Namespace) -> Outcome:
    """A header as key families."""
    from remapkit.families import families

    with _open(Path(args.checkpoint), args) as reader:
        header = reader.header()
        notes, format, root = reader.notes, reader.format, reader.root
    if args.manifest:
        from remapkit.checkpoint.manifest import write_manifest

        write_manifest(header, Path(args.manifest))
    dtypes = Counter(spec.dtype for spec in header.values())
    numel = sum(spec.numel for spec in header.values())
    if args.all:
        table = Table(
            ("key", "dtype", "shape", ">bytes"),
            tuple((fqn, spec.dtype, str(list(spec.shape)), f"{spec.nbytes:,}") for fqn, spec in header.items()),
        )
    else:
        table = Table(
            (">keys", "family", "dtype", "shape", ">size"),
            tuple(
                (str(len(each.fqns)), each.pattern, each.dtypes_text, each.shapes_text, human_bytes(each.nbytes))
                for each in families(header)
            ),
        )
    what = f"{header.name}: {format}{f', state dict under {root!r}' if root else ''}"
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    total = f"{len(header)} tensors ({kinds}), {numel:,} elements, {human_bytes(header.nbytes)}"
    tied = tuple(f"tied: {' = '.join(group)}" for group in header.tied)
    metadata = tuple(f"metadata: {key} = {value}" for key, value in header.metadata.items())
    manifest = {fqn: {"dtype": spec.dtype, "shape": list(spec.shape)} for fqn, spec in header.items()}
    return Outcome(
        data={
            "format": format,
            "root": root,
            "tensors": manifest,
            "tied": [list(group) for group in header.tied],
            "metadata": dict(header.metadata),
            "bytes": header.nbytes,
        },
        text=(what, table, total, *tied, *metadata),
        diagnostics=notes,
    )


def diff_command(args: Namespace) -> Outcome:
    """Same keys, shapes, dtypes, values? Exit code 1 where not."""
    from remapkit.compare import compare

    with ExitStack() as stack:
        a = stack.enter_context(open_checkpoint(Path(args.a), root=args.root_a))
        b = stack.enter_context(open_checkpoint(Path(args.b), root=args.root_b))
        names_a, names_b = _remapped(a, args.rules_a), _remapped(b, args.rules_b)
        both = [fqn for fqn in names_a if fqn in names_b]
        differences = list(compare(a, b, [(names_a[fqn], names_b[fqn]) for fqn in both]))
    only_a = [fqn for fqn in names_a if fqn not in names_b]
    only_b = [fqn for fqn in names_b if fqn not in names_a]
    return _diff_outcome(args, dict(zip(both, differences, strict=True)), only_a, only_b)


def _remapped(reader: Reader, rules: str | None) -> dict[str, str]:
    """Name to compare under -> name in the file."""
    if rules is None:
        return {fqn: fqn for fqn in reader.header()}
    plan = make_plan(load(rules), reader.header())
    plan.raise_for_problems()
    return {move.target: move.sources[0] for move in plan.moves}


def _diff_outcome(
    args: Namespace, differences: Mapping[str, Any], only_a: Sequence[str], only_b: Sequence[str]
) -> Outcome:
    worst = max((each.max_abs for each in differences.values() if each.max_abs is not None), default=0.0)
    same = sum(each.identical for each in differences.values())
    bad = {fqn: each for fqn, each in differences.items() if not each.within(args.tolerance)}
    rows = [(fqn, each.describe()) for fqn, each in differences.items() if not each.identical]
    rows += [(fqn, f"only in {args.a}") for fqn in only_a] + [(fqn, f"only in {args.b}") for fqn in only_b]
    total = len(differences) + len(only_a) + len(only_b)
    text: list[str | Table] = [Table(("key", "difference"), tuple(rows))] if rows else []
    text.append(f"{same} of {total} tensors identical, max |Δ| = {worst:g}")
    if only_a or only_b:
        text.append(f"{len(only_a)} only in {args.a}, {len(only_b)} only in {args.b}")
    failed = bool(bad or only_a or only_b)
    return Outcome(
        data={
            "identical": same,
            "total": total,
            "max_abs": worst,
            "only_a": list(only_a),
            "only_b": list(only_b),
            "differences": {fqn: each.describe() for fqn, each in differences.items() if not each.identical},
        },
        text=tuple(text),
        failed=failed,
    )


# ------------------------------------------------------------------------------------------------ new, packs, schema


def new_command(args: Namespace) -> Outcome:
    """A rule file started from a real header."""
    from remapkit.learn import new_rule_file

    output = None if args.output == "-" else Path(args.output or f"{args.name}.yaml")
    with _open(Path(args.source), args) as reader:
        source, notes = reader.header(), reader.notes
    is_file = args.target is not None and Path(args.target).exists()
    model = None if args.target is None or is_file else args.target
    target_keys = args.target if is_file else None
    target = target_header(TargetRef(model=model, keys=target_keys)) if args.target else None
    text = new_rule_file(
        args.name,
        source,
        _relative(args.source, output) if args.source.endswith(".json") else None,
        target,
        model,
    )
    if output is None:
        return Outcome(data={}, raw=text)
    _write_text(output, text, args.force)
    return Outcome(
        data={"output": str(output)},
        text=(
            f"wrote {output}: one commented candidate rule for each key family of {source.name}",
            f"next: edit it, then `remapkit lint {output}` and `remapkit check {output} --ckpt {args.source}"
            + (f" --model {model}`" if model else "`"),
        ),
        diagnostics=notes,
    )


def _relative(path: str, output: Path | None) -> str:
    """A path as a rule file at `output` would name it."""
    import os

    return os.path.relpath(path, output.parent if output else Path())


def _write_text(output: Path, text: str, force: bool) -> None:
    from remapkit.diagnostic import UnwritableOutput

    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UnwritableOutput(Diagnostic("RK501", f"{output} exists (use --force)")) from None
    except OSError as error:
        raise UnwritableOutput(Diagnostic("RK503", f"cannot write {output}: {error.strerror}")) from None


def packs_command(args: Namespace) -> Outcome:
    """What is installed, and from where."""
    rows = []
    for pack in packs():
        try:
            rules = load(pack.path)
        except RemapkitError as error:
            rows.append(
                (
                    pack.name,
                    f"{len(error.diagnostics)} problems: see `remapkit lint`",
                    "",
                    pack.origin,
                    str(pack.path),
                )
            )
            continue
        target = pack_target(rules)
        summary = rules.file.summary.value if rules.file.summary else ""
        rows.append((pack.name, summary, str(target) if target else "", pack.origin, str(pack.path)))
    found = plugins()
    return Outcome(
        data={
            "packs": [dict(zip(("name", "summary", "target", "origin", "path"), row, strict=True)) for row in rows],
            "plugins": [{"name": each.name, "package": each.package, "origin": each.origin} for each in found],
        },
        text=(
            Table(("pack", "summary", "target", "from", "file"), tuple(rows)),
            Table(("plugin", "package", "from"), tuple((each.name, each.package, each.origin) for each in found)),
        ),
    )


def schema_command(args: Namespace) -> Outcome:
    """The JSON Schema of rule files."""
    from remapkit.rulefile import schema_text

    return Outcome(data={}, raw=schema_text())
