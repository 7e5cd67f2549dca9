"""`then`: two rule sets as one plan do what they do one after the other, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import remapkit

FIRST = {
    "rename": "rules: [{id: r, path: 'a.{i:int}.{leaf:w|b}', to: 'm.{i}.{leaf}'}]",
    "split": (
        "rules:\n  - {id: s, path: 'a.{i:int}.w', split: {dim: 0, into: ['m.{i}.q', 'm.{i}.k']}}\n"
        "  - {id: b, path: 'a.{i:int}.b', to: 'm.{i}.b'}"
    ),
    "transpose": (
        "rules:\n  - {id: t, path: 'a.{i:int}.w', ops: [transpose], to: 'm.{i}.w'}\n"
        "  - {id: b, path: 'a.{i:int}.b', to: 'm.{i}.b'}"
    ),
    "stack": (
        "rules:\n  - {id: st, path: 'a.{i:int}.w', stack: {dim: 0, by: i}, to: 'm.w'}\n"
        "  - {id: b, path: 'a.{i:int}.b', to: 'm.{i}.b'}"
    ),
    "concat": (
        "rules:\n  - id: c\n    concat: {dim: 0, from: ['a.0.w', 'a.1.w']}\n    to: 'm.w'\n"
        "  - {id: b, path: 'a.{i:int}.b', to: 'm.{i}.b'}"
    ),
    "added": (
        "rules: [{id: r, path: 'a.{i:int}.{leaf:w|b}', to: 'm.{i}.{leaf}'}]\n"
        "add:\n  - {to: 'm.mask', fill: tril, shape: [4, 4], dtype: F32}"
    ),
    "copy": "rules:\n  - {id: c, path: 'a.{i:int}.{leaf:w|b}', copy: ['m.{i}.{leaf}', 'n.{i}.{leaf}']}",
}
SECOND = {
    "rename": "rules: [{id: r, path: 'm.{rest:**}', to: 'z.{rest}'}]\nunmatched: keep",
    "transpose": (
        "rules:\n  - {id: t, path: 'm.{i:int}.{x:w|q|k}', ops: [transpose], to: 'z.{i}.{x}'}\nunmatched: keep"
    ),
    "concat": (
        "rules:\n  - id: c\n    concat: {dim: 0, from: ['m.{i:int}.q', 'm.{i:int}.k']}\n    to: 'z.{i}.qk'\n"
        "unmatched: keep"
    ),
    "cast": "rules:\n  - {id: c, path: 'm.{i:int}.b', ops: [{cast: F16}], to: 'z.{i}.b'}\nunmatched: keep",
    "stack": "rules: [{id: s, path: 'm.{i:int}.{x:w|q|k|b}', stack: {dim: 0, by: i}, to: 'z.{x}'}]\nunmatched: keep",
    "merge": "rules: [{id: m, path: 'm.{i:int}.b', merge: {by: i}, to: 'z.b'}]\nunmatched: keep",
    "merge of joined": (
        "rules: [{id: m, path: 'm.{i:int}.b', merge: {by: i}, ops: [{scale: 2}], to: 'z.b'}]\nunmatched: keep"
    ),
    "use of what is added": "rules: [{id: t, path: 'm.mask', ops: [transpose], to: 'z.mask'}]\nunmatched: keep",
    "drop": "rules: [{id: w, path: 'm.{i:int}.w', to: 'z.{i}.w'}]\ndrop: ['{x}.{i:int}.b']\nunmatched: keep",
    "unstack": "rules: [{id: u, path: 'm.w', unstack: {dim: 0, by: e}, to: 'z.{e}.w'}]\nunmatched: keep",
}


def rules(name: str, body: str) -> remapkit.RuleSet:
    return remapkit.loads(f"remapkit: 1\nname: {name}\n{body}\n")


def make_state(rows: int, columns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights; the biases are equal, so that they can be merged."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(rows, generator=generator)
    names = [f"a.{i}.{leaf}" for i in range(2) for leaf in ("w", "b")]
    return {
        name: torch.randn(rows, columns, generator=generator) if name.endswith("w") else bias.clone()
        for name in names
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[fqn].dtype == other[fqn].dtype and torch.equal(one[fqn], other[fqn]) for fqn in one
    )


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_then_is_one_after_the_other(first: str, second: str, tmp_path: Path) -> None:
    """In memory and through files; the oracle applies the two, and writes what is between."""
    one, two = rules("one", FIRST[first]), rules("two", SECOND[second])
    state = make_state(4, 6)
    both = one.then(two)
    try:
        wanted = two(one(dict(state)))
    except remapkit.FailedCheck:
        with pytest.raises(remapkit.FailedCheck):
            both(dict(state))
        return
    assert same(both(dict(state)), wanted)
    save_file(state, tmp_path / "in.safetensors")
    written = remapkit.apply(both, tmp_path / "in.safetensors", tmp_path / "out.safetensors", untie=True, verify=True)
    assert same(load_file(tmp_path / "out.safetensors"), wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]
    assert written.verified
    assert all(set(move.sources) <= set(state) for move in written.moves)
    assert dict(both.plan(tmp_path / "in.safetensors").target) == dict(remapkit.header(tmp_path / "out.safetensors"))


def test_most_pairs_are_compared() -> None:
    """Else the property above would prove little."""
    done = 0
    for first in FIRST.values():
        for second in SECOND.values():
            try:
                rules("two", second)(rules("one", first)(make_state(4, 6)))
                done += 1
            except remapkit.FailedCheck:
                pass
    assert done >= 30, done


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.permutations(["p", "q", "r", "s"]), min_size=3, max_size=3),
    keys=st.lists(st.sampled_from([f"{w}.{i}" for w in "pqrs" for i in range(3)]), min_size=1, unique=True),
)
def test_then_is_associative(words: list[list[str]], keys: list[str]) -> None:
    """On random renames: (a b) c, a (b c), and a, then b, then c."""
    sets = []
    for number, order in enumerate(words):
        table = ", ".join(f"{old}: {new}" for old, new in zip("pqrs", order, strict=True))
        body = f"tables: {{t: {{{table}}}}}\nrules: [{{id: r, path: '{{w:t}}.{{i:int}}', to: '{{w|t}}.{{i}}'}}]"
        sets.append(rules(f"n{number}", body))
    a, b, c = sets
    state = {key: f"value of {key}" for key in keys}
    wanted = c(b(a(state)))
    assert a.then(b).then(c)(state) == a.then(b.then(c))(state) == wanted
    assert a.then(b).then(c).name == a.then(b.then(c)).name
    assert a.then(b).then(c).digest == a.then(b.then(c)).digest != a.then(c).then(b).digest or b.digest == c.digest
    back = a.then(b).then(c).inverse()
    assert back(wanted) == state


def test_tensors_to_merge_are_compared_behind_other_operations(tmp_path: Path) -> None:
    """Equal as they come, different after: the first rules transpose one of two equal squares."""
    one = rules(
        "one",
        "rules:\n  - {id: t, path: 'a.0', ops: [transpose], to: 'm.0'}\n  - {id: k, path: 'a.1', to: 'm.1'}",
    )
    two = rules("two", "rules: [{id: m, path: 'm.{i:int}', merge: {by: i}, to: 'z'}]")
    square = torch.arange(9.0).reshape(3, 3)
    both = one.then(two)
    assert torch.equal(both({"a.0": square.T.contiguous(), "a.1": square})["z"], square)
    with pytest.raises(remapkit.FailedCheck, match="RK347"):
        both({"a.0": square, "a.1": square.clone()})
    save_file({"a.0": square, "a.1": square.clone()}, tmp_path / "in.safetensors")
    with pytest.raises(remapkit.FailedCheck, match="RK347"):
        remapkit.apply(both, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    # What is merged first is compared too, whatever follows.
    later = two.then(rules("three", "rules: [{id: t, path: 'z', ops: [transpose], to: 'y'}]"))
    with pytest.raises(remapkit.FailedCheck, match="RK347"):
        later({"m.0": square, "m.1": square + 1})


def test_what_is_merged_before_it_is_joined_is_compared(tmp_path: Path) -> None:
    """The merged tensors of the first rules are parts of what the second ones concatenate."""
    one = rules("one", "rules: [{id: m, path: 'a.{g:int}.{i:int}', merge: {by: i}, to: 'm.{g}'}]")
    two = rules("two", "rules: [{id: c, concat: {dim: 0, from: ['m.0', 'm.1']}, to: 'z'}]")
    state = {f"a.{g}.{i}": torch.full((2,), float(g)) for g in range(2) for i in range(2)}
    both = one.then(two)
    assert torch.equal(both(dict(state))["z"], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    state["a.1.1"] += 1
    with pytest.raises(remapkit.FailedCheck, match="RK347"):
        both(dict(state))
    save_file(state, tmp_path / "in.safetensors")
    with pytest.raises(remapkit.FailedCheck, match="RK347"):
        remapkit.apply(both, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_a_problem_between_is_placed_there(tmp_path: Path) -> None:
    one = rules("one", "rules: [{id: r, path: 'a.{r:**}', to: 'm.{r}'}]")
    two = rules("two", "rules: [{id: r, path: 'x.{r:**}', to: 'z.{r}'}]")
    plan = one.then(two).plan({"a.w": remapkit.TensorSpec("F32", (2,))})
    (problem,) = plan.problems
    assert problem.code == "RK301" and str(problem.place).endswith(", after one")
    save_file({"a.w": torch.zeros(2)}, tmp_path / "in.safetensors")
    with pytest.raises(remapkit.FailedCheck):
        remapkit.apply(one.then(two), tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_the_second_rules_drop_is_dropped_by_its_source_name() -> None:
    one = rules("one", "rules: [{id: r, path: 'a.{r:**}', to: 'm.{r}'}]")
    two = rules("two", "rules: [{id: r, path: 'm.w', to: 'z.w'}]\ndrop: ['m.mask']")
    spec = remapkit.TensorSpec("F32", (2,))
    plan = one.then(two).plan({"a.w": spec, "a.mask": spec})
    assert [(gone.fqn, gone.rule.id) for gone in plan.dropped] == [("a.mask", "drop[0]")]


def test_a_route_is_proven_if_its_parts_are() -> None:
    good = rules("good", "rules: [{id: r, path: 'a.{r:**}', to: 'm.{r}'}]")
    bad = rules("bad", "rules:\n  - {id: r, path: 'm.{r:**}', to: 'z.{r}'}\n  - {id: s, path: 'm.{x}', to: 'y.{x}'}")
    assert good.then(good.inverse()).prove().level is remapkit.Level.ALL
    assert good.then(bad).prove().level is remapkit.Level.REFUTED
    assert bad.then(good).prove().level is remapkit.Level.REFUTED


def test_rules_that_do_not_follow_are_refused() -> None:
    with pytest.raises(remapkit.UsageError, match=r"wan22_pth writes wan22-vae/grouped, but flux_bfl reads flux/bfl"):
        remapkit.load("wan22_pth").then("flux_bfl")
    with pytest.raises(remapkit.UsageError, match="take the inverse of one"):
        remapkit.load("wan22_pth").then("wan22_diffusers")


@pytest.mark.parametrize("other", [None, 3, ["wan22_vae"], ""])
def test_what_is_no_rule_set_cannot_follow(other: object) -> None:
    with pytest.raises(TypeError, match=r"then: `other` must be a RuleSet or a path, got"):
        remapkit.load("wan22_pth").then(other)


class Named(torch.nn.Module):
    """A linear layer under a name of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, torch.nn.Linear(3, 2, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.name)(x)


@pytest.mark.parametrize("turn", ["", "ops: [{roll: {by: 1}}], "])
def test_a_route_is_verified_by_both_models_and_by_a_converter(turn: str) -> None:
    one = rules("one", "rules: [{id: a, path: 'a.weight', to: 'm.weight'}]")
    two = rules("two", f"rules: [{{id: m, path: 'm.weight', {turn}to: 'b.weight'}}]")
    route, right = one.then(two), not turn
    models = {"source": lambda: Named("a"), "target": lambda: Named("b"), "input": "4,3"}
    assert remapkit.verify(route, **models).ok is right
    keys = {"a.weight": remapkit.TensorSpec("F32", (2, 3))}
    assert remapkit.verify(route, oracle=lambda state: {"b.weight": state["a.weight"]}, keys=keys).ok is right
    with pytest.raises(remapkit.UsageError, match="there is none"):
        remapkit.verify(route, **models, write=True)


@pytest.mark.parametrize("command", ["explain", "invert"])
def test_a_route_is_no_rule_file(command: str) -> None:
    route = remapkit.load("wan22_vae").then("wan22_vae_diffusers")
    arguments = {"explain": (["conv1.weight"],), "invert": ()}[command]
    with pytest.raises(remapkit.UsageError, match=re.escape("is a route, not one rule file")):
        getattr(remapkit, command)(route, *arguments)


def test_load_into_by_a_route() -> None:
    one = rules("one", "rules: [{id: t, path: 'a.w', ops: [transpose], to: 'm.w'}]")
    two = rules("two", "rules: [{id: r, path: 'm.w', to: 'weight'}]")
    layer = torch.nn.Linear(3, 2, bias=False)
    value = torch.randn(3, 2)
    remapkit.load_into(layer, {"a.w": value}, one.then(two))
    assert torch.equal(layer.weight, value.T)
