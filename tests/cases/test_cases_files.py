"""Known jobs about whole files: prefixes, wrappers, trainers' files, several files; and where other cases are tested.

Each is done by `apply`, and the answer is compared by value. `ELSEWHERE` lists the families of faults that have tests
of their own, so that all of them can be found from this folder.
"""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.diagnostics.errors import RemapkitError
from tests.cases.case_kit import load_rules, make_tensors

TESTS = Path(__file__).parents[1]
WQ = make_tensors({f"layers.{i}.attn.wq.weight": (2, 3) for i in (0, 1)})
RENAMED = {f"h.{i}.wq.weight": WQ[f"layers.{i}.attn.wq.weight"] for i in (0, 1)}
RULES = "rules: [{id: w, path: 'layers.{i:int}.attn.{rest:**}', to: 'h.{i}.{rest}'}]"
OTHER = torch.rand(3, generator=torch.Generator().manual_seed(1))
LORA = torch.rand(4, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class FileJob:
    """Files that `torch.save` writes, by their names; the source and options of `apply`; what must be written."""

    name: str
    rules: str
    files: Mapping[str, Any]
    source: Any
    wanted: Mapping[str, torch.Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{fqn}": value for fqn, value in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": OTHER, "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
LIGHTNING = {
    "state_dict": WQ,
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [{"last_epoch": 3}],
    "callbacks": {
        "ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_k_models": {"a.ckpt": torch.tensor(0.5)}}
    },
}
WRAPPED = {
    "module._orig_mod.layers.0._checkpoint_wrapped_module.attn.wq.weight": WQ["layers.0.attn.wq.weight"],
    "module.layers.1.attn._orig_mod.wq.weight": WQ["layers.1.attn.wq.weight"],
    "module.layers.1.attn.wq.lora_A.default.weight": LORA,
}
JOBS = (
    FileJob("plain", RULES, {"m.pth": WQ}, "m.pth", RENAMED),
    FileJob("under a prefix beside other parts", RULES, {"m.pth": {**under("model.diffusion_model.", WQ), "first_stage_model.w": OTHER}}, "m.pth", RENAMED),
    FileJob("under another prefix", RULES, {"m.pth": under("net.", WQ)}, "m.pth", RENAMED),
    FileJob("wrappers in the middle of names", RULES, {"m.pth": WRAPPED}, "m.pth", {**RENAMED, "h.1.wq.lora_A.weight": LORA}, {"strip": ["module", "default"]}),
    FileJob("a trainer's file with the scores of callbacks", RULES, {"m.ckpt": LIGHTNING}, "m.ckpt", RENAMED),
    FileJob("a model beside a scalar", RULES, {"m.pth": {"model": WQ, "loss": torch.tensor(0.5)}}, "m.pth", RENAMED),
    FileJob("one model under two names", RULES, {"m.pth": {"model": WQ, "ema": WQ}}, "m.pth", RENAMED),
    FileJob("an average of the weights, by its name", RULES, {"m.pth": {"model": under("x.", WQ), "ema": WQ}}, "m.pth", RENAMED, {"root": "ema"}),
    FileJob(
        "two experts for high and low noise, with the same keys",
        "rules: [{id: h, path: '{noise:high|low}.layers.{i:int}.attn.{rest:**}', to: '{noise}_noise.{i}.{rest}'}]",
        {"high.pth": WQ, "low.pth": {fqn: value + 100 for fqn, value in WQ.items()}},
        ["high.=high.pth", "low.=low.pth"],
        {f"{name}_noise.{i}.wq.weight": WQ[f"layers.{i}.attn.wq.weight"] + more for name, more in (("high", 0), ("low", 100)) for i in (0, 1)},
    ),
    FileJob(
        "the folders of a pipeline as one file",
        "rules: [{id: vae, path: 'vae.{rest:**}', to: 'first_stage_model.{rest}'}, {id: unet, path: 'unet.{rest:**}', to: 'model.diffusion_model.{rest}'}]",
        {"vae/model.pth": {"conv.weight": OTHER}, "unet/model.pth": WQ},
        ["vae.=vae/model.pth", "unet.=unet/model.pth"],
        {"first_stage_model.conv.weight": OTHER, **under("model.diffusion_model.", WQ)},
    ),
    FileJob(
        "tensor ranks and pipeline stages in folders",
        "params: {offset: [0, 1]}\nrules: [{id: w, path: 'tp{t:int}.pp{s:0..1}.layers.{i:0..0}.w', concat: {dim: 0, by: t}, to: 'h.{i+offset[s]}.w'}]",
        {f"mp_rank_{t:02d}_{s:03d}/m.pt": {"model": {"layers": {"0.w": torch.full((2, 2), 10.0 * t + s)}}, "iteration": 3} for t in (0, 1) for s in (0, 1)},
        "tp{t}.pp{s}.=mp_rank_{t}_{s}/m.pt",
        {f"h.{s}.w": torch.tensor([[0.0, 0.0], [0.0, 0.0], [10.0, 10.0], [10.0, 10.0]]) + s for s in (0, 1)},
        {"root": "model"},
    ),
)  # fmt: skip


def write_files(files: Mapping[str, Any], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / name)


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_files_are_read_as_they_lie(job: FileJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(job.files, tmp_path)
    remapkit.apply(load_rules(job.rules), job.source, "out.safetensors", **job.options)
    made = load_file("out.safetensors")
    assert made.keys() == job.wanted.keys()
    assert all(torch.equal(made[fqn], value) for fqn, value in job.wanted.items())


# name, files, source, options, words
REFUSED: tuple[tuple[str, Mapping[str, Any], Any, Mapping[str, Any], tuple[str, ...]], ...] = (
    ("two state dicts", {"m.pth": {"model": WQ, "ema": {fqn: value + 1 for fqn, value in WQ.items()}}}, "m.pth", {}, ("RK406", "root='model' or root='ema'")),
    ("a root that is not there", {"m.pth": {"model": WQ}}, "m.pth", {"root": "modle"}, ("model",)),
    ("two files with one key", {"a.pth": WQ, "b.pth": WQ}, ["a.pth", "b.pth"], {}, ("layers.0.attn.wq.weight", "a.pth", "b.pth")),
    ("a mount that fits nothing", {"a.pth": WQ}, "tp{t}.=consolidated.{t}.pth", {}, ("consolidated",)),
    ("a gap in ranks", {f"c.{t}.pth": WQ for t in (0, 2)}, "tp{t}.=c.{t}.pth", {}, ("t = 1 is missing", "c.1.pth")),
    ("two keys that become one", {"m.pth": {**under("module.", WQ), **WQ}}, "m.pth", {"strip": ["module"]}, ("layers.0.attn.wq.weight",)),
)  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_files_that_cannot_be_meant_are_refused(row: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files, source, options, words = row
    monkeypatch.chdir(tmp_path)
    write_files(files, tmp_path)
    with pytest.raises(RemapkitError) as caught:
        remapkit.apply(load_rules(RULES), source, "out.safetensors", **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not list(tmp_path.glob("out*"))


def test_shards_without_an_index_are_one_checkpoint_or_what_is_missing_is_named(tmp_path: Path) -> None:
    shards = make_tensors({f"layers.{n}.attn.wq.weight": (2,) for n in range(4)})
    for n, (fqn, value) in enumerate(shards.items()):
        save_file({fqn: value.clone()}, tmp_path / f"model-0000{n + 1}-of-00004.safetensors")
    remapkit.apply(load_rules(RULES), tmp_path, tmp_path / "out" / "o.safetensors", dry_run=True)
    (tmp_path / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(RemapkitError, match="model-00003-of-00004"):
        remapkit.apply(load_rules(RULES), tmp_path, tmp_path / "out" / "o.safetensors", dry_run=True)


def test_the_inverse_of_rules_that_drop_something_names_what_is_lost() -> None:
    rules = load_rules("rules: [{id: a, path: 'a.{n:int}', to: 'b.{n}'}]\ndrop: [mask]")
    with pytest.raises(RemapkitError, match="partial=True"):
        rules.inverse()
    assert set(rules.inverse(partial=True)({"b.0": OTHER})) == {"a.0"}
    assert "Not restored" in remapkit.invert(rules, partial=True).text


def test_a_config_that_names_one_number_in_another_way() -> None:
    text = "params: {experts: {config: [num_experts, num_local_experts]}}\nrules: [{id: e, path: 'e.{i:0..experts-1}', to: 'x.{i}'}]"
    for name in ("num_experts", "num_local_experts"):
        rules = remapkit.loads("remapkit: 1\nname: case\n" + text, config={name: 3})
        assert set(rules({"e.2": OTHER})) == {"x.2"} and rules.match("e.3") == ()


# ------------------------------------------------------------------------------------------ cases that live elsewhere

ELSEWHERE = {
    "small files never replace a source, and keep links": "io/test_io_texts.py::test_no_source_is_written",
    "the parts of a checkpoint that lies in five forms": "sources/test_one_pack.py::test_one_pack_reads_a_checkpoint_however_it_lies",
    "a pure difference of prefix is named": "judge/test_roots.py::test_missing_keys_say_that_only_a_prefix_differs",
    "what a trainer keeps makes no choice": "sources/test_roots.py::test_what_a_trainer_keeps_makes_no_choice",
    "ranks joined from files": "sources/test_joined.py::test_ranks_are_joined_by_value_however_they_are_named",
    "Llama as it is published": "packs/test_llama_ranks.py::test_the_published_files_become_one_model",
    "Megatron-LM and DeepSpeed": "packs/test_ranks_page.py::test_the_commands_of_the_page_make_the_models_that_the_ranks_are_of",
    "scales and alphas through every operation": "judge/test_companions.py::test_what_passes_means_what_it_meant",
    "declared targets": "judge/test_declared_target.py::test_a_result_that_is_not_the_target_is_refused",
    "requirements": "judge/test_require.py::test_a_false_requirement_is_refused",
    "names inside metadata": "judge/test_metadata_names.py::test_names_that_would_be_gone_are_reported",
    "plain text in paths and templates": "language/test_literals.py::test_one_judge_for_every_place",
    "guards that change how a key is split": "prove/test_verdicts.py::test_explain_shows_how_a_guard_cuts_a_key_A40",
    "an index beyond its count": "prove/test_verdicts.py::test_an_index_beyond_its_count_is_written_by_a_plan_A41",
    "hostile patterns": "prove/test_verdicts.py::test_hostile_files_are_answered_within_a_number_of_calls",
    "sizes that are rounded": "prove/test_verdicts.py::test_a_size_is_rounded_only_where_it_says_so",
    "what learn may claim": "learn/test_exam.py::test_no_tensor_is_wrong_and_every_file_is_clean",
    "parameters that an optimizer holds": "load/test_load_in_place.py::test_whatever_has_memory_stays__A26",
    "dropped buffers in a comparison of models": "verification/test_verification.py::test_buffers_that_the_rules_drop_keep_their_values",
    "experts by rank, stacked": "ops/test_ranks.py::test_experts_by_rank_are_renamed_or_stacked_in_the_order_of_rank_and_expert",
    "one file for every depth": "numbers/test_counted.py::test_one_pack_writes_checkpoints_of_every_depth",
    "levels that count backwards": "numbers/test_key_params.py::test_one_file_serves_vaes_of_three_and_of_four_levels",
    "numbers by layer": "numbers/test_lists.py::test_one_rule_splits_every_layer_by_its_own_numbers",
    "no command falls over": "core/test_surroundings.py::test_D11_no_command_falls_over",
}
"""A family of faults, and the test, or the file of tests, that holds it."""


@pytest.mark.parametrize("where", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_said_to_be_tested_elsewhere_is(where: str) -> None:
    file, _, name = where.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    names = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
    assert name in names if name else any(each.startswith("test_") for each in names)
