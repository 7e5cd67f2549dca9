"""Read the names of an adapter file: which tensor of the model each of its tensors belongs to, and what it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from remapkit.companions.formats import Formats, Role, Style, flatten, read_formats
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.tensors.spec import StateDictSpec

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Module:
    """An adapted tensor of the model (`weight`, its key there) and the tensors that the file has for it, by role."""

    name: str
    weight: str
    tensors: Mapping[Role, str]
    opaque: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter file as names: its modules, tensors of the model that it has whole, and what is neither.

    `outside` are the tensors of other models in the file (a text encoder's, beside those of a UNet), by prefix;
    `unknown` are tensors whose module the model does not have.
    """

    header: StateDictSpec
    style: Style
    modules: tuple[Module, ...]
    whole: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def get_module(key: str) -> str:
    """Return the name of the module whose weight a key is: without `.weight`, or the key of a bare parameter.

    >>> get_module("blocks.0.q.weight"), get_module("experts.gate_up_proj")
    ('blocks.0.q', 'experts.gate_up_proj')
    """
    return key.removesuffix(WEIGHT)


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """The modules of a model by name, and by name with `_` for dots; `shared` are those that then have one name."""

    weights: Mapping[str, str]
    flat: Mapping[str, str]
    shared: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, keys: Iterable[str]) -> ModuleNames:
        """Return the modules of the keys of a model.

        >>> ModuleNames.of(["a.b.weight", "a_b.weight"]).shared
        {'a_b': ('a.b', 'a_b')}
        """
        weights = {get_module(key): key for key in keys}
        found: defaultdict[str, list[str]] = defaultdict(list)
        for module in weights:
            found[flatten(module)].append(module)
        shared = {name: tuple(modules) for name, modules in found.items() if len(modules) > 1}
        return cls(weights, {name: weights[modules[0]] for name, modules in found.items()}, shared)

    def find(self, name: str, *, is_flat: bool) -> str | None:
        """Return the key of the weight of a module; raises `UsageError` (RK721) if a flat name is that of several."""
        if not is_flat:
            return self.weights.get(name)
        if name in self.shared:
            title = (
                f"{name} is the name of several modules, written with `_` for dots: {join_words(self.shared[name])}"
            )
            raise UsageError(Diagnostic("RK721", title, help=("save the adapter with dots in the names of modules",)))
        return self.flat.get(name)


def split_leaf(fqn: str, formats: Formats) -> tuple[str, str] | None:
    """Return the module and the leaf of a tensor of an adapter; None if it has no known leaf.

    >>> split_leaf("lora_unet_blocks_0.lora_up.weight", read_formats())
    ('lora_unet_blocks_0', 'lora_up.weight')
    """
    at = len(fqn)
    found = None
    while (at := fqn.rfind(".", 0, at)) > 0:
        if fqn[at + 1 :] in formats.roles:
            found = fqn[:at], fqn[at + 1 :]
        elif fqn.count(".", at) > 3:
            break
    return found


def read_adapter(header: StateDictSpec, base: Iterable[str], prefix: str | None = None) -> Adapter:
    """Find the tensors of the model that an adapter is for.

    `base` are the keys of the model; with `prefix`, only modules with this prefix are looked for. Raises
    `UsageError`: RK720 if no tensor belongs to a module of the model, RK721 if a flat name is that of several
    modules, RK722 if modules have several prefixes.
    """
    formats, keys = read_formats(), tuple(base)
    names, known = ModuleNames.of(keys), frozenset(keys)
    tensors: defaultdict[tuple[str, str], dict[Role, str]] = defaultdict(dict)
    opaque: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    styles: Counter[tuple[str, str, str]] = Counter()
    whole: dict[str, str] = {}
    lost: list[str] = []
    written: dict[tuple[str, str], str] = {}
    for fqn in header:
        cut = split_leaf(fqn, formats)
        found = None if cut is None else _resolve(cut[0], names, formats, prefix)
        if cut is None or found is None:
            key = _find_whole(fqn, known, formats)
            if cut is None and key is not None:
                whole[fqn] = key
            else:
                lost.append(fqn)
            continue
        start, format, weight = found
        leaves, role = formats.roles[cut[1]]
        written[start, weight] = cut[0]
        if role == "opaque":
            opaque[start, weight].append(fqn)
            tensors.setdefault((start, weight), {})
        else:
            tensors[start, weight][role] = fqn
        if role in ("up", "down"):
            styles[start, format, leaves] += 1
        else:
            styles[start, format, ""] += 0
    if not tensors:
        raise UsageError(_explain_none(header, lost))
    style = _choose_style(styles, formats, any("alpha" in own for own in tensors.values()))
    modules = tuple(
        Module(written[place], place[1], own, tuple(opaque.get(place, ()))) for place, own in tensors.items()
    )
    outside: defaultdict[str, list[str]] = defaultdict(list)
    for fqn in lost:
        outside[next((each.text for each in formats.prefixes if fqn.startswith(each.text)), "")].append(fqn)
    unknown = [*outside.pop(style.prefix, []), *(outside.pop("", []) if style.prefix else [])]
    away = {prefix: tuple(fqns) for prefix, fqns in outside.items()}
    return Adapter(header, style, modules, whole, away, tuple(unknown))


def _resolve(module: str, names: ModuleNames, formats: Formats, only: str | None) -> tuple[str, str, str] | None:
    """Return the prefix, the format and the weight of a module as a file names it."""
    for prefix in formats.prefixes:
        if module.startswith(prefix.text) and only in (None, prefix.text):
            is_flat = prefix.format in formats.flat
            if (weight := names.find(module[len(prefix.text) :], is_flat=is_flat)) is not None:
                return prefix.text, prefix.format, weight
    weight = names.find(module, is_flat=False) if only in (None, "") else None
    return None if weight is None else ("", "", weight)


def _find_whole(fqn: str, known: frozenset[str], formats: Formats) -> str | None:
    """Return the key of the model that a tensor is, with a prefix or without."""
    for prefix in ("", *(each.text for each in formats.prefixes if each.format not in formats.flat)):
        if fqn.startswith(prefix) and fqn[len(prefix) :] in known:
            return fqn[len(prefix) :]
    return None


def _choose_style(styles: Counter[tuple[str, str, str]], formats: Formats, has_alphas: bool) -> Style:
    """Return the one way in which a file names its modules; raises `UsageError` (RK722) if there are several."""
    prefixes = {(prefix, format) for prefix, format, _ in styles}
    if len(prefixes) > 1:
        listed = join_words(sorted(repr(prefix) for prefix, _ in prefixes))
        title = f"the modules have several prefixes: {listed}"
        raise UsageError(Diagnostic("RK722", title, help=("choose one: --root PREFIX",)))
    ((prefix, format),) = prefixes
    leaves = next((leaves for (_, _, leaves), count in styles.most_common() if leaves and count), "")
    leaves = leaves or formats.own_leaves.get(format, "kohya")
    format = format or ("comfy" if leaves == "kohya" else "diffusers")
    alpha = "tensor" if has_alphas or format == "kohya" else formats.alphas[format]
    return Style(format, prefix, leaves, format in formats.flat, alpha)


def _explain_none(header: StateDictSpec, lost: Iterable[str]) -> Diagnostic:
    some = list(lost)
    title = f"none of {count_noun(len(some), 'tensor')} belongs to a module of the model"
    help = (
        "see which layout the adapter is for: remapkit identify FILE",
        "where the rules have no manifest of their source, name the model: --base MODEL",
    )
    return Diagnostic("RK720", title, notes=tuple(some[:3]), help=help, place=header.name)
