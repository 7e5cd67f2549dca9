"""What other tools get wrong about which keys a renaming touches, on whole state dicts; and what a plan costs."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from matcher_kit import Twin, compiled
from test_sets import matches_of, paths_of

from remapkit.api.ruleset import RuleSet
from remapkit.diagnostics.errors import FailedCheck
from remapkit.plans.make import make_plan
from remapkit.tensors.spec import StateDictSpec, TensorSpec

SPEC = TensorSpec("F32", (2, 2))


def test_swapped_names_need_no_temporary_one_and_no_order() -> None:
    """Elsewhere the two rules cancel out, or a third name is needed."""
    rows = [(f"l.{{n:int}}.{one}", f"l.{{n}}.{other}") for one, other in ("qk", "kq")]
    for order in (rows, rows[::-1]):
        assert paths_of(*order)({"l.0.q": "Q", "l.0.k": "K"}) == {"l.0.k": "Q", "l.0.q": "K"}


def test_a_chain_moves_each_key_once_whatever_the_order_of_rules() -> None:
    """a -> b -> c, where others move a twice, or lose b."""
    for rows in itertools.permutations([("a", "b"), ("b", "c"), ("c", "a")]):
        assert matches_of(*rows)({"a": 1, "b": 2, "c": 3}) == {"b": 1, "c": 2, "a": 3}


def test_the_order_of_keys_does_not_matter() -> None:
    """Elsewhere source and target keys are paired by their place."""
    rules = paths_of(("l.{n:int}.q.{leaf}", "h.{n}.query.{leaf}"), ("l.{n:int}.k.{leaf}", "h.{n}.key.{leaf}"))
    state = {f"l.{n}.{part}.{leaf}": (n, part, leaf) for n in range(12) for part in "qk" for leaf in ("w", "b")}
    shuffled = list(state.items())
    random.Random(0).shuffle(shuffled)
    assert rules(dict(shuffled)) == rules(state)
    assert next(iter(rules(dict(shuffled)))) == rules.match(shuffled[0][0])[0].target


@pytest.mark.parametrize(
    "key",
    [
        *("sublayer.0.weight", "layer.0.weight.weight", "model.layer.0.weight", "layer.0.weight_v", "layer.0.weigh"),
        *("layer.00.weight", "layer.01.weight", "layer.٣.weight", "layer.1٣.weight", "layer.+1.weight"),
        *("layer.1_0.weight", "layer.-1.weight", "layer..weight", "layer.1.weight\n", "\nlayer.1.weight"),
        *(
            "layer.1.0.weight",
            "LAYER.1.weight",
            "layer.1 .weight",
            "layer.0x1.weight",
            "layer.1.weight.",
            ".layer.1.weight",
        ),
    ],
)
def test_what_only_looks_like_a_key_of_a_rule_is_not_one(key: str) -> None:
    """Alone, beside a rule that shares its beginning, and beside one that reads keys from their end."""
    rows = [("layer.{n:int}.weight", "t.{n}"), ("layer.{n:int}.bias", "u.{n}"), ("{x}.{n:int}.gamma", "v.{x}.{n}")]
    for count in (1, 2, 3):
        rules = paths_of(*rows[:count])
        assert rules.match(key) == ()
        with pytest.raises(FailedCheck):
            rules({key: 0})
    assert paths_of(*rows).match("layer.10.weight")[0].target == "t.10"


def test_experts_keep_their_numbers() -> None:
    """Experts 0, 1 and 3 are not 0, 1 and 2."""
    rules = paths_of(("e.{n:int}.w", "x.{n}.w"))
    assert rules({"e.3.w": 3, "e.0.w": 0, "e.1.w": 1}) == {"x.3.w": 3, "x.0.w": 0, "x.1.w": 1}


def test_a_stray_suffix_fills_nothing() -> None:
    """A top-level `norm.weight` is not the one that `dec.norm.weight` lacks."""
    rules = compiled([Twin("path", "dec.norm.weight", "", "decoder.norm.weight")], keep=["enc.{r:**}"])
    plan = make_plan(rules, StateDictSpec({"norm.weight": SPEC, "enc.norm.weight": SPEC}))
    assert [problem.code for problem in plan.problems] == ["RK301"]


def refused(rules: RuleSet, *keys: str) -> set[str]:
    with pytest.raises(FailedCheck) as caught:
        rules(dict.fromkeys(keys, 0))
    return {problem.code for problem in caught.value.diagnostics}


def test_nothing_is_overwritten_or_decided_in_silence() -> None:
    assert refused(paths_of(("a.{x}", "t.{x}"), ("b.{x}", "t.{x}")), "a.1", "b.1") == {"RK303"}
    assert refused(paths_of(("a.{x}", "t.{x}"), ("{y}.1", "u.{y}")), "a.1", "a.2") == {"RK302"}
    assert refused(paths_of(("a.{x}", "t.{x}")), "a.1", "c.1") == {"RK301"}
    assert refused(compiled([Twin("path", "a.{x}", "", "b.{x}")], keep=["b.{x}"]), "a.1", "b.1") == {"RK303"}


def test_what_is_dropped_is_not_a_target() -> None:
    rules = compiled([Twin("path", "a.{x}", "", "b.{x}")], drop=["c.{x}"], unmatched="drop")
    assert rules({"c.1": 0, "a.1": 1, "c.2": 2, "d": 3}) == {"b.1": 1}


def test_a_plan_is_small() -> None:
    """At most 2 KB a key at the peak, the header and its keys included."""
    count = 20_000
    rules = paths_of(
        ("l.{n:int}.mlp.experts.{e:int}.w1.weight", "blocks.{n}.ffn.{e}.gate.weight"),
        ("l.{n:int}.mlp.experts.{e:int}.w2.weight", "blocks.{n}.ffn.{e}.down.weight"),
    )
    rules.match("l.0.mlp.experts.0.w1.weight")
    tracemalloc.start()
    try:
        keys = [f"l.{n // 256}.mlp.experts.{n % 256}.w{w}.weight" for n in range(count // 2) for w in (1, 2)]
        header = StateDictSpec({key: TensorSpec("BF16", (2048, 768)) for key in keys})
        plan = make_plan(rules, header)
        assert plan.ok and len(plan.moves) == count
        assert tracemalloc.get_traced_memory()[1] <= 2048 * count
    finally:
        tracemalloc.stop()
