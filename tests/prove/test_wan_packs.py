"""The Wan packs are proven in both directions; a fault planted in one is caught by name, with a right witness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs.model import Level
from remapkit.rulefile.read import read_text
from remapkit.sources.declared import read_declared_source

ROOT = Path(remapkit.__file__).parent.parent
PACKS = {
    name: (ROOT / "rules" / f"{name}.yaml").read_text(encoding="utf-8") for name in ("wan22_pth", "wan22_diffusers")
}


def planted(pack: str, *changes: tuple[str, str]) -> RuleSet:
    text = PACKS[pack]
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {pack}"
        text = text.replace(old, new)
    return compile_rules(read_text(text))


@pytest.mark.parametrize("pack", PACKS)
def test_a_pack_is_proven_for_all_keys_in_both_directions(pack: str) -> None:
    rules = remapkit.load(pack)
    keys = read_declared_source(rules.file)
    proof = rules.prove(header=keys)
    assert (proof.level, proof.findings) == (Level.ALL, ())
    inverse = rules.inverse()
    assert inverse.prove().level is Level.ALL
    assert keys is not None and len(keys) == 196
    for key in keys:
        (there,) = rules.match(key)
        assert there.target is not None
        (back,) = inverse.match(there.target)
        assert back.target == key


@pytest.mark.parametrize("pack", PACKS)
def test_the_inverse_of_the_inverse_does_what_the_pack_does(pack: str) -> None:
    rules = remapkit.load(pack)
    again = rules.inverse().inverse()
    for key in read_declared_source(rules.file) or ():
        assert [match.target for match in again.match(key)] == [match.target for match in rules.match(key)]


DOWN = "path: 'encoder.downsamples.{stage:int}.downsamples.2.{part:resample|time_conv}.{rest:**}'"
RESNET = "path: 'encoder.downsamples.{stage:int}.downsamples.{block:int}.{part:residual|shortcut}.{rest:**}'"
# pack, changes, (code, rules, keys) of every error
PLANTED: dict[str, tuple[str, Sequence[tuple[str, str]], list[tuple[str, list[str], list[str]]]]] = {
    "overlap": (
        "wan22_pth",
        [(RESNET, RESNET.replace("residual|shortcut", "residual|resample"))],
        [("RK201", ["encoder.resnets", "encoder.downsampler"], ["encoder.downsamples.0.downsamples.2.resample.a"])],
    ),
    "lost index": (
        "wan22_pth",
        [
            (
                DOWN,
                r"match: 'encoder\.downsamples\.(?P<stage>\d+)\.downsamples\.\d+"
                r"\.(?P<part>resample|time_conv)\.(?P<rest>.+)'",
            )
        ],
        [
            (
                "RK202",
                ["encoder.downsampler"],
                ["encoder.downsamples.0.downsamples.0.resample.a", "encoder.downsamples.0.downsamples.1.resample.a"],
            )
        ],
    ),
    "unescaped dot": (
        "wan22_diffusers",
        [("path: '{side:encoder|decoder}.norm_out.gamma'", r"match: '(?P<side>encoder|decoder).norm_out\.gamma'")],
        [("RK202", ["norm_out"], ["encoderanorm_out.gamma", "encoderbnorm_out.gamma"])],
    ),
    "missing anchor": (
        "wan22_diffusers",
        [("path: '{side:encoder|decoder}.norm_out.gamma'", r"match: '.*(?P<side>encoder|decoder)\.norm_out\.gamma'")],
        [("RK202", ["norm_out"], ["encoder.norm_out.gamma", "aencoder.norm_out.gamma"])],
    ),
    "greedy double": (
        "wan22_diffusers",
        [
            (
                "path: 'encoder.down_blocks.{stage:int}.downsampler.{part:resample|time_conv}.{rest:**}'",
                r"match: 'encoder\.(?P<stage>.*)\.downsampler\.(?P<part>.*)\.(?P<rest>.*)'",
            ),
            (
                "to: 'encoder.downsamples.{stage}.downsampler.{part}.{rest}'",
                "to: 'encoder.downsamples.{stage}.downsampler.{rest}.{part}'",
            ),
        ],
        [("RK204", ["encoder.downsampler"], ["encoder..downsampler.b.."])],
    ),
    "two equal targets": (
        "wan22_diffusers",
        [("to: '{side}.head.0.gamma'", "to: '{side}.head.2.weight'")],
        [("RK203", ["norm_out", "conv_out"], ["encoder.norm_out.gamma", "encoder.conv_out.weight"])],
    ),
    "two equal table values, said to be lossy": (
        "wan22_diffusers",
        [
            ("layer: {norm1:", "layer: {lossy: true, entries: {norm1:"),
            ("norm2: residual.3", "norm2: residual.0"),
            ("conv_shortcut: shortcut}", "conv_shortcut: shortcut}}"),
        ],
        [],
    ),
    "target in another's place": (
        "wan22_diffusers",
        [("to: '{side}.middle.1.{rest}'", "to: '{side}.middle.0.{rest}'")],
        [
            (
                "RK203",
                ["middle.resnets", "middle.attention"],
                ["decoder.mid_block.resnets.0.conv1.a", "decoder.mid_block.attentions.0.residual.2.a"],
            )
        ],
    ),
    "a keep that takes a rule's targets": (
        "wan22_pth",
        [
            (
                "  - '{side:encoder|decoder}.conv1.{leaf:weight|bias}'",
                "  - 'encoder.downsamples.{n:int}.resnets.{rest:**}'\n"
                "  - '{side:encoder|decoder}.conv1.{leaf:weight|bias}'",
            )
        ],
        [
            (
                "RK203",
                ["encoder.resnets", "keep[1]"],
                ["encoder.downsamples.0.downsamples.0.residual.a", "encoder.downsamples.0.resnets.0.residual.a"],
            )
        ],
    ),
    "a literal that joins what a dot kept apart": (
        "wan22_diffusers",
        [
            (
                "to: 'encoder.downsamples.{stage}.resnets.{block}.{layer|layer}.{leaf}'",
                "to: 'encoder.downsamples.{stage}{block}.{layer|layer}.{leaf}'",
            )
        ],
        [
            (
                "RK202",
                ["encoder.resnets"],
                [
                    "encoder.down_blocks.1.resnets.10.conv1.a",
                    "encoder.down_blocks.11.resnets.0.conv1.a",
                ],
            )
        ],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_by_name_with_a_right_witness(name: str) -> None:
    pack, changes, expected = PLANTED[name]
    rules = planted(pack, *changes)
    found = rules.prove().blocking()
    assert bool(found) == bool(expected)
    for code, named, keys in expected:
        (finding,) = [each for each in found if each.code == code and each.values["rules"] == named]
        # As small as what a person would give; which letters and digits it has is a matter of taste.
        assert sum(map(len, finding.values["keys"])) == sum(map(len, keys)), finding
        assert all(str(key) in str(finding) for key in finding.values["keys"])
    for each in found:
        given = [(key, match) for key in each.values["keys"] for match in rules.match(key)]
        made = [match.target for _, match in given if match.rule.id in each.values["rules"]]
        if each.code == "RK201":
            assert len(made) == 2
        elif each.code == "RK204":
            assert each.values["targets"][0] == made[0] != each.values["targets"][1]
        else:
            assert len({*made}) == 1 and len({key for key, _ in given}) == 2


def test_a_lossy_table_is_named_though_it_is_admitted() -> None:
    pack, changes, _ = PLANTED["two equal table values, said to be lossy"]
    proof = planted(pack, *changes).prove()
    assert proof.level is Level.KEYS
    rules = sorted(each.values["rules"][0] for each in proof.findings)
    assert rules == ["decoder.resnets", "encoder.resnets", "middle.resnets"]
    for each in proof.findings:
        assert each.code == "RK202" and "norm1" in each.notes[0] and "norm2" in each.notes[0]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        # Equal values of a table, and a guard that contradicts its pattern, are caught before any proof.
        ([("norm2: residual.3", "norm2: residual.0")], "RK101"),
        (
            [
                (
                    "path: '{side:encoder|decoder}.norm_out.gamma'",
                    "path: '{side:encoder|decoder}.norm_out.gamma'\n    where: {side: [both]}",
                )
            ],
            "RK141",
        ),
        (
            [
                (
                    "path: '{side:encoder|decoder}.norm_out.gamma'",
                    "path: '{side:encoder|decoder}.norm_out.gamma'\n    leaf: [weight]",
                )
            ],
            "RK143",
        ),
        (
            [
                (
                    "path: '{side:encoder|decoder}.norm_out.gamma'",
                    "match: '(?P<side>encoder|decoder).norm_out.(?P<x>.*)'",
                )
            ],
            "RK152",
        ),
    ],
)
def test_what_is_caught_when_compiled(changes: Sequence[tuple[str, str]], code: str) -> None:
    with pytest.raises(InvalidRules) as error:
        planted("wan22_diffusers", *changes)
    assert code in {each.code for each in error.value.diagnostics}


@pytest.mark.parametrize(
    "changes",
    [
        [
            (
                "norm1: residual.0, conv1: residual.2, norm2: residual.3",
                "norm1: residual.3, conv1: residual.2, norm2: residual.0",
            )
        ],
        [("middle_block: {0: 0, 1: 2}", "middle_block: {0: 2, 1: 0}")],
        [
            (
                "quant: {quant_conv: conv1, post_quant_conv: conv2}",
                "quant: {quant_conv: conv2, post_quant_conv: conv1}",
            )
        ],
    ],
)
def test_a_swap_that_is_wrong_but_injective_is_no_finding(changes: Sequence[tuple[str, str]]) -> None:
    """A proof says that nothing is lost, and not that the mapping is the right one: it may not pretend."""
    proof = planted("wan22_diffusers", *changes).prove()
    assert (proof.level, proof.findings) == (Level.ALL, ())


CLASSIC = """
remapkit: 1
name: classic
source: {keys: keys/wan22_vae_upstream.json}
rules:
  - id: encoder.resnets
    match: 'encoder\\.downsamples\\.(?P<i>\\d+)\\.downsamples\\.(?P<j>\\d+)\\.(?P<p>residual|shortcut)\\.(?P<rest>.+)'
    to: 'encoder.downsamples.{i}.resnets.{j}.{p}.{rest}'
  - id: encoder.downsampler
    match: 'encoder\\.downsamples\\.(?P<i>\\d+)\\.downsamples\\.\\d+\\.(?P<p>resample|time_conv)\\.(?P<rest>.+)'
    to: 'encoder.downsamples.{i}.downsampler.{p}.{rest}'
  - id: decoder.resnets
    match: 'decoder\\.upsamples\\.(?P<i>\\d+)\\.upsamples\\.(?P<j>\\d+)\\.(?P<p>residual|shortcut)\\.(?P<rest>.+)'
    to: 'decoder.upsamples.{i}.resnets.{j}.{p}.{rest}'
  - id: decoder.upsampler
    match: 'decoder\\.upsamples\\.(?P<i>\\d+)\\.upsamples\\.\\d+\\.(?P<p>resample|time_conv)\\.(?P<rest>.+)'
    to: 'decoder.upsamples.{i}.upsampler.{p}.{rest}'
keep:
  - '{conv:conv1|conv2}.{leaf:weight|bias}'
  - '{side:encoder|decoder}.conv1.{leaf:weight|bias}'
  - '{side:encoder|decoder}.{part:middle|head}.{rest:**}'
"""


def test_the_four_rules_that_forget_where_the_resample_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "rules")
    rules = compile_rules(read_text(CLASSIC))
    proof = rules.prove(header=read_declared_source(rules.file))
    assert proof.level is Level.REFUTED
    assert [each.values["keys"] for each in proof.findings] == [
        [f"encoder.downsamples.0.downsamples.{n}.resample.a" for n in (0, 1)],
        [f"decoder.upsamples.0.upsamples.{n}.resample.a" for n in (0, 1)],
    ]
    for finding, value in zip(proof.findings, (2, 3), strict=True):
        assert any(
            "in the 196 known keys" in note and note.endswith(f"it is always {value}") for note in finding.notes
        )
    # What the help proposes is what makes it right, in both directions.
    text = CLASSIC
    for finding, line in zip(
        proof.findings, (r"downsamples\.\d+\.(?P<p>resample", r"upsamples\.\d+\.(?P<p>resample"), strict=True
    ):
        proposed = finding.help[0].removeprefix("write match: ")
        old = next(each for each in text.splitlines() if f".{line}" in each)
        text = text.replace(old, f"    match: '{proposed}'")
    repaired = compile_rules(read_text(text))
    assert repaired.prove().level is Level.ALL
    assert repaired.inverse().prove().level is Level.ALL


def test_one_rule_for_both_sides_is_told_what_the_index_is_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "rules")
    text = PACKS["wan22_pth"]
    begin, end = text.index("  - id: encoder.downsampler"), text.index("keep:")
    both = """  - id: resample
    path: '{side:encoder|decoder}.{way}.{i:int}.{again}.{block:int}.{p:resample|time_conv}.{rest:**}'
    to: '{side}.{way}.{i}.{again}.sampler.{p}.{rest}'
    forget: [block]

"""
    rules = compile_rules(read_text(text[:begin] + both + text[end:]))
    (finding,) = [
        each
        for each in rules.prove(header=read_declared_source(rules.file)).findings
        if each.values["rules"] == ["resample"]
    ]
    assert "side is encoder" in finding.notes[1] and "side is decoder" in finding.notes[1]
