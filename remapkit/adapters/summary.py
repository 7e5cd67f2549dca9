"""What an adapter file is, from its own names and shapes: formats, modules, LoRA ranks and alphas."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from remapkit.adapters.alphas import CONFIG, PeftConfig, find_peft_start
from remapkit.adapters.names import split_leaf
from remapkit.companions.formats import Formats, Role, read_formats
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.tensors.spec import StateDictSpec, TensorSpec

Ranks = Mapping[int | None, int]
Alphas = Mapping[float | None, int]


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """The modules of an adapter file under one prefix (a UNet's, a text encoder's), in one format.

    `kinds` has the number of modules of each kind (`LoRA`, `DoRA`, `LoKr`). `ranks` and `alphas` have the number of
    modules with each LoRA rank and each alpha; None stands for one that the header does not tell. `alpha_in` says
    where alphas are: `tensor`, `config` (adapter_config.json), or `none`, which means that they equal the LoRA rank.
    """

    format: str
    prefix: str
    modules: int
    kinds: Mapping[str, int]
    ranks: Ranks
    alphas: Alphas
    alpha_in: str

    def __str__(self) -> str:
        title = read_formats().titles.get(self.format)
        where = f" under {self.prefix}" if self.prefix else ""
        named = f"in the names of {title}{where}" if title else "without a prefix"
        kinds = join_words(
            [kind if len(self.kinds) == 1 else f"{count} {kind}" for kind, count in self.kinds.items()]
        )
        parts = [f"{kinds} of {count_noun(self.modules, 'module')}, {named}"]
        if self.ranks:
            parts.append(f"LoRA rank {_list_counts(self.ranks)}")
            parts.append(self._describe_alphas())
        return ", ".join(parts)

    def _describe_alphas(self) -> str:
        known = {alpha: count for alpha, count in self.alphas.items() if alpha is not None}
        if self.alpha_in == "none":
            return "no alphas: each is the LoRA rank"
        if self.alpha_in == "config":
            return f"alpha {_list_counts(known)} of {CONFIG}" if known else f"alphas in {CONFIG}, which is not there"
        lacking = self.modules - sum(self.alphas.values())
        without = [f"none for {count_noun(lacking, 'module')}"] if lacking > 0 else []
        return ", ".join([f"alpha {_list_counts(self.alphas)}", *without])


def summarize_adapter(
    header: StateDictSpec, config: PeftConfig | None, read: Callable[[str], float | None]
) -> tuple[AdapterPart, ...]:
    """Return what the parts of an adapter file are, that with most modules first.

    `config` is PEFT's, if it lies beside the file; `read` returns the number in a tensor, None if it is not known.

    >>> shapes = {"lora_up.weight": (8, 4), "lora_down.weight": (4, 6), "alpha": ()}
    >>> names = [f"lora_unet_blocks_{n}_q" for n in range(3)]
    >>> specs = {f"{m}.{leaf}": TensorSpec("F32", shape) for m in names for leaf, shape in shapes.items()}
    >>> print(summarize_adapter(StateDictSpec(specs), None, lambda fqn: 2.0)[0])
    LoRA of 3 modules, in the names of kohya under lora_unet_, LoRA rank 4, alpha 2
    """
    formats = read_formats()
    modules: defaultdict[tuple[str, str], defaultdict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for fqn in header:
        if (cut := split_leaf(fqn, formats)) is not None:
            modules[_find_prefix(cut[0], formats)][cut[0]][cut[1]] = fqn
    parts = [_summarize_part(format, prefix, own, header, config, read) for (format, prefix), own in modules.items()]
    return tuple(sorted(parts, key=lambda part: -part.modules))


def _find_prefix(module: str, formats: Formats) -> tuple[str, str]:
    """Return the format and the prefix of a module's name; two empty texts if it has no known prefix."""
    return next(((each.format, each.text) for each in formats.prefixes if module.startswith(each.text)), ("", ""))


def _summarize_part(
    format: str,
    prefix: str,
    modules: Mapping[str, Mapping[str, str]],
    header: StateDictSpec,
    config: PeftConfig | None,
    read: Callable[[str], float | None],
) -> AdapterPart:
    kinds: Counter[str] = Counter()
    ranks: Counter[int | None] = Counter()
    alphas: Counter[float | None] = Counter()
    has_alphas = False
    config = _find_config(format, prefix, header, config)
    for module, leaves in modules.items():
        own = _sort_roles(leaves)
        kinds[_name_kind(leaves, own)] += 1
        if "up" in own and "down" in own:
            ranks[find_lora_rank(header[own["up"]], header[own["down"]])] += 1
        if "alpha" in own:
            alphas[read(own["alpha"])] += 1
            has_alphas = True
        elif config is not None:
            alphas[config.find_alpha(find_peft_start(prefix) + module[len(prefix) :])] += 1
    declared = read_formats().alphas.get(format, "none")
    alpha_in = "tensor" if has_alphas else "config" if alphas or declared == "config" else "none"
    return AdapterPart(format, prefix, len(modules), dict(kinds.most_common()), dict(ranks), dict(alphas), alpha_in)


def _find_config(format: str, prefix: str, header: StateDictSpec, beside: PeftConfig | None) -> PeftConfig | None:
    """Return the config that has the alphas of a part: the one beside the file, or that in diffusers' metadata."""
    if format == "diffusers" and prefix:
        with suppress(UsageError):  # an entry that cannot be read is refused where it is used
            return PeftConfig.find_in_metadata(header.metadata, prefix.removesuffix("."))
        return None
    return beside if format in ("", "peft") else None


def _sort_roles(leaves: Mapping[str, str]) -> dict[Role, str]:
    roles = read_formats().roles
    return {roles[leaf][1]: fqn for leaf, fqn in leaves.items() if leaf in roles}


def _name_kind(leaves: Mapping[str, str], own: Mapping[Role, str]) -> str:
    """Return what the adapter of a module is called."""
    opaque = read_formats().opaque
    if (named := next((opaque[leaf].name for leaf in leaves if leaf in opaque), None)) is not None:
        return named
    if "up" not in own and "down" not in own:
        return "differences" if "diff" in own or "diff_bias" in own else "other tensors"
    return "DoRA" if "magnitude" in own else "LoRA with `mid`" if "mid" in own else "LoRA"


def find_lora_rank(up: TensorSpec, down: TensorSpec) -> int | None:
    """Return the LoRA rank of two matrices: one that both have where it belongs; None if they do not agree.

    up is [OUT, r, ...] and down [r, IN, ...], or, of stacked experts, [E, OUT, r] and [E, r, IN].

    >>> find_lora_rank(TensorSpec("F32", (8, 4)), TensorSpec("F32", (4, 6)))
    4
    >>> find_lora_rank(TensorSpec("F32", (2, 8, 4)), TensorSpec("F32", (2, 4, 6)))
    4
    """
    one, other = up.shape, down.shape
    if min(len(one), len(other)) < 2:
        return None
    found = {one[1]} if one[1] == other[0] else set()
    if len(one) == len(other) == 3 and one[0] == other[0] and one[2] == other[1]:
        found.add(one[2])
    return found.pop() if len(found) == 1 else None


def _list_counts(counts: Mapping[Any, int]) -> str:
    """Return numbers in order, each with the number of its modules if there are several.

    >>> _list_counts({4: 3}), _list_counts({8.0: 1, 4.0: 3, None: 2})
    ('4', '4 (3 modules), 8 (1 module) and unknown (2 modules)')
    """
    ordered = sorted(counts, key=lambda each: (each is None, each or 0))
    texts = ["unknown" if each is None else f"{each:g}" for each in ordered]
    if len(texts) == 1:
        return texts[0]
    listed = [f"{text} ({count_noun(counts[each], 'module')})" for text, each in zip(texts, ordered, strict=True)]
    return join_words(listed, 8)
