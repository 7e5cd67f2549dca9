"""A root that the first key asks for is the one that the whole plan would lead to, and is found without that plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import remapkit
from remapkit.plans.make import make_plan
from remapkit.plans.roots import choose_root, probe_root
from remapkit.tensors.spec import StateDictSpec, TensorSpec

SPEC = TensorSpec("F32", (2,))
NAMES = [f"{root}{fqn}" for root in ("", "net.", "net.unet.", "ema.") for fqn in ("h.0.w", "h.1.w", "out.b", "x")]
RULES = "remapkit: 1\nname: t\nrules: [{id: r, path: 'h.{i:int}.w', to: 'g.{i}'}]\n"
MORE = {
    "": "",
    "keep": "keep: ['out.b']\n",
    "kept": "unmatched: keep\n",
    "dropped": "unmatched: drop\n",
    "a root": "source: {root: net}\n",
    "counted": "params: {n: {count: 'h.{i:int}.w', value: 1}}\nkeep: ['x.{i:0..n-1}']\n",
}


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True),
    more=st.sampled_from(sorted(MORE)),
    partial=st.booleans(),
)
def test_what_is_probed_is_what_is_chosen(names: list[str], more: str, partial: bool) -> None:
    rules = remapkit.loads(RULES + MORE[more])
    header = StateDictSpec(dict.fromkeys(names, SPEC))
    chosen = choose_root(rules, make_plan(rules, header), partial=partial)
    probed = probe_root(rules, header, partial=partial)
    assert probed in (None, chosen)
    first_matches = bool(rules.match(names[0]))
    if chosen is not None and not first_matches and more in ("", "keep"):
        assert probed == chosen


def test_a_root_that_is_found_costs_one_plan(tmp_path: Path, work: Callable[[Callable[[], object]], int]) -> None:
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: r, path: 'h.{i:int}.w', to: 'g.{i}.w'}]\n")
    for name, root in (("plain", ""), ("below", "model.net.")):
        save_file({f"{root}h.{n}.w": torch.zeros(1) for n in range(2000)}, tmp_path / f"{name}.safetensors")

    def count(name: str, root: str | None = None) -> int:
        source = tmp_path / f"{name}.safetensors"
        return work(lambda: remapkit.apply(rules, source, tmp_path / "out.safetensors", dry_run=True, root=root))

    count("plain")
    named, found = count("below", "model.net"), count("below")
    assert found < 1.7 * named, "with a plan of the keys as they are, it is 2.3 times as much"


def test_a_root_that_only_a_plan_shows_is_taken(tmp_path: Path) -> None:
    """The first key matches as it is, so that nothing is known before all are planned."""
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: r, path: 'h.{i:int}.w', to: 'g.{i}.w'}]\n")
    source = tmp_path / "both.safetensors"
    save_file({"h.0.w": torch.zeros(1), "net.h.0.w": torch.ones(1), "net.h.1.w": torch.ones(2)}, source)
    written = remapkit.apply(rules, source, dry_run=True)
    assert {(move.sources, move.target) for move in written.moves} == {(("h.0.w",), "g.0.w"), (("h.1.w",), "g.1.w")}
    assert "RK414" in [each.code for each in written.diagnostics]
