"""Read the names of an adapter file: which tensor of the model each of its tensors belongs to, and what it is.

Every tensor of the file is in exactly one place of an `Adapter`: a role of a module, opaque, whole, outside or
unknown. Where a name can be read in two ways, or two tensors are for one thing, the file is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from remapkit.adapters.alphas import WRAPPED
from remapkit.companions.formats import Formats, Prefix, Role, Style, flatten, read_formats
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.tensors.spec import StateDictSpec

WEIGHT = ".weight"
BASE_LAYER = ".base_layer."
"""The segment that PEFT puts before the own tensors of a layer that it wraps: `m.base_layer.bias`."""
_BARE = Prefix("", "", ())
_MAX_SEGMENTS = 3
"""The most segments of a leaf."""


@dataclass(frozen=True, slots=True)
class Module:
    """An adapted tensor of the model (`weight`, its key there) and the tensors that the file has for it, by role.

    `opaque` are tensors of adapters that are no product of two matrices, by their leaf.
    """

    name: str
    weight: str
    tensors: Mapping[Role, str]
    opaque: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_loose(self) -> bool:
        """Return whether the adapter is no product of two matrices, so that it can only be renamed."""
        return bool(self.opaque) or "mid" in self.tensors

    @property
    def fqns(self) -> tuple[str, ...]:
        """Return all tensors that the file has for it."""
        return (*self.tensors.values(), *self.opaque.values())


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
        """Return the modules of the keys of a model; a bare parameter is one where no weight has its name.

        >>> ModuleNames.of(["a.b.weight", "a_b.weight", "a.b_bias.weight", "a.b.bias"]).shared
        {'a_b': ('a.b', 'a_b')}
        """
        weights: dict[str, str] = {}
        flat: dict[str, str] = {}
        shared: dict[str, tuple[str, ...]] = {}
        for is_bare in (False, True):
            found: defaultdict[str, list[str]] = defaultdict(list)
            for key in keys:
                if key.endswith(WEIGHT) != is_bare and weights.setdefault(get_module(key), key) == key:
                    found[flatten(get_module(key))].append(get_module(key))
            for name in found.keys() - flat.keys():
                flat[name] = weights[found[name][0]]
                if len(found[name]) > 1:
                    shared[name] = tuple(found[name])
        return cls(weights, flat, shared)


class Leaf(NamedTuple):
    """The end of a tensor's name: the module before it, the spelling that has it (`peft`, `kohya`), and its role."""

    module: str
    text: str
    leaves: str
    role: Role


def split_leaf(fqn: str, formats: Formats) -> Leaf | None:
    """Return the module and the leaf of a tensor of an adapter; None if it has no known leaf.

    >>> split_leaf("lora_unet_blocks_0.lora_up.weight", read_formats())
    Leaf(module='lora_unet_blocks_0', text='lora_up.weight', leaves='kohya', role='up')
    """
    segments = fqn.rsplit(".", _MAX_SEGMENTS)
    for at in range(1, len(segments)):
        if (leaf := ".".join(segments[at:])) in formats.roles and fqn != f".{leaf}":
            return Leaf(fqn[: -len(leaf) - 1], leaf, *formats.roles[leaf])
    for leaf, leaves in formats.processors.leaves.items():
        if fqn.endswith(leaf) and formats.processors.segment in fqn:
            return Leaf(fqn.removesuffix(leaf), leaf, leaves, "up" if "up" in leaf else "down")
    return None


class _Place(NamedTuple):
    """Where a module of the file is: its prefix, the format that has it, and the key of its weight in the model."""

    prefix: str
    format: str
    weight: str


def read_adapter(header: StateDictSpec, base: Iterable[str], prefix: str | None = None) -> Adapter:
    """Find the tensors of the model that an adapter is for.

    `base` are the keys of the model; with `prefix`, only modules with this prefix are looked for. Raises
    `UsageError`: RK720 if no tensor belongs to a module of the model, RK721 if a flat name is that of several
    modules, RK722 if modules have several prefixes, RK736 if a tensor can be read in two ways.
    """
    return _Names(header, base, prefix).read()


class _Names:
    """Reads the names of one file."""

    def __init__(self, header: StateDictSpec, base: Iterable[str], prefix: str | None) -> None:
        self.header, self.formats, self.known = header, read_formats(), frozenset(base)
        self.names = ModuleNames.of(sorted(self.known))
        self.only = prefix
        self.prefixes = _choose_prefixes(self.formats, prefix)
        self.found: defaultdict[_Place, dict[str, list[Leaf]]] = defaultdict(dict)
        self.problems: list[Diagnostic] = []
        self._places: dict[tuple[str, str], _Place | None] = {}

    def read(self) -> Adapter:
        """Return where every tensor belongs; raises all problems with names at once."""
        leaves = {fqn: leaf for fqn in self.header if (leaf := split_leaf(fqn, self.formats)) is not None}
        places = {fqn: place for fqn, leaf in leaves.items() if (place := self._find_place(leaf)) is not None}
        self._raise()
        if not places:
            raise UsageError(self._explain_none(leaves))
        start, format = self._find_prefix(places.values())
        keys = self._find_whole(start)
        adapted = {place for fqn, place in places.items() if fqn not in keys}
        parts = {fqn: (place, leaves[fqn]) for fqn, place in places.items() if place in adapted}
        for fqn in keys.keys() & parts.keys():
            title = f"{fqn} may be the {leaves[fqn].role} of {leaves[fqn].module}, and a tensor of the model itself"
            self._refuse(title, (), "rename one of them in the file")
        whole = {fqn: key for fqn, key in keys.items() if fqn not in parts}
        whole |= {fqn: place.weight for fqn, (place, leaf) in parts.items() if leaf.role == "whole"}
        modules = self._gather({fqn: part for fqn, part in parts.items() if fqn not in whole}, whole)
        self._raise()
        if not parts:
            raise UsageError(self._explain_none(leaves))
        style = self._choose_style(start, format, [leaf for _, leaf in parts.values()])
        lost = [fqn for fqn in self.header if fqn not in parts and fqn not in whole]
        return Adapter(self.header, style, modules, whole, *self._sort_lost(lost, start))

    # -------------------------------------------------------------------------------------------- modules

    def _find_place(self, leaf: Leaf) -> _Place | None:
        spelled = leaf.module, leaf.text if leaf.text in self.formats.processors.leaves else ""
        if spelled not in self._places:
            self._places[spelled] = self._resolve(*spelled)
        return self._places[spelled]

    def _resolve(self, module: str, processor: str) -> _Place | None:
        found: dict[str, _Place] = {}
        for prefix in self.prefixes:
            if not module.startswith(prefix.text):
                continue
            is_flat = prefix.format in self.formats.flat
            for name in self._list_spellings(module[len(prefix.text) :], processor):
                weight = (self.names.flat if is_flat else self.names.weights).get(name)
                if weight is not None:
                    found.setdefault(weight, _Place(prefix.text, prefix.format, weight))
                if weight is not None and is_flat and name in self.names.shared:
                    self._explain_shared(module, self.names.shared[name])
        if len(found) > 1:
            self._refuse(f"{module} may be {join_words(map(get_module, found), conjunction='or')}", (), ROOT_HELP)
        return next(iter(found.values()), None)

    def _list_spellings(self, name: str, processor: str) -> Iterator[str]:
        if not processor:
            yield name
            return
        own = self.formats.processors
        before, _, layer = name.rpartition(own.segment)
        for each in own.layers.get(layer, (layer,)):
            yield f"{before}.{each}"

    def _gather(self, parts: Mapping[str, tuple[_Place, Leaf]], whole: Mapping[str, str]) -> tuple[Module, ...]:
        """Return the modules with their tensors; two tensors for one thing are a problem."""
        roles: defaultdict[_Place, dict[tuple[Role, str], list[str]]] = defaultdict(dict)
        called: dict[_Place, str] = {}
        for fqn, (place, leaf) in parts.items():
            called.setdefault(place, leaf.module)
            roles[place].setdefault((leaf.role, leaf.text if leaf.role == "opaque" else ""), []).append(fqn)
        copies: defaultdict[str, list[str]] = defaultdict(list)
        for fqn, key in whole.items():
            copies[f"the tensor {key} of the model"].append(fqn)
        for place, own in roles.items():
            for (role, text), fqns in own.items():
                copies[f"the {text or role} of {get_module(place.weight)}"] += fqns
        for what, fqns in copies.items():
            if len(fqns) > 1:
                title = f"{count_noun(len(fqns), 'tensor')} are {what}"
                self._refuse(title, fqns, "remove all but one of them from the file")
        return tuple(
            Module(
                called[place],
                place.weight,
                {role: fqns[0] for (role, _), fqns in own.items() if role != "opaque"},
                {text: fqns[0] for (role, text), fqns in own.items() if role == "opaque"},
            )
            for place, own in roles.items()
        )

    # -------------------------------------------------------------------------------------------- prefixes

    def _find_prefix(self, places: Iterable[_Place]) -> tuple[str, str]:
        """Return the prefix of all modules and its format; raises `UsageError` (RK722) if there are several."""
        modules = Counter((place.prefix, place.format) for place in dict.fromkeys(places))
        if len(modules) > 1:
            title = f"the modules have several prefixes: {join_words(repr(prefix) for prefix, _ in modules)}"
            notes = tuple(f"{prefix!r}: {count_noun(count, 'module')}" for (prefix, _), count in modules.items())
            commands = join_words((f"--root {prefix[:-1] or repr('')}" for prefix, _ in modules), conjunction="or")
            raise UsageError(
                Diagnostic("RK722", title, notes=notes, help=(f"choose one: {commands}",), place=self.header.name)
            )
        ((place, _),) = modules.items()
        return place

    def _find_whole(self, start: str) -> dict[str, str]:
        """Return the tensors that are named like one of the model: bare, or behind the prefix of the modules."""
        found: dict[str, str] = {}
        starts = ("",) if start.endswith("_") else (start, "")
        for fqn in self.header:
            for each in starts:
                key = fqn.removeprefix(each)
                for name in (key, key.replace(BASE_LAYER, ".")):
                    if fqn.startswith(each) and name in self.known:
                        found.setdefault(fqn, name)
        return found

    def _sort_lost(self, lost: Iterable[str], start: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        """Return the tensors of other models by their prefix, and those that nothing is known of."""
        firsts = {key.partition(".")[0] for key in self.known} if not start else set()
        outside: defaultdict[str, list[str]] = defaultdict(list)
        unknown: list[str] = []
        for fqn in lost:
            prefix = next((each.text for each in self.formats.prefixes if fqn.startswith(each.text)), None)
            is_own = (start and fqn.startswith(start)) or fqn.partition(".")[0] in firsts
            if prefix is None and start and self.only is not None:  # chosen among those that the file has
                outside[""].append(fqn)
            elif prefix is None or is_own:
                unknown.append(fqn)
            else:
                outside[prefix].append(fqn)
        return {prefix: tuple(fqns) for prefix, fqns in outside.items()}, tuple(unknown)

    def _choose_style(self, prefix: str, format: str, leaves: Iterable[Leaf]) -> Style:
        """Return how the file names things: where spellings are mixed, as most of its matrices are named."""
        own = list(leaves)
        spelled = Counter(leaf.leaves for leaf in own if leaf.role in ("up", "down")).most_common(1)
        chosen = spelled[0][0] if spelled else self.formats.own_leaves.get(format, "kohya")
        format = format or ("comfy" if chosen == "kohya" else "diffusers")
        has_alphas = any(leaf.role == "alpha" for leaf in own)
        alpha = "tensor" if has_alphas or format == "kohya" else self.formats.alphas[format]
        return Style(format, prefix, chosen, format in self.formats.flat, alpha)

    # -------------------------------------------------------------------------------------------- problems

    def _refuse(self, title: str, fqns: Iterable[str], help: str) -> None:
        notes = tuple(filter(None, (list_names(tuple(fqns)),)))
        self.problems.append(Diagnostic("RK736", title, notes=notes, help=(help,), place=self.header.name))

    def _explain_shared(self, name: str, modules: Iterable[str]) -> None:
        title = f"{name} is the name of several modules, written with `_` for dots: {join_words(modules)}"
        help = ("save the adapter with dots in the names of modules",)
        self.problems.append(Diagnostic("RK721", title, help=help, place=self.header.name))

    def _explain_none(self, leaves: Mapping[str, Leaf]) -> Diagnostic:
        some = tuple(leaves) or tuple(self.header)
        title = f"none of {count_noun(len(self.header), 'tensor')} belongs to a module of the model"
        help = [
            "see which layout the adapter is for: remapkit identify FILE",
            "where the rules have no manifest of their source, name the model: --base MODEL",
        ]
        if self.only is not None:
            title = f"no tensor with the prefix {self.only!r} belongs to a module of the model"
            starts = sorted(
                {each.text for each in self.formats.prefixes for fqn in some if fqn.startswith(each.text)}
            )
            if starts:
                help.insert(0, f"prefixes in the file: {join_words(starts)}")
        return Diagnostic("RK720", title, notes=(list_names(some, 3),), help=tuple(help), place=self.header.name)

    def _raise(self) -> None:
        if self.problems:
            raise UsageError(self.problems)


ROOT_HELP = "choose a prefix: --root PREFIX"


def _choose_prefixes(formats: Formats, only: str | None) -> tuple[Prefix, ...]:
    """Return the prefixes that modules may have; one that a user names may lack its last `.` or `_`."""
    if only is None:
        return (*formats.prefixes, _BARE)
    known = tuple(each for each in formats.prefixes if only in (each.text, each.text[:-1]))
    text = only if not only or only[-1] in "._" else f"{only}."
    format = "kohya" if text.endswith("_") else "peft" if text.startswith(WRAPPED) else ""
    return known or (Prefix(text, format, ()),)
