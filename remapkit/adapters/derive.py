"""Derive the rules of an adapter from the rules of the weights: a rule file of literal names, finite and provable.

The rules are planned on the model's own header; each move whose sources have adapters gives the adapter of its target
(`push`). What is written is an ordinary rule file, so proofs, plans, checks, reports and byte moving are those of
weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.adapters.factors import CannotFollow, OpText
from remapkit.adapters.names import BASE_LAYER, WEIGHT, Adapter, Module, get_module
from remapkit.adapters.orient import flip_sources, flip_spec, flip_target, is_flipped
from remapkit.adapters.push import Kind, Pushed, Side, Stored, push, start
from remapkit.companions.formats import Role, Style, flatten, read_formats
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.patterns.literals import literal_text
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.rulefile.yaml.emit import emit_flow, emit_scalar
from remapkit.tensors.spec import TensorSpec

BIAS = ".bias"
DORA_SCALE = "dora_scale"
"""The leaf of kohya's and ComfyUI's magnitudes, which have as many dimensions as the weight."""
NO_STACKS = (
    "PEFT has no matrices for a stack of weights (its adapters of such parameters have a form of their own); "
    "the other formats have"
)
UNKNOWN_ORDER = (
    "the weight is transposed, and PEFT's matrices depend on which of both layers stores [IN, OUT] (Conv1D), which "
    "only PEFT's files show; the other formats do not depend on it"
)
NO_PARAMETERS = "differences of biases that are not called `bias`"
_KINDS: Mapping[Role, Kind] = {"magnitude": "rows", "diff": "delta", "diff_bias": "delta", "up_bias": "delta"}
_LOOSE: tuple[Role, ...] = ("up", "down", "mid", "alpha", "magnitude")
"""The roles of a module that can only be renamed, which are renamed with it."""
_OTHER: Mapping[Role, Role] = {"up_bias": "diff_bias", "diff_bias": "up_bias"}
"""The bias of the layer of up matrices is a difference of the bias where alpha / r is 1."""


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor of the new adapter: its name, and how it is made of tensors of the file."""

    name: str
    side: Side
    files: tuple[str, ...]
    """The tensor of the file that each part is."""
    rule: str
    role: Role
    """What it is in the file; `up` and `down` are the two matrices of an update, which a transpose swaps."""


@dataclass(slots=True)
class Derived:
    """The tensors of the new adapter, those that are dropped, and what cannot follow."""

    written: list[Written] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    ranks: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    """The LoRA rank of each new module, and the weights whose adapters it is made of."""
    loose: dict[str, Module] = field(default_factory=dict)
    """The new modules that are renamed ones, whose adapter is no product of two matrices."""
    whole: list[str] = field(default_factory=list)
    """The tensors of the new model that the adapter has whole, by their key."""
    rules: dict[str, str] = field(default_factory=dict)
    """The rule that makes each new module."""
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """The renamed tensors of the model of which the adapter's has another shape: the model's, and its own."""
    transposed: set[str] = field(default_factory=set)
    """The new modules whose matrices are those of the transposed weight."""
    with_factor_one: set[str] = field(default_factory=set)
    """The weights whose alpha / r must be 1, because a bias becomes a difference of the bias, or the other way."""
    added: dict[str, float] = field(default_factory=dict)
    """Alphas that come from no tensor of the file."""


@dataclass(slots=True)
class Deriver:
    """Derives the tensors of an adapter; `style` is how the result is named.

    `transposed` are the weights of which the adapter has the matrices of the transposed ones.
    """

    plan: ResolvedPlan
    adapter: Adapter
    style: Style
    transposed: Collection[str] = ()
    found: Derived = field(default_factory=Derived)
    _refused: dict[tuple[str, str, str], dict[str, None]] = field(default_factory=dict)
    _moves: dict[str, Move] = field(default_factory=dict)
    _whole: list[tuple[Move, Pushed]] = field(default_factory=list)
    _matrices: set[str] = field(default_factory=set)

    def derive(self) -> Derived:
        """Follow every move; problems are collected."""
        stored = self._store()
        self._matrices = {get_module(weight) for weight in stored["lora", "up"]}
        loose = {module.weight: module for module in self.adapter.modules if module.is_loose}
        for move in self.plan.moves:
            self._moves.setdefault(move.rule.id, move)
            for (kind, role), own in stored.items():
                if any(fqn in own for fqn in move.sources):
                    self._follow(move, kind, role, own)
            for module in [loose[fqn] for fqn in move.sources if fqn in loose]:
                self._rename(move, module)
        for move, made in self._whole:  # named last: what PEFT calls a tensor depends on the matrices of its module
            self._write(move, "whole", made.first, stored["whole", "whole"])
        self._check_biases()
        self._find_dropped()
        self._check_names()
        self.found.problems += [self._explain(*what, list(names)) for what, names in self._refused.items()]
        return self.found

    def _store(self) -> dict[tuple[Kind, Role], dict[str, tuple[Stored, tuple[str, ...]]]]:
        """Return what the file has for each tensor of the model, by kind and role."""
        header = self.adapter.header
        stored: defaultdict[tuple[Kind, Role], dict[str, tuple[Stored, tuple[str, ...]]]] = defaultdict(dict)
        stored["lora", "up"] = {}  # the first: whether the matrices of a module are flipped decides on its magnitude
        for module in self.adapter.modules:
            own = module.tensors
            if ("up" in own) != ("down" in own):
                lacking = "down" if "up" in own else "up"
                self._refuse("RK735", "", f"the `{lacking}` matrix is missing", module.name)
            elif "up" in own and not module.is_loose:
                names = own["up"], own["down"]
                stored["lora", "up"][module.weight] = Stored("lora", header[names[0]], header[names[1]]), names
            for role, kind in _KINDS.items():
                if role in own and not (role == "magnitude" and module.is_loose):
                    made = store_magnitude(module, header) if role == "magnitude" else Stored(kind, header[own[role]])
                    stored[kind, role][find_key(module, role)] = made, (own[role],)
        for fqn, key in self.adapter.whole.items():
            stored["whole", "whole"][key] = Stored("whole", header[fqn]), (fqn,)
        return stored

    # -------------------------------------------------------------------------------------------- following

    def _follow(self, move: Move, kind: Kind, role: Role, own: Mapping[str, tuple[Stored, tuple[str, ...]]]) -> None:
        there = {fqn: own[fqn][0] for fqn in move.sources if fqn in own}
        specs = {fqn: self.plan.source[fqn] for fqn in move.sources}
        for fqn, each in there.items():
            if (spec := self._find_spec(move, fqn, each)) is None:
                return
            specs[fqn] = spec
        try:
            made = self._push(move, specs, there)
        except CannotFollow as reason:
            self._refuse("RK723", move.rule.id, str(reason), move.target)
            return
        if made is None:
            return
        if kind == "whole":
            self._whole.append((move, made))
            return
        self._write(move, role, made.first, own)
        if made.second is not None:
            self._write(move, "down", made.second, own)
            self.found.ranks[get_module(move.target)] = made.rank, made.sources
            self.found.rules[get_module(move.target)] = move.rule.id

    def _push(self, move: Move, specs: Mapping[str, TensorSpec], stored: Mapping[str, Stored]) -> Pushed | None:
        """Push the adapters of a move; PEFT's matrices are those of the transposed weight where it is [IN, OUT]."""
        module, kinds = get_module(move.target), {each.kind for each in stored.values()}
        is_tall = self.style.leaf("magnitude") == DORA_SCALE
        if not kinds & {"lora", "rows"}:
            return push(move, specs, stored, is_tall=is_tall)
        away = [fqn for fqn in move.sources if fqn in self.transposed and fqn not in stored]
        move = flip_sources(move, self.transposed)
        specs = {**specs, **{fqn: flip_spec(specs[fqn]) for fqn in away}}
        if module not in self.found.transposed:
            made = push(move, specs, stored, is_tall=is_tall)
            if made is not None and self.style.format == "peft" and made.is_stack:
                raise CannotFollow(NO_STACKS)
            is_matrix = self.style.format == "peft" and len(move.spec.shape) == 2
            if made is None or not is_matrix or not is_flipped(made):
                return made
            if self.adapter.style.format != "peft":
                raise CannotFollow(UNKNOWN_ORDER)
        made = push(flip_target(move), specs, stored, is_tall=is_tall)
        if made is not None:
            self.found.transposed.add(module)
        return made

    def _find_spec(self, move: Move, fqn: str, stored: Stored) -> TensorSpec | None:
        """Return the header of the weight that an adapter is for; None, with a problem, if it does not fit.

        That is the model's, or, where the weight is only renamed, what the adapter's shapes say: such an adapter is
        for a variant of the model.
        """
        spec = self.plan.source[fqn]
        if fqn in self.transposed and stored.kind in ("lora", "rows"):
            spec = flip_spec(spec)
        try:
            start(stored, spec)
            return spec
        except CannotFollow as misfit:
            own = imply_shape(stored)
            if own is None or move.ops or len(own) != len(spec.shape):
                self._refuse("RK735", "", str(misfit), fqn)
                return None
            self.found.resized[fqn] = spec.shape, own
            return TensorSpec(spec.dtype, own)

    def _write(self, move: Move, role: Role, side: Side, own: Mapping[str, tuple[Stored, tuple[str, ...]]]) -> None:
        name = self._name(move, role, [part.source for part in side.parts])
        if name is not None:
            files = tuple(own[part.source][1][part.place] for part in side.parts)
            self.found.written.append(Written(name, side, files, move.rule.id, role))

    def _name(self, move: Move, role: Role, sources: Sequence[str]) -> str | None:
        """Return the name of a tensor of the new adapter; None, with a problem, if the format has none."""
        target, leaf = move.target, self.style.leaf(role)
        if role == "whole":
            return self._name_whole(move, leaf)
        if leaf is None and role in _OTHER and self._matrices.issuperset(fqn.removesuffix(BIAS) for fqn in sources):
            leaf = self.style.leaf(_OTHER[role])
            self.found.with_factor_one |= {fqn.removesuffix(BIAS) + WEIGHT for fqn in sources}
        if leaf is None:
            self._refuse("RK723", move.rule.id, f"{self.style.format} files have no `{role}`", target)
            return None
        if role in _OTHER and not target.endswith(BIAS):
            return self._name_parameter(move)
        return self.style.name(target.removesuffix(BIAS) if role in _OTHER else get_module(target), leaf)

    def _name_parameter(self, move: Move) -> str | None:
        """Return the name of the difference of a bias that becomes another tensor: ComfyUI adds it to any."""
        target, leaf = move.target, self.style.leaf("diff")
        if leaf is not None and (self.style.format == "comfy" or target.endswith(WEIGHT)):
            return self.style.name(get_module(target), leaf)
        self._refuse("RK723", move.rule.id, f"{self.style.format} files have no {NO_PARAMETERS}", target)
        return None

    def _name_whole(self, move: Move, leaf: str | None) -> str | None:
        target = move.target
        self.found.whole.append(target)
        if self.style.is_flat and not target.endswith(WEIGHT):
            what = "whole tensors besides weights"
            self._refuse("RK723", move.rule.id, f"{self.style.format} files have no {what}", target)
            return None
        if leaf is not None:
            return self.style.name(get_module(target), leaf)
        module, _, last = target.rpartition(".")
        is_wrapped = self.style.format == "peft" and module in self.found.ranks
        return self.style.prefix + (f"{module}{BASE_LAYER}{last}" if is_wrapped else target)

    def _rename(self, move: Move, module: Module) -> None:
        """Rename what is no product of two matrices with its module, where nothing happens to the weight."""
        known = read_formats().opaque
        what = join_words(sorted({known[leaf].name for leaf in module.opaque})) or "a LoRA with a `mid` matrix"
        if move.ops or len(move.sources) > 1:
            self._refuse("RK723", move.rule.id, f"{what} follows renames, and this changes the weight", move.target)
            return
        leaves: list[tuple[Role, str, str | None]] = [
            (role, module.tensors[role], self.style.leaf(role)) for role in _LOOSE if role in module.tensors
        ]
        for text, fqn in module.opaque.items():
            leaves.append(("opaque", fqn, text if self.style.format in known[text].formats else None))
        target = get_module(move.target)
        self.found.loose[target] = module
        for role, fqn, leaf in leaves:
            if leaf is None:
                lacking = f"`{role}` for it" if role != "opaque" else "such adapter"
                self._refuse(
                    "RK723", move.rule.id, f"it is {what}, and {self.style.format} files have no {lacking}", target
                )
                continue
            side = Side((), 0, (), self.adapter.header[fqn].shape)
            self.found.written.append(Written(self.style.name(target, leaf), side, (fqn,), move.rule.id, role))

    # -------------------------------------------------------------------------------------------- what is left

    def _check_biases(self) -> None:
        """Refuse biases of up in modules of other weights than their own: alpha / r of a module multiplies its bias.

        PEFT has such a bias only beside the matrices.
        """
        leaf = self.style.leaf("up_bias")
        owners = {module: {get_module(fqn) for fqn in sources} for module, (_, sources) in self.found.ranks.items()}
        allowed = {self.style.name(module, leaf): own for module, own in owners.items()} if leaf is not None else {}
        for each in self.found.written:
            if each.role not in _OTHER or leaf is None or not each.name.endswith(f".{leaf}"):
                continue
            own = {part.source.removesuffix(BIAS) for part in each.side.parts}
            if not own <= allowed.get(each.name, set()):
                self._refuse(
                    "RK723",
                    each.rule,
                    "the bias of the layer of up goes to another module than the matrices",
                    each.name,
                )

    def _find_dropped(self) -> None:
        """Find the tensors of which nothing is made: those of weights that the rules drop, and of no tensor at all.

        Alphas go where their matrices go.
        """
        used = {fqn for each in self.found.written for fqn in each.files}
        taken = {fqn for _, sources in self.found.ranks.values() for fqn in sources}
        gone: set[str] = set()
        lost: list[str] = []
        places = dict(self.adapter.whole)
        for module in self.adapter.modules:
            places |= {fqn: find_key(module, role) for role, fqn in module.tensors.items()}
            places |= dict.fromkeys(module.opaque.values(), module.weight)
            if "alpha" in module.tensors and module.weight in taken:
                used.add(module.tensors["alpha"])
        for fqn, key in places.items():
            if fqn not in used and key in self.plan.source:
                gone.add(fqn)
            elif fqn not in used:
                lost.append(fqn)
        self.found.dropped = [fqn for fqn in self.adapter.header if fqn in gone]
        if lost:
            title = f"the model has no bias for {count_noun(len(lost), 'tensor')}"
            help = ("check that the adapter is for this model",)
            notes, place = (list_names(lost),), self.adapter.header.name
            self.found.problems.append(Diagnostic("RK728", title, notes=notes, help=help, place=place))

    def _refuse(self, code: str, rule: str, reason: str, name: str) -> None:
        self._refused.setdefault((code, rule, reason), {})[name] = None

    def _explain(self, code: str, rule: str, reason: str, names: list[str]) -> Diagnostic:
        place, notes = self.adapter.header.name, (list_names(names),)
        if code == "RK735":
            title = f"the adapter of {count_noun(len(names), 'tensor')} does not fit: {reason}"
            check = "check that the adapter is for this model and this size of it, and that the file is whole"
            return Diagnostic(code, title, notes=notes, help=(check,), place=place)
        move = self._moves.get(rule)
        labels = (Label(move.rule.span),) if move is not None and move.rule.span is not None else ()
        title = f"{rule}: the adapter of {count_noun(len(names), 'tensor')} cannot follow: {reason}"
        merge = "merge the adapter into the weights of its model, and apply the rules to these"
        formats = "comfy" if self.style.is_flat or NO_PARAMETERS in reason else "kohya or comfy"
        other = f"choose another format: --adapter-format {formats}"
        help = (other, merge) if " files have no " in reason else (merge,)
        return Diagnostic(code, title, labels, notes=notes, help=help, place=place)

    def _check_names(self) -> None:
        """Refuse names that are one name with `_` for dots, and tensors that would have one name."""
        written, target = Counter(each.name for each in self.found.written), self.plan.target
        flat: defaultdict[str, set[str]] = defaultdict(set)
        for move in self.plan.moves if self.style.is_flat else ():
            flat[flatten(get_module(move.target))].add(get_module(move.target))
        there = self.found.ranks.keys() | self.found.loose.keys()
        for modules in flat.values():
            weights = {each for each in modules if each + WEIGHT in target}
            clash = weights or modules  # a bare parameter gives way, as it does where flat names are read
            if (len(clash) > 1 and clash & there) or (modules - clash) & there:
                listed = join_words(sorted(modules))
                self._refuse_names(f"{self.style.format} files write `_` for dots, and {listed} would have one name")
        if (twice := [name for name, count in written.items() if count > 1]) and not self.found.problems:
            title = f"{count_noun(len(twice), 'name')} would be given to several tensors of the adapter"
            self._refuse_names(title, list_names(twice))

    def _refuse_names(self, title: str, *notes: str) -> None:
        help = ("choose another format: --adapter-format diffusers",)
        self.found.problems.append(Diagnostic("RK724", title, notes=notes, help=help, place=self.adapter.header.name))


def find_key(module: Module, role: Role) -> str:
    """Return the tensor of the model that a tensor of a module changes: its bias, or its weight."""
    return get_module(module.weight) + BIAS if role in _OTHER else module.weight


def store_magnitude(module: Module, header: Mapping[str, TensorSpec]) -> Stored:
    """Return what the file has as the magnitude of a module."""
    fqn = module.tensors["magnitude"]
    return Stored("rows", header[fqn], is_tall=fqn.endswith(DORA_SCALE))


def imply_shape(stored: Stored) -> tuple[int, ...] | None:
    """Return the shape of the weight that an adapter is for, by its own shapes; None if these do not fit each other.

    >>> imply_shape(Stored("lora", TensorSpec("F32", (3072, 4)), TensorSpec("F32", (4, 128))))
    (3072, 128)
    """
    up = stored.first.shape
    if stored.second is None:
        return up if stored.kind == "whole" else None
    down = stored.second.shape
    if len(up) < 2 or len(down) < 2 or up[1] != down[0] or set(up[2:]) - {1}:
        return None
    return (up[0], *down[1:])


# ------------------------------------------------------------------------------------------------ the rule file


def write_rules(name: str, summary: str, found: Derived, header: Mapping[str, TensorSpec]) -> str:
    """Return the text of a rule file that makes these tensors of an adapter with this header.

    Tensors that are made of the same parts are in one rule; it is split where they are its slices in order.
    """
    groups: defaultdict[object, list[Written]] = defaultdict(list)
    for each in found.written:
        parts = tuple((fqn, emit_flow(list(ops))) for fqn, ops in zip(each.files, _list_ops(each), strict=True))
        groups[parts, each.side.dim, each.side.merged].append(each)
    ids: Counter[str] = Counter()
    lines = ["remapkit: 1", f"name: {emit_scalar(name)}", f"summary: {emit_scalar(summary)}"]
    rules: list[str] = []
    keep: list[str] = []
    for group in groups.values():
        first = group[0]
        if len(group) == 1 and first.files == (first.name,) and not first.side.ops and not any(_list_ops(first)):
            keep.append(first.name)
            continue
        ids[first.rule] += 1
        rules.append("  - " + emit_flow({"id": f"{first.rule}.{ids[first.rule]}", **_write_group(group, header)}))
    if rules:
        lines += ["rules:", *rules]
    for section, names in (("keep", keep), ("drop", found.dropped)):
        if names:
            lines += [f"{section}:", *(f"  - {emit_flow(literal_text(fqn))}" for fqn in names)]
    if found.added:
        lines.append("add:")
    for fqn, value in found.added.items():
        fill = {"to": literal_text(fqn), "fill": value, "shape": [], "dtype": "F32"}
        lines.append("  - " + emit_flow(fill))
    return "\n".join(lines) + "\n"


def _list_ops(each: Written) -> Sequence[Sequence[OpText]]:
    return [part.ops for part in each.side.parts] or [()]


def _write_group(group: Sequence[Written], header: Mapping[str, TensorSpec]) -> dict[str, object]:
    """Return the fields of the rule that makes some tensors of the same parts."""
    first = group[0]
    sources = [_with_ops("path", fqn, ops) for fqn, ops in zip(first.files, _list_ops(first), strict=True)]
    fields: dict[str, object] = {}
    if len(sources) == 1:
        fields["path"] = literal_text(first.files[0])
    elif first.side.merged:
        fields["merge"] = sources
    else:
        fields["concat"] = {"dim": first.side.dim, "from": sources}
    common = _find_common([each.side.ops for each in group])
    if common:
        fields["ops"] = list(common)
    rest = [each.side.ops[len(common) :] for each in group]
    if len(group) == 1:
        return {**fields, "to": literal_text(first.name)}
    keeps_shape = len(sources) == 1 and all(isinstance(op, Mapping) and "scale" in op for op in common)
    if keeps_shape and (sizes := _find_split(rest, header[first.files[0]].shape)) is not None:
        dim, order, lengths = sizes
        into = [_with_ops("to", group[at].name, rest[at][1:]) for at in order]
        return {**fields, "split": {"dim": dim, "sizes": lengths, "into": into}}
    return {**fields, "copy": [_with_ops("to", each.name, ops) for each, ops in zip(group, rest, strict=True)]}


def _with_ops(field: str, fqn: str, ops: Sequence[OpText]) -> object:
    return {field: literal_text(fqn), "ops": list(ops)} if ops else literal_text(fqn)


def _find_common(all_ops: Sequence[tuple[OpText, ...]]) -> tuple[OpText, ...]:
    """Return the operations that all start with."""
    shortest = min(all_ops, key=len)
    for at, op in enumerate(shortest):
        if any(ops[at] != op for ops in all_ops):
            return shortest[:at]
    return shortest


def _find_split(rest: Sequence[tuple[OpText, ...]], shape: Sequence[int]) -> tuple[int, list[int], list[int]] | None:
    """Return the dimension, the order and the sizes, if each of these starts with a slice, and all make the whole."""
    slices = []
    for ops in rest:
        first = ops[0] if ops else None
        if not isinstance(first, Mapping) or not isinstance(own := first.get("slice"), Mapping):
            return None
        slices.append((own["dim"], own["start"], own["stop"]))
    if len({dim for dim, _, _ in slices}) > 1:
        return None
    order = sorted(range(len(slices)), key=lambda at: slices[at][1])
    at = 0
    for number in order:
        if slices[number][1] != at:
            return None
        at = slices[number][2]
    dim = slices[0][0]
    return None if at != shape[dim] else (dim, order, [slices[number][2] - slices[number][1] for number in order])
