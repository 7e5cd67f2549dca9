"""What a check says: which keys and rules it names, how it counts ties, and what it leaves unsaid."""

from __future__ import annotations

from remapkit.api.ruleset import Plan
from remapkit.ops.attention import FlipHalves
from remapkit.plans.check import Check, check_known_keys, find_interchangeable, make_check
from remapkit.plans.moves import Move, RuleRef
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.core.plan_kit import compiled

F32 = TensorSpec("F32", (4, 4))


def plan_to(targets: dict[str, TensorSpec]) -> Plan:
    moves = tuple(Move(fqn, (f"src.{fqn}",), (), RuleRef("r"), spec) for fqn, spec in targets.items())
    return Plan("t", StateDictSpec({f"src.{fqn}": spec for fqn, spec in targets.items()}), moves)


def checked(
    brought: dict[str, TensorSpec], wanted: dict[str, TensorSpec], tied: tuple[tuple[str, ...], ...] = ()
) -> Check:
    return make_check(plan_to(brought), StateDictSpec(wanted, tied=tied, name="a model"))


def test_of_a_tied_weight_one_name_counts_as_matched_and_the_first_is_named() -> None:
    wanted = dict.fromkeys(("a.w", "b.w", "c.w"), F32)
    check = checked({"b.w": F32, "c.w": F32}, wanted, tied=(("a.w", "b.w", "c.w"),))
    assert (check.ok, check.matched, check.satisfied_by_tie) == (True, 2, {"a.w": "b.w"})
    assert str(check).startswith("t against a model: 2 of 3 targets, 0 missing")


def test_a_swap_of_tied_names_changes_nothing() -> None:
    header = dict.fromkeys(("a.w", "b.w", "c.w"), F32)
    assert len(find_interchangeable(StateDictSpec(header))) == 3
    assert len(find_interchangeable(StateDictSpec({"a.w": F32, "b.b": F32, "c.w": TensorSpec("F32", (4,))}))) == 0
    assert len(find_interchangeable(StateDictSpec(header, tied=(("a.w", "b.w"),)))) == 2
    assert len(find_interchangeable(StateDictSpec(header, tied=(("a.w", "b.w", "c.w"),)))) == 0


def test_a_tied_weight_under_no_name_is_missing() -> None:
    wanted = dict.fromkeys(("a.w", "b.w", "c.w"), F32)
    assert checked({"c.w": F32}, wanted, tied=(("a.w", "b.w"),)).missing_keys == ("a.w", "b.w")


def test_a_checkpoint_of_another_layout_is_not_half_a_checkpoint() -> None:
    known = StateDictSpec({"x.a": F32, "x.b": F32}, name="known")
    assert check_known_keys(compiled("keep: ['{r:**}']"), plan_to({"a": F32}), known) == []


def test_a_look_alike_has_the_shape() -> None:
    wanted = {"encoder.norm_1.weight": F32}
    other = checked({"encoder.norm1.weight": TensorSpec("F32", (4,))}, wanted)
    assert "has the shape of" not in str(other.problems[0])
    both = checked({"encoder.norm1.weight": TensorSpec("F32", (4,)), "encoder.norm2.weight": F32}, wanted)
    assert "the unexpected key encoder.norm2.weight" in str(both.problems[0])


def test_only_the_rules_in_question_are_named() -> None:
    twice = (FlipHalves(0),)
    moves = (
        Move("a", ("a",), (), RuleRef("right"), F32),
        Move("b", ("b",), (), RuleRef("wrong"), F32),
        Move("c", ("c",), twice, RuleRef("flips"), F32),
    )
    check = make_check(
        Plan("t", StateDictSpec(dict.fromkeys("abc", F32)), moves), StateDictSpec(dict.fromkeys("ac", F32))
    )
    assert check.problems[0].notes[-1] == "produced by wrong"
    (note,) = [each for each in check.notes if each.code == "RK317"]
    assert note.notes == ("produced by flips",) and note.values["through_operations"] == ["c"]


def test_a_mismatch_names_the_source_only_where_it_has_another_name() -> None:
    spec = TensorSpec("F32", (8, 4))
    plan = Plan("t", StateDictSpec({"w": spec}), (Move("w", ("w",), (), RuleRef("r"), spec),))
    assert "from" not in make_check(plan, StateDictSpec({"w": F32})).problems[0].notes[0]
