"""Rename the captures that the numbers of a pipeline use, for its inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from remapkit.ops.calls import Call, rename_captures
from remapkit.rules.axes import Axis
from remapkit.rules.pipeline import Pipeline, SplitRule


def rename_numbers(pipeline: Pipeline, names: Mapping[str, str]) -> Pipeline:
    """Return a pipeline whose numbers use what `names` has for each capture: `kv[i]` becomes `kv[(i-1)]`."""

    def rename_calls(calls: Sequence[Call]) -> tuple[Call, ...]:
        return tuple(call.rename_captures(names) for call in calls)

    def rename_sizes(split: SplitRule | None) -> SplitRule | None:
        if split is None or split.sizes is None:
            return split
        return replace(split, sizes=tuple(rename_captures(size, names) for size in split.sizes))

    def rename_count(axis: Axis | None) -> Axis | None:
        if axis is None or axis.count is None:
            return axis
        return replace(axis, count=tuple(rename_captures(each, names) for each in axis.count))

    return replace(
        pipeline,
        before=tuple(map(rename_calls, pipeline.before)),
        ops=rename_calls(pipeline.ops),
        after=tuple(map(rename_calls, pipeline.after)),
        concat=rename_sizes(pipeline.concat),
        split=rename_sizes(pipeline.split),
        stack=rename_count(pipeline.stack),
        unstack=rename_count(pipeline.unstack),
        family=rename_count(pipeline.family),
        spread=rename_count(pipeline.spread),
    )
