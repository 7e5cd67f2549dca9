"""`RuleSet` and `Plan`, the user-facing classes: data of the lower floors, with methods that use several floors.

Lower floors work on `CompiledRules` and `ResolvedPlan`, which know nothing of proofs, targets or inverses. A
`RuleSet` or `Plan` shares the data of the object that it is made of: nothing compiled is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from remapkit.diagnostics.arguments import check_arguments
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.wording import count_noun
from remapkit.plans.model import ResolvedPlan
from remapkit.rules.model import CompiledRules

if TYPE_CHECKING:
    from remapkit.plans.check import Check
    from remapkit.proofs.model import Proof
    from remapkit.rulefile.syntax import RuleFile

RulesLike = CompiledRules | str | Path
"""Rules: a `RuleSet`, the name of an installed pack, or the path of a rule file."""

Config = str | Path | Mapping[str, Any]
"""A config: the path of a JSON file, or its content."""

T = TypeVar("T")

checked = check_arguments(
    RulesLike="CompiledRules | str | Path",
    CompiledRules=CompiledRules,
    Config="Mapping | str | Path",
    Keys="Mapping | str | Path",
    OutputsLike="str | Path | Sequence | Mapping",
    SourceLike="Sequence | Mapping | str | Path",
)
"""Refuses arguments that the annotations of a public function exclude."""


def _make_face(of: Any, cls: type[T]) -> T:
    """Return the same data as an instance of a class that only adds methods."""
    if isinstance(of, cls):
        return of
    face = object.__new__(cls)
    for name in of.__dataclass_fields__:
        object.__setattr__(face, name, getattr(of, name))
    return face


@dataclass(frozen=True, slots=True)
class Plan(ResolvedPlan):
    """The moves for one header, in the header's order, with the dropped keys and the problems.

    >>> import remapkit
    >>> plan = remapkit.load("wan22_pth").plan({"conv1.weight": remapkit.TensorSpec("F32", (96, 96, 1, 1, 1))})
    >>> [(move.sources, move.target) for move in plan.moves], plan.ok
    ([(('conv1.weight',), 'conv1.weight')], True)
    """

    @classmethod
    def of(cls, plan: ResolvedPlan) -> Self:
        """Return a `Plan` that shares the data of a resolved plan."""
        return _make_face(plan, cls)

    def check(self, target: object, *, strict_dtype: bool = False) -> Check:
        """Check the plan against a target: a torch module (on meta or not), a path, a header, or a state dict.

        >>> import remapkit
        >>> spec = remapkit.TensorSpec("F32", (96,))
        >>> plan = remapkit.load("wan22_pth").plan({"conv1.bias": spec})
        >>> plan.check({"conv1.bias": spec, "conv2.bias": spec}).missing_keys
        ('conv2.bias',)
        """
        from remapkit.models.target import header
        from remapkit.plans.check import make_check

        return make_check(self, header(target), strict_dtype=strict_dtype)


@dataclass(frozen=True, slots=True)
class RuleSet(CompiledRules):
    """A compiled rule file.

    Call it on a state dict to rename its keys; `plan` lists every move of a checkpoint before anything moves.

    >>> import remapkit
    >>> rules = remapkit.load("wan22_pth")
    >>> rules.match("encoder.downsamples.0.downsamples.2.resample.1.bias")[0].target
    'encoder.downsamples.0.downsampler.resample.1.bias'
    """

    def __str__(self) -> str:
        if self.after:
            return f"{self.name}: a route of {len(self.parts)} rule files"
        parts = [count_noun(len(self.rules), "rule")]
        others = (("keep", self.keep), ("drop", self.drop))
        parts += [f"{len(patterns)} {word}" for word, patterns in others if patterns]
        return f"{self.name}: {', '.join(parts)}"

    @classmethod
    def of(cls, rules: CompiledRules) -> Self:
        """Return a `RuleSet` that shares the data of compiled rules."""
        return _make_face(rules, cls)

    def plan(self, source: object) -> Plan:
        """Plan the moves for a checkpoint: a path, a header, a mapping of `TensorSpec`s or a state dict of tensors.

        >>> import remapkit
        >>> print(remapkit.load("wan22_pth").plan({"conv1.bias": remapkit.TensorSpec("F32", (96,))}))
        wan22_pth: 1 key, 0 renamed, 1 kept, 0 dropped
        """
        from remapkit.models.target import header
        from remapkit.plans.make import make_plan

        return Plan.of(make_plan(self, header(source)))

    @checked
    def then(self, other: RulesLike) -> RuleSet:
        """Return the rules that do what these and then `other` do, as one plan: nothing between is made or written.

        The result can be applied, checked, planned, proven, loaded with and called. It is proven if both parts are,
        reads what these rules read, and is checked against the target of `other`. `match` is that of the first part.

        Raises `UsageError` (RK666) if these rules write another layout than `other` reads, and what `load` raises.

        >>> import remapkit
        >>> there = remapkit.load("wan22_pth").then(remapkit.load("wan22_diffusers").inverse())
        >>> there({"decoder.upsamples.0.upsamples.3.time_conv.bias": "any value"})
        {'decoder.up_blocks.0.upsampler.time_conv.bias': 'any value'}
        """
        from remapkit.rules.chain import chain_rules

        return RuleSet.of(chain_rules(self, resolve_rules(other)))

    def adapter(
        self,
        source: object,
        *,
        base: object = None,
        format: str | None = None,
        fold_alpha: bool = False,
        alpha: float | None = None,
        root: str | None = None,
    ) -> RuleSet:
        """Return the rules for an adapter (LoRA) of the model, derived from these rules for its weights.

        They are ordinary rules, of literal names: plan, prove, apply and explain them like any other. Where alphas
        are multiplied in before weights are joined, they are a route of two rule files.

        Args:
            source: The adapter: a checkpoint, or a header. With a header, the numbers in alphas are not known, so
                those of joined weights are multiplied in.
            base: The model that it is for: a checkpoint, a manifest, a header or a module. By default the manifest
                that these rules declare as their source.
            format: `peft`, `diffusers`, `kohya` or `comfy`: how the result is named; by default like the input.
            fold_alpha: Multiply alphas into the up matrices: each module's own alpha / LoRA rank.
            alpha: The alpha of all modules, for a PEFT file without its `adapter_config.json`.
            root: The prefix of the modules, where a file has the adapters of several models: `lora_unet_`.

        Raises:
            UsageError: No tensor belongs to a module of the model, or the model is not known.
            FailedCheck: What an adapter of low rank cannot follow, with the rule and the reason for each.

        >>> import remapkit
        >>> shapes = {"lora_up.weight": (9216, 4), "lora_down.weight": (4, 3072), "alpha": ()}
        >>> name = "lora_unet_double_blocks_0_img_attn_qkv"
        >>> lora = {f"{name}.{leaf}": remapkit.TensorSpec("F32", shape) for leaf, shape in shapes.items()}
        >>> rules = remapkit.load("flux_bfl").adapter(lora, format="diffusers")
        >>> sorted(rules.plan(lora).target)[-1]
        'transformer.transformer_blocks.0.attn.to_v.lora_B.weight'
        """
        from remapkit.api.adapter import derive_source
        from remapkit.api.adapter_options import AdapterOptions

        options = AdapterOptions(base, format, fold_alpha, alpha, root)
        return RuleSet.of(derive_source(self, source, options).rules)

    def prove(self, *, header: Iterable[str] | None = None) -> Proof:
        """Decide for every possible key whether these rules are unambiguous and lose nothing.

        `header` are known source keys; see `Proof`. For a route, the parts are proven.

        >>> import remapkit
        >>> remapkit.load("wan22_diffusers").prove().level.value
        'proven for all keys'
        """
        from remapkit.proofs.prover import prove, prove_parts

        return prove_parts(self) if self.after else prove(self, header=header)

    def inverse(self, *, partial: bool = False) -> RuleSet:
        """Return the rule set that maps every target back to its source; `partial`: every target that is not dropped.

        Raises `InvalidRules`, with the rule and the reason, if there is none.

        >>> import remapkit
        >>> back = remapkit.load("wan22_pth").inverse()
        >>> back.match("encoder.downsamples.0.downsampler.resample.1.bias")[0].target
        'encoder.downsamples.0.downsamples.2.resample.1.bias'
        """
        if self.after:
            first, *others = (RuleSet.of(part).inverse(partial=partial) for part in reversed(self.parts))
            return reduce(RuleSet.then, others, first)
        from remapkit.authoring.invert import collect_param_values, invert
        from remapkit.rulefile.read import read_text
        from remapkit.rules.compile import compile_rules
        from remapkit.sources.declared import find_home_folder

        try:
            text = invert(self, partial=partial)
        except InvalidRules as error:
            from remapkit.api.adapter import name_way_back

            raise name_way_back(error, self) from None
        file = read_text(text, f"the inverse of {self.name}")
        return RuleSet.of(
            compile_rules(replace(file, folder=find_home_folder(self.file)), collect_param_values(self))
        )

    def __call__(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state dict under its new keys; renamed values are passed through unchanged and share storage.

        The result is checked against the manifest that the rule file declares as its target. If keys of the declared
        source are missing (or the rules declare no source), the state dict counts as a part, and no target key is
        reported as missing.

        Raises `FailedCheck` with every problem: keys that no rule or several rules match, collisions, scales that
        would be lost, names that the target does not have; `TypeError` if it is not a mapping of names.

        >>> import remapkit
        >>> remapkit.load("wan22_pth")({"decoder.upsamples.0.upsamples.3.time_conv.bias": "any value"})
        {'decoder.upsamples.0.upsampler.time_conv.bias': 'any value'}
        """
        from remapkit.compute.rename import remap

        return remap(self, state_dict)


@checked
def load(
    name_or_path: str | Path,
    *,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
) -> RuleSet:
    """Read and compile a rule file: an installed pack's name, or a path.

    `params` are values for the params of the file; `config` is a model's config.json (or its content), where params
    that refer to an entry of it are looked up.

    Returns a `RuleSet`: call it on a state dict, or make a plan with it. Raises `InvalidRules` with every problem of
    the file, and `MissingFile` if there is no such file or pack.

    >>> rules = load("wan22_pth")
    >>> rules.name, len(rules.rules)
    ('wan22_pth', 4)
    """
    from remapkit.registry.load import load_rules

    return RuleSet.of(load_rules(name_or_path, params=params, config=config))


@checked
def loads(
    text: str, *, params: Mapping[str, int | Sequence[int]] | None = None, config: Config | None = None
) -> RuleSet:
    """Compile the text of a rule file; `params` and `config` are those of `load`.

    Files that the text declares (manifests of its source and target) are looked up in the working directory. Raises
    `InvalidRules` with every problem, placed in `<text>`.

    >>> rules = loads("remapkit: 1\\nname: one\\nrules:\\n  - {id: a, path: 'a.{n:int}', to: 'b.{n}'}")
    >>> rules.match("a.3")[0].target
    'b.3'
    """
    from remapkit.registry.load import read_config
    from remapkit.rulefile.read import read_text

    return compile_rules(read_text(text), params, read_config(config))


def compile_rules(
    rule_file: RuleFile,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Mapping[str, Any] | None = None,
) -> RuleSet:
    """Compile a parsed rule file; raises `InvalidRules` with all of its problems."""
    from remapkit.rules import compile

    return RuleSet.of(compile.compile_rules(rule_file, params, config))


def resolve_rules_of_one_file(
    rules: RulesLike, params: Mapping[str, int | Sequence[int]] | None = None, config: Config | None = None
) -> RuleSet:
    """Return the rules like `resolve_rules`; raises `UsageError` (RK609) for a route, which is no rule file."""
    found = resolve_rules(rules, params, config)
    if found.after:
        help = ("take its rule files one by one: `RuleSet.parts`; `RuleSet.inverse` inverts all of it",)
        raise UsageError(Diagnostic("RK609", f"{found.name} is a route, not one rule file", help=help))
    return found


def resolve_rules(
    rules: RulesLike, params: Mapping[str, int | Sequence[int]] | None = None, config: Config | None = None
) -> RuleSet:
    """Return the rules, loaded if they are given by name or path.

    Raises what `load` raises, and `TypeError` if params or a config are passed with compiled rules.
    """
    if not isinstance(rules, CompiledRules):
        return load(rules, params=params, config=config)
    if params or config is not None:
        raise TypeError("params and config must be given to load(): these rules are compiled already")
    return RuleSet.of(rules)
