"""`remapkit verify`: rules held against values, by running both models or by an oracle."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.cli.arguments import parse_model_args
from remapkit.cli.commands.common import (
    list_files_read,
    list_rule_files,
    load_rules,
    read_known_source,
    refuse_unproven,
)
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun
from remapkit.models.reference import resolve_reference
from remapkit.models.target import TargetRef, find_declared_target, import_factory
from remapkit.registry.installed import version
from remapkit.registry.load import read_config
from remapkit.registry.verified import write_witness
from remapkit.sources.declared import read_header

if TYPE_CHECKING:
    from torch import nn

    from remapkit.api.ruleset import RuleSet
    from remapkit.verification import Verdict


def run(args: Namespace) -> CommandOutcome:
    """Both models on the same input, or the oracle on the same state dict."""
    rules = load_rules(args.rules, args)
    proven = refuse_unproven([rules], args)
    if args.write and rules.file.path is None:
        raise UsageError(Diagnostic("RK609", "--write keeps the witness beside a rule file, and this is none"))
    verdicts = _verify_by_oracle(rules, args) if args.oracle else _verify_by_forward(rules, args)
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    text = [_describe_verdict(rules, verdict) for verdict in verdicts]
    if args.write and not problems:
        read = [*list_files_read(args, but=()), *list_rule_files(rules)]
        for verdict in verdicts:
            path = write_witness(rules, verdict.to_json(), _list_versions(), read)
        text.append(f"wrote {path}")
    return CommandOutcome(
        data={"rules": rules.name, "ok": not problems, "verified": [verdict.to_json() for verdict in verdicts]},
        text=(TextTable(("by", "against", ">tensors", ">apart", "verdict"), tuple(map(_make_row, verdicts))), *text),
        diagnostics=(*problems, *proven),
        failed=bool(problems),
        findings=True,
    )


def _verify_by_oracle(rules: RuleSet, args: Namespace) -> list[Verdict]:
    import torch

    from remapkit.verification import make_random_state, verify_oracle

    oracle = resolve_reference(args.oracle)
    if args.source:
        given = parse_model_args(args.source_arg)
        model = _build_model(resolve_reference(args.source), args.source, given, args.source_config, args.seed)
        state = {fqn: value for fqn, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    else:
        header = read_header(Path(args.keys)) if args.keys else read_known_source(rules)
        if header is None:
            title = f"which tensors should {rules.name} be verified on? It declares no source"
            help = ("name a model with --source M, or a manifest with --keys FILE",)
            raise UsageError(Diagnostic("RK609", title, help=help))
        state = make_random_state(header, args.seed)
    return [verify_oracle(rules, oracle, state, args.oracle)]


def _verify_by_forward(rules: RuleSet, args: Namespace) -> list[Verdict]:
    from remapkit.verification import verify_forward

    reference = TargetRef(args.target) if args.target else find_declared_target(rules)
    if not args.source or reference is None or reference.model is None:
        lacking = "--source" if not args.source else "--target"
        title = f"verify runs two models, or asks an oracle: {lacking} is missing"
        models = "for example --source py:diffusers:AutoencoderKLWan --target wan.vae:WanVAE"
        raise UsageError(Diagnostic("RK609", title, help=(models, "or --oracle py:module:function")))
    # What a rule file names is imported only where it may be, before anything else is built.
    factory = import_factory(reference, "--target")
    given = parse_model_args(args.source_arg)
    source = _build_model(resolve_reference(args.source), args.source, given, args.source_config, args.seed, rules)
    arguments = {**reference.args, **parse_model_args(args.target_arg)}
    target = _build_model(factory, str(reference.model), arguments, args.target_config, args.seed + 1)
    return [
        verify_forward(rules, source, target, method, written=args.input, seed=args.seed, tolerance=args.tolerance)
        for method in args.forward or ["forward"]
    ]


def _build_model(
    factory: Callable[..., Any],
    reference: str,
    arguments: Mapping[str, Any],
    config: str | None,
    seed: int,
    rules: RuleSet | None = None,
) -> nn.Module:
    from remapkit.models.build import call_factory
    from remapkit.verification import build_random_model

    return build_random_model(
        lambda: call_factory(factory, dict(arguments), read_config(config)), reference, seed, rules
    )


def _make_row(verdict: Verdict) -> tuple[str, ...]:
    apart = f"{verdict.apart:.1e}" if verdict.input else "0" if verdict.ok else ""
    count = f"{len(verdict.tensors)} of {verdict.total}" if verdict.total else str(len(verdict.tensors))
    return verdict.by, verdict.other, count, apart, "verified by value" if verdict.ok else "fails"


def _describe_verdict(rules: RuleSet, verdict: Verdict) -> str:
    if not verdict.ok:
        return f"{rules.name} is not verified by {verdict.by}"
    if not verdict.total:
        same = f"{count_noun(len(verdict.tensors), 'tensor')} are those of {verdict.other}, bit for bit"
        return f"{rules.name}: verified by value: {same}"
    rest = verdict.total - len(verdict.tensors)
    left = f"; {count_noun(rest, 'tensor')} took no part in it" if rest else ""
    if kept := len(verdict.constants):
        left += (
            f"; {count_noun(kept, 'dropped buffer')} taken as the constructor makes {'it' if kept == 1 else 'them'}"
        )
    return f"{rules.name}: verified by value: {verdict.other} gives the same{left}"


def _list_versions() -> dict[str, str]:
    """remapkit, torch, and whatever else was imported that makes models or converts them."""
    found = {"remapkit": version()}
    for name in ("torch", "diffusers", "transformers", "timm"):
        if name in sys.modules:
            try:
                found[name] = installed(name)
            except PackageNotFoundError:
                continue
    return found
