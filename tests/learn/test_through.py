"""`learn --through`: what a converter does becomes rules, and what it does wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

import remapkit
from remapkit.cli.app import main
from remapkit.formats.manifest import write_manifest

CODE = """
import random, torch
RENAMES = {r"^layers": "h", r"gamma$": "weight"}
PAIRS = [(r"^layers", "h")]
def merge(sd):
    return {k.replace("b.", "a."): v for k, v in sd.items()}
def in_place(sd):
    for k in list(sd):
        sd["m." + k] = sd.pop(k)
def both(sd):
    return {k: v for k, v in sd.items() if "b" not in k} | {"new": torch.ones(3)}, "more"
def breaks(sd):
    for key in sd:
        if "b" in key:
            raise ValueError("no")
def wants(sd, config): return sd
def chance(sd): return {k: v for k, v in sd.items()} | {"r": torch.tensor(random.random())}
def wrong(sd): return 3
class Mapper:
    orig_to_new_prefix = {"layers.": "h.", "skip.": None}
mapper = Mapper()
"""


@pytest.fixture
def learn(tmp_path: Path):  # type: ignore[no-untyped-def]
    (tmp_path / "mine.py").write_text(CODE)

    def run(name: str, *keys: str, **args: object) -> remapkit.ThroughReport:
        spec = remapkit.TensorSpec("F32", (8,))
        write_manifest(remapkit.StateDictSpec(dict.fromkeys(keys, spec)), tmp_path / "a.json", force=True)
        return remapkit.learn_through(f"{tmp_path}/mine.py:{name}", tmp_path / "a.json", **args)  # type: ignore[arg-type]

    return run


def test_tables_and_mappers(learn) -> None:  # type: ignore[no-untyped-def]
    assert learn("RENAMES", "layers.0.gamma", "x").learned.pairs == {"layers.0.gamma": "h.0.weight", "x": "x"}
    assert learn("PAIRS", "layers.0.gamma").learned.pairs == {"layers.0.gamma": "h.0.gamma"}
    found = learn("mapper", "layers.0.w", "skip.w")
    assert found.learned.pairs == {"layers.0.w": "h.0.w"} and found.vanished == ("skip.w",)


def test_two_keys_to_one_target(learn) -> None:  # type: ignore[no-untyped-def]
    found = learn("merge", "a.w", "b.w", "c.w")
    assert found.collisions == {"a.w": ("a.w", "b.w")} and found.vanished == ()
    assert found.learned.pairs == {"b.w": "a.w", "c.w": "c.w"} and found.kept == ("c.w",)


def test_a_dict_changed_in_place_and_a_tuple(learn) -> None:  # type: ignore[no-untyped-def]
    assert learn("in_place", "a", "b").learned.pairs == {"a": "m.a", "b": "m.b"}
    found = learn("both", "a", "b")
    assert found.vanished == ("b",) and found.constant == ("new",) and found.unstable == ()


def test_chance_is_said(learn) -> None:  # type: ignore[no-untyped-def]
    assert learn("chance", "a").unstable == ("r",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("breaks", "failed at the key b"),
        ("wants", "also needs config"),
        ("wrong", "returned an int, not a state dict"),
        ("nothing", "there is no 'nothing' in it"),
    ],
)
def test_what_cannot_be_learned(learn, name: str, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(remapkit.UsageError, match=words):
        learn(name, "a", "b")


def test_the_command_writes_a_pack(learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    learn("RENAMES", "layers.0.gamma")
    out = tmp_path / "out.yaml"
    assert (
        main(["learn", "--through", f"{tmp_path}/mine.py:RENAMES", "--from", f"{tmp_path}/a.json", "-o", f"{out}"])
        == 0
    )
    assert main(["lint", f"{out}"]) == 0 and main(["test", f"{out}"]) == 0
    assert main(["learn", "--from", f"{tmp_path}/a.json"]) == 2
    assert "--from needs --through" in capsys.readouterr().err
