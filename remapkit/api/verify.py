"""`remapkit.verify`: checks rules by value, by running both models or by an oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from remapkit.api.inputs import Keys, is_header, list_files_read, list_rule_files, refuse_unproven
from remapkit.api.ruleset import Config, RuleSet, RulesLike, checked, resolve_rules
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.formats import Reader
from remapkit.formats.options import ReadOptions, make_read_options
from remapkit.models.reference import resolve_reference
from remapkit.models.target import TargetRef, find_declared_target, header, import_factory
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.roots import settle_root, take_root
from remapkit.registry.verified import write_witness
from remapkit.sources.declared import read_declared_source
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.verification import ModelRef, Verdict

Reference = str | Callable[..., Any]
"""A model or a converter: `plugin.module:Class`, `py:package.module:name`, or the object itself."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found: a `Verdict` for each comparison, and the witness that it wrote."""

    rules: str
    verdicts: tuple[Verdict, ...]
    witness: Path | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            f"{self.rules}: {verdict.by} against {verdict.other}: {'the same' if verdict.ok else 'they differ'}"
            for verdict in self.verdicts
        )

    @property
    def ok(self) -> bool:
        """Whether all values are the same."""
        return all(verdict.ok for verdict in self.verdicts)


@checked
def verify(
    rules: RulesLike,
    *,
    source: Reference | None = None,
    source_args: Mapping[str, Any] | None = None,
    source_config: Config | None = None,
    target: Reference | None = None,
    target_args: Mapping[str, Any] | None = None,
    target_config: Config | None = None,
    forward: str | Sequence[str] = "forward",
    input: str | None = None,
    oracle: Reference | None = None,
    keys: Keys | SourceLike | None = None,
    root: str | None = None,
    strip: Sequence[str] = (),
    seed: int = 0,
    tolerance: float = 1e-4,
    write: bool = False,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
    allow_undecided: bool = False,
) -> VerifyReport:
    """Compare values: run both models on one input, or compare with a converter (an oracle).

    Args:
        rules: A `RuleSet`, the name of an installed pack, or the path of a rule file.
        source, source_args, source_config: The source model, by reference or as a class, with its arguments.
        target, target_args, target_config: The target model; by default the one that the rules declare.
        forward: The method to compare, or several.
        input: The shape of the input: `1,3,32,32`, or `2,7:1000` for integers below 1000.
        oracle: A converter from state dict to state dict, by reference or as a function.
        keys: For an oracle: the source as a manifest or a header; by default the manifest that the rules declare.
        root, strip: How a checkpoint that `keys` names is read; see `open_checkpoint`.
        seed: The seed of the random values.
        tolerance: The largest difference of outputs that passes, relative to the largest value.
        write: Save the result next to the rule file as its witness, if everything is the same.
        params, config: Values for the params of the rules; see `load`.
        allow_undecided: Continue even if a proof over all keys is undecided.

    Returns:
        `VerifyReport`, also if values differ: see its `ok`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UsageError: Arguments that do not fit together, or a model that cannot be built.
        InvalidRules: Rules that cannot be compiled or proven.
        FailedCheck: The result of the rules does not fit the target model.

    >>> from remapkit import TensorSpec, loads
    >>> rules = loads("remapkit: 1\\nname: one\\nrules: [{id: a, path: 'a.{n:int}', to: 'b.{n}'}]")
    >>> report = verify(rules, oracle=lambda state: {"b.0": state["a.0"]}, keys={"a.0": TensorSpec("F32", (2,))})
    >>> report.ok, report.verdicts[0].tensors
    (True, ('b.0',))
    """
    arguments = dict(locals())
    options = make_read_options(root, strip)
    rule_set = resolve_rules(rules, params, config)
    findings = refuse_unproven([rule_set], allow_undecided=allow_undecided)
    if write and (rule_set.after or rule_set.file.path is None):
        raise UsageError(Diagnostic("RK609", "--write keeps the witness beside a rule file, but there is none"))
    if oracle is not None:
        verdicts = _verify_by_oracle(
            rule_set, oracle, source, source_args, source_config, _read_keys(rule_set, keys, options), seed
        )
    else:
        models = _find_models(rule_set, source, source_args, source_config, target, target_args, target_config)
        methods = [forward] if isinstance(forward, str) else list(forward)
        if not methods:
            raise UsageError(Diagnostic("RK609", "verify: `forward` must name at least one method, got none"))
        from remapkit.verification import verify_by_forward

        verdicts = verify_by_forward(rule_set, *models, methods, written=input, seed=seed, tolerance=tolerance)
    problems = tuple(problem for verdict in verdicts for problem in verdict.problems)
    witness = None
    if write and not problems:
        from remapkit.verification import list_versions

        read = [*list_files_read(arguments, but=()), *list_rule_files(rule_set)]
        for verdict in verdicts:
            witness = write_witness(rule_set, verdict.to_json(), list_versions(), read)
    log_diagnostics((*problems, *findings))
    return VerifyReport(rule_set.name, verdicts, witness, (*problems, *findings))


def _resolve(reference: Reference) -> tuple[Callable[..., Any], str]:
    """Return the object that a reference names, and its name."""
    if isinstance(reference, str):
        return resolve_reference(reference), reference
    return reference, getattr(reference, "__qualname__", type(reference).__name__)


def _read_keys(rules: RuleSet, keys: Keys | SourceLike | None, options: ReadOptions) -> StateDictSpec | None:
    """Return the named header, else that of the manifest that the rules declare, if there is one."""
    if keys is None:
        return read_declared_source(rules.file)
    if is_header(keys):
        return header(keys)

    def plan(reader: Reader) -> tuple[RuleSet, ResolvedPlan]:
        return rules, make_plan(rules, reader.header())

    with open_source(cast("SourceLike", keys), options, rules=rules.file) as reader:
        return settle_root(options.root, rules, reader, reader.header(), plan, take_root)[0].header()


def _verify_by_oracle(
    rules: RuleSet,
    oracle: Reference,
    source: Reference | None,
    source_args: Mapping[str, Any] | None,
    source_config: Config | None,
    known: StateDictSpec | None,
    seed: int,
) -> tuple[Verdict, ...]:
    from remapkit.verification import ModelRef, verify_by_oracle

    converter, name = _resolve(oracle)
    if source is not None:
        origin: ModelRef | StateDictSpec = ModelRef(*_resolve(source), source_args or {}, source_config)
    else:
        if known is None:
            title = f"which tensors should {rules.name} be verified on? It declares no source"
            help = ("name a model with --source M, or a manifest with --keys FILE",)
            raise UsageError(Diagnostic("RK609", title, help=help))
        origin = known
    return (verify_by_oracle(rules, converter, name, origin, seed),)


def _find_models(
    rules: RuleSet,
    source: Reference | None,
    source_args: Mapping[str, Any] | None,
    source_config: Config | None,
    target: Reference | None,
    target_args: Mapping[str, Any] | None,
    target_config: Config | None,
) -> tuple[ModelRef, ModelRef]:
    """Return the models to run, not built yet. Raises `UsageError` if one is missing or may not be imported."""
    declared = find_declared_target(rules) if target is None else None
    if source is None or (target is None and (declared is None or declared.model is None)):
        lacking = "--source" if source is None else "--target"
        title = f"verify needs two models or an oracle; {lacking} is missing"
        models = "for example --source py:diffusers:AutoencoderKLWan --target wan.vae:WanVAE"
        raise UsageError(Diagnostic("RK609", title, help=(models, "or --oracle py:module:function")))
    from remapkit.verification import ModelRef

    # Check that the model that a rule file names may be imported, before building anything else.
    named = declared or (TargetRef(target) if isinstance(target, str) else None)
    if named is not None:
        factory, name = import_factory(named, "--target"), str(named.model)
    else:
        assert target is not None
        factory, name = _resolve(target)
    arguments = {**(named.args if named is not None else {}), **(target_args or {})}
    config = named.config if named is not None and target_config is None else target_config
    return (
        ModelRef(*_resolve(source), source_args or {}, source_config),
        ModelRef(factory, name, arguments, config),
    )
