"""Inverses: there and back is the identity, the result is proven, and where there is none the reason is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fuzz import without_fixes
from hypothesis import given, settings
from hypothesis import strategies as st
from key_oracle import all_readings
from rule_maker import Maker, seeded, write_text
from rule_reader import RuleFile, covers, read_rules
from test_proofs import PASSES, PROVEN, rules

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring.invert import invert
from remapkit.cli.app import main
from remapkit.diagnostics.errors import InvalidRules
from remapkit.formats.manifest import manifest_json
from remapkit.proofs.model import Level
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def there_and_back(given: RuleSet, inverse: RuleSet, key: str) -> list[str | None]:
    (there,) = given.match(key)
    assert there.target is not None
    return [match.target for match in inverse.match(there.target)]


ODD = r"""
remapkit: 1
name: odd
tables:
  t: {a: x.1, b: y, c: z}
rules:
  - {id: one, path: 'a.{i:0..3}.{j:0..4}.{rest:**}', to: 'A.{i*5+j}.{rest}'}
  - {id: two, path: 'b.{n:0..11}.w', to: 'B.{n//4}.{n%4}.w'}
  - {id: three, path: 'c.{n:1..3}.w', to: 'C.{n}.{n-1}.w'}
  - {id: four, path: 'd.{n:1..5}.w', to: 'D.{n-1}.w'}
  - {id: five, match: 'e\.(?P<p>[^.]+)\.(?P<q>(?:x|y)z*)\.w', to: 'E.{q}.{p}'}
  - {id: six, path: 'f.{s:a|b}.{l}', leaf: [weight, bias], to: 'F.{s|t}.{l}'}
  - {id: seven, path: 'g.{rest:**}', leaf: [weight, bias], to: 'G.{rest}'}
  - {id: eight, match: 'h\.(?P<l>weight|bias)', to: '{{H}}.{l}'}
  - {id: nine, path: 'i.{s:t}.x', to: 'I.{s}.x'}
  - {id: ten, path: 'j.{n:0..5}.x', to: 'J.{n}.{n}.x'}
keep:
  - {path: 'k.{s:t}.z', leaf: [z]}
  - {match: 'l\.(?P<a>.+)', where: {a: [b, c]}}
tests:
  a.1.2.x: A.7.x
"""
KEYS = [
    *(f"a.{i}.{j}.x.y" for i in range(4) for j in range(5)),
    *(f"b.{n}.w" for n in range(12)),
    *(f"c.{n}.w" for n in (1, 2, 3)),
    *(f"d.{n}.w" for n in range(1, 6)),
    "e.it's.xzz.w", "e.%.y.w", "f.a.weight", "f.b.bias", "g.weight", "g.a.b.bias", "h.weight", "h.bias",
    "i.a.x", "i.c.x", *(f"j.{n}.x" for n in range(6)), "k.a.z", "k.c.z", "l.b", "l.c",
]  # fmt: skip


def test_everything_that_a_rule_can_be_is_turned_round_and_back() -> None:
    given = compile_rules(read_text(ODD))
    inverse = given.inverse()
    assert inverse.prove().level is Level.ALL
    again = inverse.inverse()
    for key in KEYS:
        assert there_and_back(given, inverse, key) == [key]
        (target,) = [match.target for match in given.match(key)]
        assert [match.target for match in again.match(key)] == [target]
    for wrong in ("A.20.x", "B.3.0.w", "C.1.1.w", "D.5.w", "F.z.weight", "G.a.gamma", "J.1.2.x", "l.d", "k.d.z"):
        assert not inverse.match(wrong), wrong


def test_the_text_is_readable() -> None:
    text = invert(compile_rules(read_text(ODD)))
    for line in (
        "name: odd_inverse",
        "  t: {x.1: a, 'y': b}",
        "    path: 'A.{n:0..19}.{rest:**}'",
        "    to: 'a.{n//5}.{n%5}.{rest}'",
        "    path: 'B.{n_0:0..2}.{n_1:0..3}.w'",
        "    to: 'b.{n_0*4+n_1}.w'",
        "    to: 'd.{n+1}.w'",
        "    path: 'F.{s:t}.{l:bias|weight}'",
        "    leaf: [weight, bias]",
        "  A.7.x: a.1.2.x",
    ):
        assert line in text.splitlines(), f"{line!r} in\n{text}"


@pytest.mark.parametrize("name", PROVEN)
def test_what_is_proven_has_an_inverse(name: str) -> None:
    inverse = rules(*PROVEN[name]).inverse()
    assert inverse.prove().level is Level.ALL


@pytest.mark.parametrize(
    ("line", "head", "written"),
    [
        ("path: 'a.{c:t}', leaf: [p, r], to: '{c|t}'", "tables: {t: {p: x, q: y, r: z}}\n", "path: '{c:t}'"),
        ("path: 'a.p{c}', leaf: [p0, px, q], to: 'b.{c}.w'", "", "path: 'b.{c:0|x}.w'"),
        ("path: 'a.{c}_w', leaf: [x_w, y_w, x], to: '{c}.z'", "", "path: '{c:x|y}.z'"),
        ("path: 'a.{n:1..9}', leaf: ['3', '4', '5'], to: 'b{n-1}'", "", "path: 'b{n:2..4}'"),
        ("path: 'a.{n:0..9}', leaf: ['4', '5', '6', '7'], to: 'b.{n//2}.{n%2}'", "", None),
        ("path: 'a.{c}.w', leaf: [w], to: '{c}'", "", "path: '{c}'"),
        (r"match: '(?P<a>[^.]+)(?P<b>x)', leaf: [pqx], to: '{a}.{b}'", "", r"match: 'pq\.x'"),
        ("path: a, unstack: {dim: 0, by: n, count: 1}, to: 'b.{n}'", "", "path: 'b.{n:0..0}'"),
        ("path: a, unstack: {dim: 0, by: n, count: 12}, to: 'b{n}'", "", "path: 'b{n:0..11}'"),
        ("path: a, unstack: {dim: 0, by: n, count: p}, to: 'b.{n}'", "params: {p: 2}\n", "path: 'b.{n:int}'"),
        ("path: 'a.{c}', to: 'b.{c}'", "add: [{to: a., fill: zeros, shape: [1], dtype: F32}]\n", "path: 'b.{c}'"),
    ],
)
def test_guards_and_counts_bound_what_the_inverse_reads(line: str, head: str, written: str | None) -> None:
    given = rules(line, head=head)
    inverse = given.inverse()
    assert inverse.prove().level is Level.ALL
    assert given.add or inverse.inverse().prove().level is Level.ALL
    text = invert(given)
    assert written is None or f"    {written}" in text.splitlines(), text
    for key in (f"a.{end}" for end in ("p", "q", "r", "p0", "px", "x_w", "4", "7", "z.w", "pqx")):
        if given.match(key):
            assert "unstack" in line or there_and_back(given, inverse, key) == [key]


@pytest.mark.parametrize(
    ("lines", "head", "codes"),
    [
        (["path: 'a.{n:int}.{m:int}', to: 'b.{n}', forget: [m]"], "", ["RK210", "RK202"]),
        ([r"match: 'a\.\d', to: 'b'"], "", ["RK210", "RK202"]),
        (["path: 'a.{n}', to: 'c.{n}'", "path: 'b.{n}', to: 'c.{n}'"], "", ["RK210", "RK203"]),
        (["path: 'a.{n}', to: 'c.{n}'"], "drop: ['b.{n}', 'd']\n", ["RK211", "RK211"]),
        (["path: 'a.{n}', to: 'c.{n}'"], "unmatched: drop\n", ["RK212"]),
        (["path: 'a.{n}', to: 'c.{n}'"], PASSES, ["RK210", "RK206"]),
        (["path: 'a.{n:0..99}', to: 'b.{n}.{n}'"], "", ["RK213"]),
        ([r"match: '(?P<a>[^.x]+)(?P<b>x|xx)', leaf: [pqx, pxx], to: '{a}.{b}'"], "", ["RK213"]),
        (["path: a, unstack: {dim: 0, by: n, count: 3}, to: 'b.{n+1}'"], "", ["RK213"]),
        (["path: a, unstack: {dim: 0, by: n, count: p}, to: 'b.{n}.{n}'"], "params: {p: 2}\n", ["RK213"]),
        (
            [r"match: '(?P<a>[ab]*)', to: '{a}'", "path: '{c}', to: 'd.{c}'"],
            "source: {domain: [{match: 'a|c'}]}\n",
            ["RK201"],
        ),
    ],
)
def test_without_an_inverse_the_reason_is_named(lines: list[str], head: str, codes: list[str]) -> None:
    with pytest.raises(InvalidRules) as error:
        invert(rules(*lines, head=head))
    assert [each.code for each in error.value.diagnostics][-len(codes) :] == codes


# ------------------------------------------------------------------------------------------------ the rest

MASKS = """remapkit: 1
name: masks
source: {keys: keys/all.json}
rules: [{id: r, path: 'h.{n:int}.{leaf:weight|bias}', to: 'blocks.{n}.{leaf}'}]
%s
tests: {h.1.weight: blocks.1.weight, h.1.mask: null}
"""
MASKED = {key: TensorSpec("F32", (2,)) for key in ("h.0.weight", "h.0.mask", "h.1.weight", "h.1.mask")}


@pytest.fixture
def masks(tmp_path: Path) -> Callable[..., Path]:
    def write(dropped: str, keys: Mapping[str, TensorSpec] = MASKED) -> Path:
        path = tmp_path / "masks.yaml"
        path.write_text(MASKS % dropped)
        (tmp_path / "keys").mkdir(exist_ok=True)
        (tmp_path / "keys" / "all.json").write_text(manifest_json(StateDictSpec(dict(keys))))
        return path

    return write


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("drop: ['{m:**}.mask', 'v.old']", ("'{m:**}.mask' (drop[0]): h.0.mask and h.1.mask", "'v.old' (drop[1])")),
        ("unmatched: drop", ("keys that no rule matches: h.0.mask and h.1.mask",)),
    ],
    ids=["B26", "unmatched"],
)
def test_the_rest_has_an_inverse_that_names_what_is_lost(
    dropped: str, named: tuple[str, ...], masks: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = masks(dropped)
    with pytest.raises(InvalidRules, match="partial=True"):
        remapkit.invert(path)
    output = path.parent / "back.yaml"
    assert main(["invert", str(path), "--partial", "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    made = remapkit.invert(path, partial=True)
    assert made.lost == named
    for each in named:
        assert f"not restored, because masks drops it: {each}\n" in shown
        assert f"# Not restored, because masks drops it: {each}\n" in output.read_text()
    back = remapkit.load(output)
    assert back.prove().level is Level.ALL
    assert back.file.target is None
    assert [match.target for match in back.match("blocks.1.bias")] == ["h.1.bias"]
    assert remapkit.test(output).ok
    assert remapkit.load(path).inverse(partial=True).match("blocks.1.bias")[0].target == "h.1.bias"


def test_the_target_stays_where_no_known_key_is_lost(masks: Callable[..., Path]) -> None:
    kept = {key: spec for key, spec in MASKED.items() if "mask" not in key}
    made = remapkit.invert(masks("drop: ['{m:**}.mask']", kept), partial=True)
    assert "target: {keys: 'keys/all.json'}" in made.text
    assert made.lost == ("'{m:**}.mask' (drop[0])",)


def test_only_dropped_keys_may_be_lost() -> None:
    for lines, head, code in (
        (["path: 'a.{n:int}.{m:int}', to: 'b.{n}', forget: [m]"], "", "RK210"),
        (["path: 'a.{n}', to: 'c.{n}'"], "unmatched: keep\nsource: {domain: ['a.{n}', 'b.{n}']}\n", "RK212"),
    ):
        with pytest.raises(InvalidRules) as error:
            invert(rules(*lines, head=head), partial=True)
        assert error.value.diagnostics[0].code == code


def turn(given: RuleSet, *, partial: bool = False) -> RuleSet:
    """The inverse; most random sets are refused, and no user reads how they could be fixed."""
    with without_fixes():
        return given.inverse(partial=partial)


def test_random_sets_that_drop_lead_back_for_the_rest() -> None:
    turned = 0
    for seed in range(510_000, 510_600):
        data = seeded(seed).file(plain=True)
        if "drop" not in data and data.get("unmatched") != "drop":
            continue
        try:
            given = compile_rules(read_text(write_text(data)))
            inverse = turn(given, partial=True)
        except InvalidRules:
            continue
        turned += 1
        assert inverse.prove().level is Level.ALL, seed
        for key in list_keys(read_rules(data)):
            assert there_and_back(given, inverse, key) == [key], seed
    assert turned > 15


def list_keys(file: RuleFile) -> list[str]:
    """List the keys up to four characters that are renamed or kept."""
    found = [all_readings(rule.sources[0], "ab.0", 4) for rule in file.rules if rule.kind != "drop"]
    return [key for keys in found for key in keys if covers(file.domain, key)]


def test_random_proven_sets_lead_back() -> None:
    """Over every key up to a length of the files that are proven and have an inverse that can be written."""
    turned = 0
    for seed in range(500_000, 500_700):
        data = seeded(seed).file(plain=True)
        try:
            given = compile_rules(read_text(write_text(data)))
            inverse = turn(given)
        except InvalidRules:
            continue
        turned += 1
        assert inverse.prove().level is Level.ALL, seed
        for key in list_keys(read_rules(data)):
            assert there_and_back(given, inverse, key) == [key], seed
    assert turned > 60


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_sets_of_hypothesis_lead_back(data: st.DataObject) -> None:
    made = Maker(lambda count: data.draw(st.integers(0, count - 1))).file(plain=True)
    try:
        given = compile_rules(read_text(write_text(made)))
        inverse = turn(given)
    except InvalidRules:
        return
    for key in list_keys(read_rules(made))[:120]:
        assert there_and_back(given, inverse, key) == [key], write_text(made)


def test_names_that_yaml_or_python_would_misread() -> None:
    lines = [r"path: 'a.{n}.yes', to: 'no.{n}'", "path: \"it{'''s'}.{n:int}\", to: '0x1f.{n}'"]
    text = "tests: {a.b.yes: no.b, 'it''s.3': '0x1f.3'}\n"
    given = rules(*lines, head=text)
    assert [test.source.value for test in given.inverse().tests] == ["no.b", "0x1f.3"]


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_writes_a_file_that_lints_tests_and_leads_back(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "back.yaml"
    out.parent.mkdir()
    assert main(["invert", "wan22_pth", "-o", str(out)]) == 0
    assert main(["lint", str(out)]) == 0
    assert main(["test", str(out)]) == 0
    inverse = remapkit.load(out)
    # The path of the manifest is seen from where the file lies now.
    assert inverse.file.target is not None and inverse.file.target.keys is not None
    assert (out.parent / inverse.file.target.keys.value).is_file()
    again = tmp_path / "again.yaml"
    assert main(["invert", str(out), "-o", str(again)]) == 0
    assert remapkit.load(again).name == "wan22_pth"


def test_the_command_refuses_to_replace_a_file_and_says_why_there_is_no_inverse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.yaml"
    out.write_text("mine", encoding="utf-8")
    assert main(["invert", "wan22_pth", "-o", str(out)]) == 2
    assert out.read_text(encoding="utf-8") == "mine" and "RK500" in capsys.readouterr().err
    assert main(["invert", "wan22_pth", "-o", str(tmp_path / "no" / "out.yaml")]) == 2
    assert "RK503" in capsys.readouterr().err
    lossy = tmp_path / "lossy.yaml"
    lossy.write_text("remapkit: 1\nname: t\nrules: [{id: r, match: 'a\\.\\d', to: b}]\n", encoding="utf-8")
    assert main(["invert", str(lossy), "-o", str(out), "--force"]) == 1
    assert out.read_text(encoding="utf-8") == "mine"
    said = capsys.readouterr().err
    assert "RK210" in said and "a.0" in said and "a.1" in said
    assert main(["invert", "wan22_pth", "-o", str(out), "--force"]) == 0
    assert out.read_text(encoding="utf-8").startswith("# The inverse of wan22_pth")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
