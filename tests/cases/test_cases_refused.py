"""Known faults: what must be refused before anything is written, each with the words that help; and false proofs.

Each was once done without a word, or ended in a traceback, somewhere. The state dicts are small; `RK` codes are those
of `docs/diagnostics.md`.
"""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import remapkit
from remapkit.diagnostics.errors import RemapkitError
from remapkit.proofs.model import Level
from tests.cases.case_kit import HEAD, Refusal, load_rules
from tests.ops.ways import found, outcome

F8 = torch.zeros(640, 4).to(torch.float8_e4m3fn)
ONE = torch.ones(())
TWO, PAIR = torch.ones(2), torch.arange(8.0).reshape(4, 2)


def on_w(op: str) -> str:
    return f"rules: [{{id: w, path: w, ops: [{op}], to: w}}]"


DATA = (
    # Scales and alphas: numbers of a weight that are not in the weight.
    Refusal("an 8-bit weight is cast and its scale dropped", "rules: [{id: w, path: m.weight, ops: [{cast: BF16}], to: m.weight}]\ndrop: [m.weight_scale]", {"m.weight": F8, "m.weight_scale": ONE}, "RK366", "the weight that it scales is kept"),
    Refusal("an 8-bit weight is kept and its scale dropped", "keep: [m.weight]\ndrop: [m.scale_weight]", {"m.weight": F8, "m.scale_weight": ONE}, "RK366", "the weight would change its value"),
    Refusal("8-bit weights with two scales are concatenated", "rules: [{id: c, concat: {dim: 0, from: [a.weight, b.weight]}, to: c.weight}]\nunmatched: drop", {"a.weight": F8, "b.weight": F8, "a.weight_scale": ONE, "b.weight_scale": ONE}, "RK362", "concat"),
    Refusal("an 8-bit weight is cut inside a block", "rules: [{id: w, path: m.weight, split: {dim: 0, into: [a.weight, b.weight]}}, {id: s, path: m.weight_scale_inv, split: {dim: 0, sizes: [3, 2], into: [a.weight_scale_inv, b.weight_scale_inv]}}]", {"m.weight": F8, "m.weight_scale_inv": torch.ones(5, 1)}, "RK362", "split of a scaled weight"),
    Refusal("an alpha is dropped unfolded", "rules: [{id: up, path: '{m:**}.lora_up.weight', ops: [{scale: 0.5}], to: '{m}.up'}, {id: down, path: '{m:**}.lora_down.weight', to: '{m}.down'}]\ndrop: ['{m:**}.alpha']", {"a.lora_up.weight": PAIR, "a.lora_down.weight": PAIR.T.contiguous(), "a.alpha": ONE}, "RK366", "an alpha is dropped and not folded"),
    # Parts that are missing, too many, or different.
    Refusal("nothing is left", "rules: [{id: r, path: 'net.{r:**}', to: '{r}'}]\nunmatched: drop", {"a.weight": TWO}, "RK368", "is this another layout?"),
    Refusal("a rank is missing", "rules: [{id: r, path: 'tp{t:int}.w', concat: {dim: 0, by: t}, to: w}]", {"tp0.w": TWO, "tp2.w": TWO}, "RK340", "t has 0 and 2 but not 1"),
    Refusal("copies of ranks disagree", "rules: [{id: r, path: 'tp{t:int}.w', merge: {by: t}, to: w}]", {"tp0.w": TWO, "tp1.w": TWO + 1}, "RK347", "tp1.w differs from tp0.w in 2 of 2 elements, by at most 1"),
    Refusal("a tied head that is another one", "rules: [{id: r, merge: [lm_head, embed], to: embed}]", {"lm_head": TWO, "embed": TWO * 2}, "RK347", "embed differs from lm_head"),
    Refusal("one source of a group has indices that another one excludes", "rules: [{id: r, concat: {dim: 0, from: ['a.{i:0..11}', 'b.{i:0..23}']}, to: 'c.{i+1}'}]", {"a.0": TWO, "b.0": TWO, "b.13": TWO}, "RK340", "another source has i = 13"),
    Refusal("more elements than an unstack has names for", "rules: [{id: r, path: w, unstack: {dim: 0, by: n, count: 6}, to: 'g.{n//2}.{n%2}'}]", {"w": torch.zeros(7, 2)}, "RK350", "`count` is 6, got 7 elements"),
    Refusal("one key too many", "rules: [{id: r, path: 'a.{n}', to: 'b.{n}'}]", {"a.w": TWO, "loss.logvar": ONE}, "RK301", "loss.logvar"),
    Refusal("rules for another number of layers", "require: [{count: 'j.{i:int}.w', is: 3}]\nrules: [{id: first, path: 'j.{i:0..1}.w', to: 'b.{i}.w'}, {id: last, path: 'j.2.w', ops: [flip_halves], to: b.2.w}]", {"j.0.w": PAIR, "j.1.w": PAIR}, "RK370", "must count 3, got 2"),
    # Shapes.
    Refusal("a reshape with -1 that is stated", "require: [{shape: a.w, is: [8, 16]}]\n" + "rules: [{id: r, path: a.w, ops: [{reshape: [-1, 2, 2, 4]}], to: a.w}]", {"a.w": torch.zeros(16, 32)}, "RK370", "must have the shape [8, 16], got [16, 32]"),
    Refusal("a size that is rounded unnoticed", "params: {x: 7}\n" + on_w("{slice: {stop: x//2}}"), {"w": torch.zeros(8)}, "RK341", "round it with floor(a / b) or ceil(a / b)"),
)  # fmt: skip

WRITTEN = (
    # What a rule file says that cannot be meant.
    *(
        Refusal(f"a scale that is {what}", on_w(f"{{scale: {text}}}"), {}, "RK022", f"`scale` must be a number, got {said}")
        for what, text, said in (("a param", "s", "text"), ("arithmetic", "alpha // rank", "text"), ("a text", "'0.5'", "text"), ("a list", "[0.5]", "a list"), ("a mapping", "{by: 0.5}", "a mapping"), ("a truth value", "true", "a boolean"))
    ),
    Refusal("a part of -1 elements", "rules: [{id: r, path: w, split: {dim: 0, sizes: [-1, 2], into: [a, b]}}]", {}, "RK216", "at least 1, got -1"),
    Refusal("a slice that ends before it starts", on_w("{slice: {start: 3, stop: 1}}"), {}, "RK216", "`stop` must be greater than `start`"),
    Refusal("a shell's star in keep", "keep: ['head.*']", {}, "RK219", "write 'head.{rest:**}'"),
    Refusal("a shell's star in drop", "drop: ['attn_*']", {}, "RK219", "write 'attn_{part}'"),
    Refusal("a space and parentheses", "keep: ['x (y)']", {}, "RK219", "a space, '(', ')'"),
    Refusal("a shell's variable", "rules: [{id: r, path: 'a.{l}', to: 'b.${l}'}]", {}, "RK219", "write 'b.{l}'"),
    Refusal("a star in a guard", "rules: [{id: r, path: 'a.{n}', where: {n: ['*']}, to: 'b.{n}'}]", {}, "RK219", "a word of a guard must be plain text"),
    Refusal("quotes of another alphabet", "rules: [{id: r, path: a, to: '“b.w”'}]", {}, "RK219", "a template must be plain text"),
)  # fmt: skip


@pytest.mark.parametrize("case", DATA, ids=str)
def test_what_would_be_wrong_is_refused(case: Refusal, tmp_path: Path) -> None:
    """In memory and from a file, and nothing is left of the output."""
    with pytest.raises(RemapkitError) as caught:
        load_rules(case.rules, case.params)(dict(case.source))
    assert case.code in [each.code for each in caught.value.diagnostics] and case.said in str(caught.value)
    save_file({fqn: value.clone() for fqn, value in case.source.items()}, tmp_path / "in.safetensors")
    text = f"{HEAD}{case.rules}\n"
    for way in ("safetensors", "pth"):
        assert outcome(way, text, tmp_path / "in.safetensors", tmp_path, found(dict(case.source))) == case.code
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_what_cannot_be_meant_is_refused_where_it_is_written(case: Refusal) -> None:
    with pytest.raises(RemapkitError) as caught:
        load_rules(case.rules)
    assert [each.code for each in caught.value.diagnostics] == [case.code] and case.said in str(caught.value)


# ------------------------------------------------------------------------------------------ proofs

# name, rules, level, and the keys of a witness (or none)
VERDICTS: tuple[tuple[str, str, Level, tuple[str, ...]], ...] = (
    ("one source twice", "rules: [{id: r, concat: {dim: 0, from: ['a.{i:int}', 'a.{i:int}']}, to: 'b.{i}'}]", Level.REFUTED, ("a.0",)),
    ("a constant beside keys that pass through", "unmatched: keep\ndrop: ['a.{r:**}']\nadd: [{to: x, fill: zeros, shape: [1], dtype: F32}]", Level.KEYS, ("x",)),
    ("a forgotten part between two of a kind", "rules: [{id: r, match: '(?P<u>a*)(?P<f>x?)(?P<v>a*)', to: 'k.{u}{v}', forget: [f]}]", Level.REFUTED, ("ax", "xa")),
    ("a forgotten part in front of a cut", "rules: [{id: r, match: '(?P<x>a|b)(?P<y>[de]*)c(?P<z>[de]*)', leaf: [adce, bdce, addce, adcde], to: '{y}{z}', forget: [x]}]", Level.REFUTED, ("adcde", "addce")),
    ("a domain in two lines", "source: {domain: ['a.p.{y}.{z}', 'a.q.{y}.{z}']}\nrules: [{id: r, path: 'a.{x:p|q}.{y}.{z}', to: '{y}{z}', forget: [x]}]", Level.REFUTED, ("a.q.aa.a", "a.q.a.aa")),
    ("one index in two spellings", "rules: [{id: r, match: 'a\\.(?P<e>\\d+)', stack: {dim: 0, by: e}, to: b}]", Level.REFUTED, ("a.0", "a.00")),
    ("a number and what follows it", "rules: [{id: r, match: '(?P<n>\\d+)\\w*', to: b, forget: [n]}]", Level.REFUTED, ("0", "0a")),
    ("an index beside a name", "rules: [{id: r, path: 'w{c}', unstack: {dim: 0, by: k}, to: '{k}{c}'}]", Level.REFUTED, ("wa", "w0a")),
    ("a quotient without its remainder", "rules: [{id: r, path: 'l.{i:0..47}.w', to: 'g.{i//4}.w'}]", Level.REFUTED, ("l.0.w", "l.1.w")),
    ("a quotient and its remainder", "rules: [{id: r, path: 'l.{i:0..47}.w', to: 'g.{i//4}.{i%4}.w'}]", Level.ALL, ()),
    ("a swap", "rules: [{id: t, path: 'a.{r:**}', to: 'b.{r}'}, {id: b, path: 'b.{r:**}', to: 'a.{r}'}]", Level.ALL, ()),
    ("ten thousand numbers twice", "rules: [{id: r, path: 'a.{i:0..9999}', to: 'b.{i}.x{i}'}]", Level.ALL, ()),
    ("a word of 3,000 characters", f"rules: [{{id: r, path: 'a.{{n}}', where: {{n: [{'x' * 3000}]}}, to: 'b.{{n}}'}}]", Level.ALL, ()),
)  # fmt: skip


@pytest.mark.parametrize(("rules", "level", "keys"), [row[1:] for row in VERDICTS], ids=[row[0] for row in VERDICTS])
def test_a_proof_is_true_and_a_refutation_has_its_witness(rules: str, level: Level, keys: tuple[str, ...]) -> None:
    proof = load_rules(rules).prove()
    assert proof.level is level, proof.findings
    assert not keys or keys in [witness.keys for witness in proof.witnesses]


# ------------------------------------------------------------------------------------------ declared targets

# name, rules, source, target, code, words
TARGETS = (
    ("a name that the target does not have", "rules: [{id: r, path: 'a.{l}', to: 'bb.{l}'}]", {"a.w": [2]}, {"b.w": [2]}, "RK311", "bb.w"),
    ("two parts of three", "rules: [{id: r, path: qkv, split: {dim: 0, into: [q, k]}}]", {"qkv": [6, 2]}, {"q": [2, 2], "k": [2, 2], "v": [2, 2]}, "RK310", "v"),
    ("a vocabulary of another size", "rules: [{id: r, path: w, to: w}]", {"w": [34, 4]}, {"w": [32, 4]}, "RK312", "[34, 4]"),
)  # fmt: skip


@pytest.mark.parametrize("row", TARGETS, ids=[row[0] for row in TARGETS])
def test_a_declared_target_holds_for_apply_and_check(row: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    _, body, source, target, code, said = row
    state = {fqn: torch.zeros(shape) for fqn, shape in source.items()}
    save_file({fqn: torch.zeros(shape) for fqn, shape in target.items()}, tmp_path / "t.safetensors")
    save_file(state, tmp_path / "in.safetensors")
    (tmp_path / "r.yaml").write_text(f"{HEAD}target: {{keys: t.safetensors}}\n{body}\n")
    faces = (
        lambda: remapkit.apply(tmp_path / "r.yaml", tmp_path / "in.safetensors", tmp_path / "out.safetensors"),
        lambda: remapkit.check(tmp_path / "r.yaml", ckpt=tmp_path / "in.safetensors").raise_for_problems(),
    )
    for face in faces:
        with pytest.raises(RemapkitError) as caught:
            face()
        assert code in [each.code for each in caught.value.diagnostics] and said in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()
