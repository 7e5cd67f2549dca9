"""Push the update of a weight through a move: from the adapters of its sources to that of its target.

Whatever a move does is a sum over its sources: each source's update is followed through the operations of its branch,
put where its part of the result is, and added. So LoRA ranks add up where weights are concatenated, `down` matrices
are stacked, `up` matrices stand on the diagonal, and a part without an adapter is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from remapkit.adapters.factors import RANK, CannotFollow, Factors, Matrix, OpText
from remapkit.diagnostics.wording import join_words
from remapkit.ops.base import infer_ops
from remapkit.ops.join import FillOp, Join, Nested, infer_join
from remapkit.plans.moves import Move
from remapkit.tensors.spec import TensorSpec

Shape = tuple[int, ...]
Kind = Literal["lora", "rows", "whole", "delta"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What an adapter has for one tensor of the model.

    `lora`: `first` is up, `second` is down. `rows`: `first` is a number for each row (DoRA's magnitude). `whole`: the
    tensor itself. `delta`: what is added to it; a tensor without one gets zeros.
    """

    kind: Kind
    first: TensorSpec
    second: TensorSpec | None = None
    is_tall: bool = field(default=False, kw_only=True)
    """A magnitude of [1, n, ...] is one of columns: ComfyUI takes `dora_scale` so, and PEFT has none of these."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stored tensor (`place`: 0 the first, 1 the second) of the adapter of `source`, and operations on it."""

    source: str
    place: int
    ops: tuple[OpText, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """How one matrix of the result is made: parts joined along `dim`, or of which one is taken; then `ops`."""

    parts: tuple[Part, ...]
    dim: int
    ops: tuple[OpText, ...]
    shape: tuple[int, ...]
    merged: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """The adapter of a target: its matrices, of which a whole tensor and a number for each row have only `first`.

    `rank` is the LoRA rank, 0 if there are no matrices.
    """

    kind: Kind
    first: Side
    second: Side | None = None
    rank: int = 0
    is_stack: bool = False
    """Whether both matrices have the index of a stack in front."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the tensors of the model from whose adapters it is made."""
        return tuple(dict.fromkeys(part.source for part in self.first.parts))


def push(
    move: Move, header: Mapping[str, TensorSpec], stored: Mapping[str, Stored], *, is_tall: bool = False
) -> Pushed | None:
    """Return the adapter of the target of a move; None if no source has one.

    `header` is that of the model's weights, `stored` has what the adapter file holds for each; `is_tall` gives a
    magnitude the shape [OUT, 1, ...], not PEFT's [OUT] or [1, OUT, 1, ...]. Raises `CannotFollow`.

    >>> from remapkit.ops.join import SplitPart
    >>> from remapkit.plans.moves import RuleRef
    >>> f32 = lambda *shape: TensorSpec("F32", shape)
    >>> move = Move("k", ("qkv",), (SplitPart(0, 1, 3),), RuleRef("r"), f32(4, 8))
    >>> made = push(move, {"qkv": f32(12, 8)}, {"qkv": Stored("lora", f32(12, 2), f32(2, 8))})
    >>> made.first.ops, made.second.ops
    (({'slice': {'dim': 0, 'start': 4, 'stop': 8}},), ())
    """
    kinds = {stored[fqn].kind for fqn in move.sources if fqn in stored}
    if not kinds or (move.ops and isinstance(move.ops[0], FillOp)):
        return None
    if len(kinds) > 1:
        raise CannotFollow(f"its sources have different kinds of adapters: {join_words(sorted(kinds))}")
    (kind,) = kinds
    own = [stored[fqn] for fqn in dict.fromkeys(move.sources) if fqn in stored]
    firsts, seconds = ({spec.dtype for each in own if (spec := getattr(each, name))} for name in ("first", "second"))
    if len(firsts) > 1 or len(seconds) > 1:
        known = join_words(sorted(firsts if len(firsts) > 1 else seconds))
        raise CannotFollow(f"the adapters of its parts are {known}: convert them to one dtype before")
    ops, joined = move.ops, None
    if ops and isinstance(ops[0], Nested):
        raise CannotFollow("it joins what was joined before: derive the adapter for each part of the route")
    if ops and isinstance(ops[0], Join):
        joined = _join(ops[0], move, header, stored, kind)
        if joined is None:
            return None
        factors, spec, ops = joined.factors, infer_join(ops[0], *_list_specs(move, header)), ops[1:]
    else:
        spec = header[move.sources[0]]
        factors = start(stored[move.sources[0]], spec)
    spec = factors.apply(ops, spec)
    if factors.is_zero:
        return None
    was_up = factors.up
    factors.finish(spec)
    if kind == "rows" and factors.up is not was_up:
        raise CannotFollow("a magnitude is of rows, and the rows become columns")
    sides = {id(matrix): (parts, dim) for matrix, parts, dim in joined.sides} if joined else {}
    merged = joined is not None and joined.merged

    def describe(matrix: Matrix) -> Side:
        parts, dim = sides.get(id(matrix), ((Part(move.sources[0], matrix.place),), 0))
        ops = tuple(matrix.ops)
        if len(parts) == 1 and not merged:
            ops, parts = (*parts[0].ops, *ops), (replace(parts[0], ops=()),)
        return Side(parts, dim, ops, tuple(matrix.sizes), merged)

    if kind == "rows":
        sizes = shape_magnitude(spec.shape, is_tall=is_tall)
        factors.up.reshape(range(len(sizes)), sizes)
    second = describe(factors.down) if factors.down is not None and kind == "lora" else None
    first = describe(factors.up)
    if second is None:
        return Pushed(kind, first)
    is_stack = factors.down is not None and 0 in factors.down.labels
    return Pushed(kind, first, second, factors.up.size_of(RANK), is_stack)


def _list_specs(move: Move, header: Mapping[str, TensorSpec]) -> tuple[list[TensorSpec], Sequence[str]]:
    return [header[fqn] for fqn in move.sources], move.sources


def start(stored: Stored, spec: TensorSpec) -> Factors:
    """Return the factors of a stored adapter of a weight; raises `CannotFollow` if the shapes do not fit.

    >>> up, down = TensorSpec("F32", (96, 4)), TensorSpec("F32", (4, 32))
    >>> start(Stored("lora", up, down), TensorSpec("F32", (96, 32))).layout
    [[0], [1]]
    """
    dims, first = list(range(len(spec.shape))), stored.first.shape
    if stored.kind in ("whole", "delta"):
        if first != spec.shape:
            raise CannotFollow(f"the tensor must be {list(spec.shape)}, got {list(first)}")
        return Factors(Matrix(dims, list(first)), None, [[dim] for dim in dims], is_whole=stored.kind == "whole")
    if stored.kind == "rows":
        forms = (True,) if stored.is_tall else (False, True)
        known = [spec.shape[:1], *(shape_magnitude(spec.shape, is_tall=is_tall) for is_tall in forms)]
        if not spec.shape or first not in known:
            wanted = " or ".join(dict.fromkeys(str(list(each)) for each in known))
            raise CannotFollow(f"a magnitude, a number for each row, must be {wanted}, got {list(first)}")
        up = Matrix(list(range(-10, len(first) - 10)), list(first))
        up.reshape([0, RANK], [spec.shape[0], 1])
        return Factors(up, Matrix([RANK, *dims[1:]], [1, *spec.shape[1:]], is_ghost=True), [[dim] for dim in dims])
    assert stored.second is not None
    second = stored.second.shape
    found = _fit_matrices(spec.shape, first, second)
    if found is None:
        wanted = "up [OUT, r] and down [r, IN]"
        raise CannotFollow(f"{wanted} must fit the weight, {list(spec.shape)}, got {list(first)} and {list(second)}")
    up, down = found
    there = {*up.labels, *down.labels}
    return Factors(up, down, [[dim] if dim in there else [] for dim in dims])


def shape_magnitude(weight: Shape, *, is_tall: bool) -> Shape:
    """Return the shape of the magnitude of a weight: that of PEFT, or that with as many dimensions as the weight.

    >>> shape_magnitude((8, 4, 3, 3), is_tall=False), shape_magnitude((8, 4), is_tall=True)
    ((1, 8, 1, 1), (8, 1))
    """
    ones = (1,) * (len(weight) - 2)
    return (*weight[:1], 1, *ones) if is_tall else (1, *weight[:1], *ones) if ones else weight[:1]


def find_rank(stored: Stored, spec: TensorSpec) -> int:
    """Return the LoRA rank of a stored adapter of a weight; raises `CannotFollow`."""
    return start(stored, spec).up.size_of(RANK)


def fits(stored: Stored, spec: TensorSpec) -> bool:
    """Return whether a stored adapter is one of a weight with this header.

    >>> fits(Stored("rows", TensorSpec("F32", (8,))), TensorSpec("F32", (6, 4)))
    False
    """
    try:
        start(stored, spec)
    except CannotFollow:
        return False
    return True


def _fit_matrices(
    weight: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]
) -> tuple[Matrix, Matrix] | None:
    """Return the labelled matrices of a linear layer, a convolution (kernel in `down`), or a stack of matrices.

    Those of a linear layer may be written as those of a convolution: [OUT, r, 1, 1] and [r, IN, 1, 1]. Where a
    three-dimensional weight could be both (its sizes and the rank coincide), it is a convolution.
    """
    ones = [-2 - at for at in range(len(up) - 2)]
    if len(weight) >= 2 and len(up) >= 2 and len(down) >= 2:
        rank = up[1]
        more = down[len(weight) :]
        has_rows = up[0] == weight[0] and len(up) in (2, len(weight), len(down))
        if has_rows and down[0] == rank and {*up[2:], *more} <= {1}:
            if down[1 : len(weight)] == weight[1:]:
                labels = [RANK, *range(1, len(weight)), *(-2 - at for at in range(len(more)))]
                return Matrix([0, RANK, *ones], list(up)), Matrix(labels, list(down), place=1)
            if len(down) == 2 and down[1] == weight[1] and set(weight[2:]) <= {1}:
                return Matrix([0, RANK, *ones], list(up)), Matrix([RANK, 1], list(down), place=1)
    is_stack = len(weight) == len(up) == len(down) == 3 and up[:2] == weight[:2] and up[2] == down[1]
    if is_stack and (down[0], down[2]) == (weight[0], weight[2]):
        return Matrix([0, 1, RANK], list(up)), Matrix([0, RANK, 2], list(down), place=1)
    return None


# ------------------------------------------------------------------------------------------------ joins


@dataclass(slots=True)
class _Piece:
    """The update of one branch: its source, and its matrices in the form in which adapters are stored."""

    source: str
    factors: Factors


@dataclass(slots=True)
class _Joined:
    factors: Factors
    sides: list[tuple[Matrix, tuple[Part, ...], int]]
    merged: bool = False


def _join(
    join: Join, move: Move, header: Mapping[str, TensorSpec], stored: Mapping[str, Stored], kind: Kind
) -> _Joined | None:
    """Return the sum of the updates of the sources of a join; None if all of them are zero."""
    if join.combine is not None and (join.combine.kind != "dequantize" or kind == "whole"):
        raise CannotFollow(f"{join.combine.kind} changes the weight by another tensor, and its update with it")
    width = len(join.branches)
    pieces: list[_Piece | None] = []
    specs: list[TensorSpec] = []
    for number, fqn in enumerate(move.sources):
        branch = join.branches[number % width]
        if join.combine is not None and number % 2:
            continue
        specs.append(infer_ops(branch, header[fqn]))
        piece = _Piece(fqn, start(stored[fqn], header[fqn])) if fqn in stored else None
        if piece is not None:
            piece.factors.apply(branch, header[fqn])
            piece.factors.finish(specs[-1])
        pieces.append(None if piece is None or piece.factors.is_zero else piece)
    width = 1 if join.combine is not None else width
    if not any(pieces):
        return None
    if join.merge and len(pieces) > width:
        raise CannotFollow("it merges copies and stacks them: derive the adapter from one copy")
    if join.merge:
        return _merge(pieces, move)
    if kind in ("whole", "rows") and not all(pieces):
        lacking = [fqn for fqn, piece in zip(move.sources, pieces, strict=False) if piece is None]
        raise CannotFollow(f"a part of the whole is missing: there is none for {join_words(lacking, 2)}")
    count = len(pieces) // width if join.stack is not None else 1
    return _Grid(pieces, specs, count, width if join.stack is not None else len(pieces), join, kind).build()


def _merge(pieces: Sequence[_Piece | None], move: Move) -> _Joined:
    """Return the update of one of several copies, with the parts that all of them have for it."""
    own = [piece for piece in pieces if piece is not None]
    if len(own) < len(pieces):
        lacking = [fqn for fqn, piece in zip(move.sources, pieces, strict=True) if piece is None]
        title = f"copies of one tensor are merged, and {join_words(lacking, 2)} has no adapter: they would differ"
        raise CannotFollow(title)
    first = own[0].factors
    sides: list[tuple[Matrix, tuple[Part, ...], int]] = []
    for matrices in zip(*(piece.factors.matrices for piece in own), strict=True):
        parts = (Part(piece.source, each.place, tuple(each.ops)) for piece, each in zip(own, matrices, strict=True))
        sides.append((matrices[0], tuple(parts), 0))
    for matrix in first.matrices:
        matrix.ops = []
    return _Joined(first, sides, merged=True)


@dataclass(slots=True)
class _Grid:
    """Branches side by side (`width` of them), for each index of a stack (`count`, or 1)."""

    pieces: Sequence[_Piece | None]
    specs: Sequence[TensorSpec]
    count: int
    width: int
    join: Join
    kind: Kind

    def build(self) -> _Joined:
        """Return the matrices of the whole, with their parts."""
        some = next(piece for piece in self.pieces if piece is not None)
        rank = len(self.specs[0].shape)
        dim = None if self.join.concat is None or self.width == 1 else self.join.concat % rank
        if some.factors.down is None:
            return self._build_whole(dim)
        if len(some.factors.holders(0)) == 2:  # each piece is a stack already
            raise CannotFollow("it joins stacks of matrices")
        if self.kind == "rows":
            if dim not in (None, 0) or self.join.stack is not None:
                raise CannotFollow("a magnitude is of rows, and rows are joined to longer ones")
            up = self._concat("up", 0, [None] * len(self.pieces), self._list_sizes(0))
            down = Matrix([RANK, *range(1, rank)], [1, *self._measure(dim)[1:]], is_ghost=True)
            return _Joined(Factors(up[0], down, [[each] for each in range(rank)]), [(*up, 0)])
        return self._build_lora(dim)

    def _build_lora(self, dim: int | None) -> _Joined:
        ranks = [max(self._rank(e * self.width + j) for e in range(self.count)) for j in range(self.width)]
        total = sum(ranks)
        offsets = [sum(ranks[:j]) for j in range(self.width)] * self.count
        rows, *columns = self._measure(dim)
        tall = ranks * self.count
        if dim in (None, 0):
            up, up_parts = self._concat("up", 0, [(1, total, at) for at in offsets], self._list_sizes(0))
            down, down_parts = self._concat("down", 0, [None] * len(self.pieces), tall)
        else:
            assert dim is not None
            starts = [sum(self._list_sizes(dim)[:j]) for j in range(self.width)] * self.count
            places = [(dim, columns[dim - 1], at) for at in starts]
            down, down_parts = self._concat("down", 0, places, tall)
            up, up_parts = self._concat("up", 1, [None] * len(self.pieces), tall)
        if self.join.stack is None:
            up.labels, down.labels = [0, RANK, *up.labels[2:]], [RANK, *range(1, len(columns) + 1)]
            layout = [[each] for each in range(len(columns) + 1)]
            return _Joined(
                Factors(up, down, layout), [(up, up_parts, 0 if dim in (None, 0) else 1), (down, down_parts, 0)]
            )
        if dim not in (None, 0):
            raise CannotFollow("it concatenates columns and stacks the results")
        if len(columns) != 1:
            raise CannotFollow("it stacks convolutions")
        up.reshape([0, 1, RANK], [self.count, rows, total])
        down.reshape([0, RANK, 2], [self.count, total, *columns])
        layout = [[1], [2]]
        layout.insert(self.join.stack % 3, [0])
        return _Joined(Factors(up, down, layout), [(up, up_parts, 0), (down, down_parts, 0)])

    def _build_whole(self, dim: int | None) -> _Joined:
        if self.join.stack is not None and dim not in (None, 0):
            raise CannotFollow("it concatenates along a later dimension and stacks the results")
        at, shape = dim or 0, self._measure(dim)
        up, parts = self._concat("up", at, [None] * len(self.pieces), self._list_sizes(at))
        if self.join.stack is None:
            up.labels = list(range(len(shape)))
            whole = Factors(up, None, [[each] for each in up.labels], is_whole=self.kind == "whole")
            return _Joined(whole, [(up, parts, at)])
        up.reshape(list(range(len(shape) + 1)), [self.count, *shape])
        layout = [[each + 1] for each in range(len(shape))]
        layout.insert(self.join.stack % (len(shape) + 1), [0])
        return _Joined(Factors(up, None, layout, is_whole=self.kind == "whole"), [(up, parts, 0)])

    def _rank(self, number: int) -> int:
        piece = self.pieces[number]
        return 0 if piece is None else piece.factors.up.size_of(RANK)

    def _list_sizes(self, dim: int) -> list[int]:
        return [spec.shape[dim] for spec in self.specs]

    def _measure(self, dim: int | None) -> list[int]:
        """Return the shape of the branches of one index, concatenated."""
        shape = list(self.specs[0].shape)
        if dim is not None:
            shape[dim] = sum(spec.shape[dim] for spec in self.specs[: self.width])
        return shape

    def _concat(
        self, name: str, dim: int, places: Sequence[tuple[int, int, int] | None], sizes: Sequence[int]
    ) -> tuple[Matrix, tuple[Part, ...]]:
        """Concatenate the pieces' matrices along `dim`, where piece n takes `sizes[n]`; gaps are zeros.

        `places[n]` is where it stands along another dimension: (dimension, size of the whole, offset).
        """
        parts: list[Part] = []
        shape: list[int] = []
        for number, gap, length in _list_gaps([piece is not None for piece in self.pieces], sizes):
            piece = self.pieces[number]
            assert piece is not None
            matrix: Matrix = getattr(piece.factors, name)
            ops, shape = list(matrix.ops), list(matrix.sizes)
            if (place := places[number]) is not None:
                ops += _place(place[0], shape[place[0]], place[1], place[2])
                shape[place[0]] = place[1]
            ops += _place(dim, shape[dim], length, gap)
            parts.append(Part(piece.source, matrix.place, tuple(ops)))
        shape[dim] = sum(sizes)
        return Matrix([0, RANK, *(-2 - at for at in range(len(shape) - 2))], shape), tuple(parts)


def _list_gaps(there: Sequence[bool], sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield for each part that is there its number, the zeros before it, and its size with all zeros around it.

    Zeros belong to the part before them; those in front of all parts to the first.

    >>> list(_list_gaps([False, True, False, True], [1, 2, 3, 4]))
    [(1, 1, 6), (3, 0, 4)]
    """
    present = [number for number, is_there in enumerate(there) if is_there]
    for number, following in zip(present, [*present[1:], len(there)], strict=True):
        gap = sum(sizes[:number]) if number == present[0] else 0
        yield number, gap, gap + sum(sizes[number:following])


def _place(dim: int, size: int, total: int, offset: int) -> list[OpText]:
    """Return the operations that put something of `size` at `offset` into zeros of `total`."""
    at = {"dim": dim} if dim else {}
    ops: list[OpText] = [{"pad": {**at, "to": total}}] if total != size else []
    return [*ops, *([{"roll": {**at, "by": offset}}] if offset else [])]
