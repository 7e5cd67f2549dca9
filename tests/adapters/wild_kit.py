"""Small models with the names of published ones, adapter files of them in published formats, and what these do.

The shapes are those of the packs' manifests with each size replaced by a small one; two blocks of each kind are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import remapkit
from remapkit.adapters.build import AdapterRules, Options, build_adapter
from remapkit.tensors.spec import StateDictSpec, TensorSpec

PACKS = Path(__file__).parents[2] / "rules"
DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}
BFL_SIZES = (3072, 6144, 9216, 12288, 15360, 18432, 21504, 128, 64, 256, 768, 4096)
FLUX = dict(zip(BFL_SIZES, (8, 16, 24, 32, 40, 48, 56, 4, 6, 10, 12, 14), strict=True))
WAN = {1536: 8, 8960: 12, 9216: 48, 4096: 14, 256: 10, 64: 20, 16: 5}


@dataclass(frozen=True)
class Model:
    """The rules of a small model, and its header."""

    rules: remapkit.RuleSet
    base: StateDictSpec

    def derive(
        self,
        file: Mapping[str, Tensor],
        options: Options | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        has_values: bool = True,
    ) -> AdapterRules:
        """Return the rules for an adapter file."""

        def read(fqn: str) -> float | None:
            return file[fqn].item() if has_values and file[fqn].numel() == 1 else None

        header = StateDictSpec(
            {fqn: spec_of(each) for fqn, each in file.items()}, metadata=metadata or {}, name="lora"
        )
        return build_adapter(self.rules, self.base, header, options or Options(), read)

    def convert(self, file: Mapping[str, Tensor], format: str | None = None) -> dict[str, Tensor]:
        """Return the adapter file that the rules make."""
        return run(self.derive(file, Options(format)), file)


def run(built: AdapterRules, file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apply rule files, in their order."""
    made = dict(file)
    for text in built.texts:
        made = dict(remapkit.loads(text)(made))
    return made


def spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(DTYPES[tensor.dtype], tuple(tensor.shape))


def load_small(pack: str, keys: str, sizes: Mapping[int, int]) -> Model:
    """Return a pack for a small model: two blocks, and small sizes in its manifest and its parameters."""
    text = (PACKS / f"{pack}.yaml").read_text()
    text = re.sub(r"^(source|target): .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("hidden: 3072", f"hidden: {sizes.get(3072)}")
    manifest = json.loads((PACKS / "keys" / f"{keys}.json").read_text())
    base = {
        fqn: TensorSpec("F32", tuple(sizes.get(size, size) for size in spec["shape"]))
        for fqn, spec in manifest.items()
        if "shape" in spec and not re.search(r"blocks\.([2-9]|\d\d)\.", fqn)
    }
    return Model(remapkit.loads(text), StateDictSpec(base, name=keys))


def list_modules(base: Mapping[str, TensorSpec], pattern: str = "") -> list[str]:
    """Return the linear layers of a model whose name matches a pattern."""
    return [
        fqn.removesuffix(".weight")
        for fqn, spec in base.items()
        if fqn.endswith(".weight") and len(spec.shape) == 2 and re.search(pattern, fqn)
    ]


def make_file(
    base: Mapping[str, TensorSpec],
    modules: Iterable[str],
    name: Callable[[str], str],
    leaves: tuple[str, str],
    *,
    rank: Callable[[str], int] = lambda module: 2,
    alpha: Callable[[str], float | None] = lambda module: None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return an adapter file of small integers, whose products are exact; `name` is what it calls each module."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        rows, *columns = base[f"{module}.weight"].shape
        own = rank(module)
        for leaf, shape in zip(leaves, ((rows, own, *[1] * (len(columns) - 1)), (own, *columns)), strict=True):
            made[f"{name(module)}.{leaf}"] = torch.randint(-4, 5, shape, generator=generator).float()
        if (number := alpha(module)) is not None:
            made[f"{name(module)}.alpha"] = torch.tensor(float(number))
    return made


KOHYA = ("lora_up.weight", "lora_down.weight")
PEFT = ("lora_B.weight", "lora_A.weight")


def kohya(prefix: str = "lora_unet_") -> Callable[[str], str]:
    return lambda module: prefix + module.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module


def find_updates(
    file: Mapping[str, Tensor],
    base: Mapping[str, TensorSpec],
    name: Callable[[str], str],
    factors: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Return what an adapter file adds to each tensor of a model, from the definition: up @ down * alpha / r.

    `factors` are those of modules whose alpha is in a config. Written for every published spelling by itself.
    """
    found: dict[str, Tensor] = {}
    for fqn, spec in base.items():
        module, _, last = fqn.rpartition(".")
        own = {leaf: file[f"{name(module)}.{leaf}"].double() for leaf in LEAVES if f"{name(module)}.{leaf}" in file}
        roles = {LEAVES[leaf]: tensor for leaf, tensor in own.items()}
        factor = (factors or {}).get(module, 1.0)
        if "alpha" in roles:
            factor = roles["alpha"].item() / roles["down"].shape[0]
        if last == "weight" and "up" in roles:
            product = roles["up"].flatten(1) @ roles["down"].flatten(1)
            found[fqn] = (product * factor).reshape(spec.shape)
        elif last == "weight" and "diff" in roles:
            found[fqn] = roles["diff"]
        elif last == "bias" and "up_bias" in roles:
            found[fqn] = roles["up_bias"] * factor
        elif last == "bias" and "diff_b" in roles:
            found[fqn] = roles["diff_b"]
    return found


UPS = ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora.up.weight")
DOWNS = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight")
OTHERS = {"alpha": "alpha", "diff": "diff", "diff_b": "diff_b", "lora_B.bias": "up_bias"}
LEAVES = dict.fromkeys(UPS, "up") | dict.fromkeys(DOWNS, "down") | OTHERS


def assert_same_effect(
    model: Model,
    file: Mapping[str, Tensor],
    made: Mapping[str, Tensor],
    before: Callable[[str], str],
    after: Callable[[str], str],
    factors: tuple[Mapping[str, float] | None, Mapping[str, float] | None] = (None, None),
) -> None:
    """The rules of the weights give, of what the file adds, what the new file adds.

    The rules of these models are linear, so that they can be applied to what is added instead of to the weights.
    Numbers are small integers, and factors powers of two or small fractions: 1e-6 is room for the latter only.
    """
    updates = find_updates(file, model.base, before, factors[0])
    assert updates
    zeros = {fqn: torch.zeros(spec.shape, dtype=torch.float64) for fqn, spec in model.base.items()}
    wanted = model.rules({**zeros, **updates})
    target = {fqn: TensorSpec("F64", tuple(each.shape)) for fqn, each in wanted.items()}
    got = find_updates(made, target, after, factors[1])
    for fqn, update in wanted.items():
        torch.testing.assert_close(got.get(fqn, torch.zeros_like(update)), update, rtol=1e-6, atol=1e-6, msg=fqn)
