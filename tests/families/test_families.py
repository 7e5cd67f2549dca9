"""Key families: they say exactly the keys they stand for, once each, whatever order those came in."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.tensors.families import Family, cut_key, find_families, format_ranges, join_key
from remapkit.tensors.spec import StateDictSpec, TensorSpec

ROOT = Path(remapkit.__file__).parent.parent

PLAIN = ["0", "1", "2", "3", "10", "007", "a", "b", "w1", "w2", "w3", "weight", "", "{x}", "é", "a|b"]
NUMBERED = ["a_0", "a_1", "b_1", "a_1_w", "a_01", "0_1", "1_0", "_0", "0_", "a__1", "1__0", "1___0", "_", "a_1_2"]
words = st.sampled_from([*PLAIN, *NUMBERED])
fqns = st.lists(words, min_size=1, max_size=4).map(".".join)
specs = st.builds(TensorSpec, st.sampled_from(["F32", "BF16"]), st.lists(st.integers(0, 9), max_size=3).map(tuple))


@st.composite
def products(draw: st.DrawFn) -> list[str]:
    """Keys as models have them: every choice of one word from each of a few sets."""
    sets = draw(st.lists(st.lists(words, min_size=1, max_size=3, unique=True), min_size=1, max_size=4))
    keys = [""]
    for number, each in enumerate(sets):
        keys = [f"{key}.{word}" if number else word for key in keys for word in each]
    return keys


headers = st.one_of(
    st.dictionaries(fqns, specs, max_size=25),
    products().flatmap(lambda keys: st.fixed_dictionaries(dict.fromkeys(keys, specs))),
)
headers = headers | st.tuples(headers, headers).map(lambda pair: {**pair[0], **pair[1]})


@settings(max_examples=400, deadline=None)
@given(headers)
def test_families_are_a_partition_into_products(tensors: dict[str, TensorSpec]) -> None:
    header = StateDictSpec(tensors)
    found = find_families(header)
    members = [fqn for family in found for fqn in family.fqns]
    assert sorted(members) == sorted(tensors)
    assert len(set(members)) == len(members)
    for family in found:
        assert math.prod(len(set(each)) for each in family.words) == len(family.fqns)
        expanded = [join_key(family.separators, own) for own in itertools.product(*family.words)]
        assert sorted(expanded) == sorted(family.fqns), "the product of the words is the keys"
        assert [fqn for fqn in tensors if fqn in family] == list(family.fqns), "a pattern says its keys and no other"
        assert [tensors[fqn] for fqn in family.fqns] == list(family.specs)
    assert sum(family.nbytes for family in found) == header.nbytes
    first = [list(tensors).index(family.fqns[0]) for family in found]
    assert first == sorted(first)


@given(st.text("a0127_.é", max_size=12))
def test_a_cut_key_joined_is_the_key(fqn: str) -> None:
    separators, own = cut_key(fqn)
    assert join_key(separators, own) == fqn
    assert separators.count(".") == fqn.count(".")
    assert "" in fqn.split(".") or all(own), "no word is empty but where a segment is"


@settings(max_examples=200, deadline=None)
@given(headers)
def test_no_two_families_could_be_one(tensors: dict[str, TensorSpec]) -> None:
    """Maximal: families that differ in one segment only, both numbers or both words, were joined."""
    found = find_families(StateDictSpec(tensors))

    def numbers(segment: tuple[str, ...]) -> bool:
        return segment[0].isdigit() and str(int(segment[0])) == segment[0]

    for number, one in enumerate(found):
        for other in found[number + 1 :]:
            if one.separators == other.separators:
                pairs = list(zip(one.words, other.words, strict=True))
                differing = [(a, b) for a, b in pairs if set(a) != set(b)]
                assert len(differing) != 1 or numbers(differing[0][0]) != numbers(differing[0][1])


@settings(max_examples=200, deadline=None)
@given(headers, st.randoms(use_true_random=False))
def test_the_keys_of_a_product_are_one_family_in_any_order(tensors: dict[str, TensorSpec], random: object) -> None:
    shuffled = list(tensors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (
        find_families(StateDictSpec(tensors)),
        find_families(StateDictSpec({key: tensors[key] for key in shuffled})),
    )
    if len(one) == 1:
        assert len(other) == 1
    assert sorted(fqn for family in other for fqn in family.fqns) == sorted(tensors)
    assert find_families(StateDictSpec(tensors)) == one, "the same header, the same families"


def test_a_planted_superset_would_be_seen() -> None:
    """Joining without a look at the other segments, a tempting shortcut, takes in keys that are not there."""
    wrong = Family((("a", "b"), ("x", "y")), ".", ("a.x", "b.y"), (TensorSpec("F32", ()),) * 2)
    assert "a.y" in wrong and math.prod(map(len, wrong.words)) != len(wrong.fqns)
    found = find_families(StateDictSpec(dict.fromkeys(["a.x", "b.y"], TensorSpec("F32", ()))))
    assert [family.pattern for family in found] == ["a.x", "b.y"]


@pytest.mark.parametrize(
    ("keys", "patterns"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], ["a.{0..2}.w"]),
        (["a.0.w", "a.2.w"], ["a.{0,2}.w"]),
        (["a.0.w", "a.w"], ["a.0.w", "a.w"]),
        (["a.0.w", "a.x.w"], ["a.0.w", "a.x.w"]),
        (["a.01.w", "a.1.w"], ["a.01.w", "a.1.w"]),
        (["l.w1", "l.w2", "l.w3"], ["l.w{1..3}"]),
        (["l.w1", "l.w2"], ["l.{w1|w2}"]),
        (["q.w", "q.b", "k.w", "k.b", "n.w"], ["{q|k}.{w|b}", "n.w"]),
        (["2.w", "10.w", "1.w"], ["{1,2,10}.w"]),
        (["a_0_q.w", "a_1_q.w", "a_2_q.w"], ["a_{0..2}_q.w"]),
        (["a_0_q.w", "a_1_k.w"], ["a_0_q.w", "a_1_k.w"]),
        (["a_0_q.w", "a_1_q.w", "a_0_k.w", "a_1_k.w", "a_n.w"], ["a_{0,1}_{q|k}.w", "a_n.w"]),
        (["h_0.w", "h_1.w", "h_01.w"], ["h_{0,1}.w", "h_01.w"]),
        (["conv_1x1.w", "conv_3x3.w"], ["conv_{1x1|3x3}.w"]),
        (["_0.w", "_1.w"], ["_{0|1}.w"]),
        ([f"b_{n}_mlp_{m}.{leaf}" for n in range(3) for m in (0, 2) for leaf in "ud"], ["b_{0..2}_mlp_{0,2}.{u|d}"]),
        ([""], [""]),
    ],
)
def test_patterns_by_hand(keys: list[str], patterns: list[str]) -> None:
    found = find_families(StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (1,)))))
    assert [family.pattern for family in found] == patterns


def test_shapes_and_dtypes_in_one_line() -> None:
    tensors = {
        "a.0": TensorSpec("F32", (8, 3)),
        "a.1": TensorSpec("BF16", (2, 3)),
        "a.2": TensorSpec("F32", (5,)),
        "a.3": TensorSpec("F32", ()),
    }
    (family,) = find_families(StateDictSpec(tensors))
    assert (family.shapes_text, family.dtypes_text) == ("[2..8, 3] [5] []", "3 F32, 1 BF16")


def test_the_wan_vae_is_a_few_lines() -> None:
    header = remapkit.header(ROOT / "rules" / "keys" / "wan22_vae_upstream.json")
    found = find_families(header)
    assert (len(header), len(found)) == (196, 18)
    assert "encoder.downsamples.{0..3}.downsamples.{0,1}.residual.{2,6}.{weight|bias}" in {f.pattern for f in found}


def test_a_hundred_thousand_keys() -> None:
    keys = [
        f"model.layers.{n}.experts.{e}.{p}.{leaf}"
        for n in range(60)
        for e in range(200)
        for p in "qkvo"
        for leaf in "wb"
    ]
    header = StateDictSpec(dict.fromkeys([*keys, *(f"odd{n}.{n % 7}" for n in range(4000))], TensorSpec("F32", ())))
    found = find_families(header)
    assert len(found[0].fqns) == len(keys) and len(found) == 8


def test_no_families_of_nothing() -> None:
    assert find_families(StateDictSpec({})) == ()


@given(st.lists(st.integers(0, 40), min_size=1, unique=True))
def test_ranges_say_every_number(numbers: list[int]) -> None:
    said: list[int] = []
    for part in format_ranges(numbers).split(","):
        low, _, high = part.partition("..")
        said += range(int(low), int(high or low) + 1)
    assert said == sorted(numbers)
