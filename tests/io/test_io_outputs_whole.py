"""Several outputs: all of them or none, whatever fails, and one message for each mistake."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from io_kit import KEEP, everything_in, read_back, rules
from safetensors.torch import save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import OutputExists, UnwritableOutput
from remapkit.files import atomic


@pytest.fixture
def case(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
    """A source of 3 x 100 kB, and three outputs of which the second is in another folder."""
    source = tmp_path / "in.safetensors"
    save_file({f"{part}.w": torch.randn(25_000) for part in "abc"}, source)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    places = {"a.": "one/a.pth", "b.": "two/b.safetensors", "c.": "one/c.pth"}
    yield source, {prefix: tmp_path / place for prefix, place in places.items()}


def see(outputs: Mapping[str, Path]) -> list[dict[str, bytes]]:
    return [everything_in(folder) for folder in sorted({path.parent for path in outputs.values()})]


def stop_in_second(error: BaseException) -> Callable[[int, int], None]:
    """A progress that raises within the second of three files."""

    def progress(done: int, total: int) -> None:
        if 0.45 * total < done < 0.6 * total:
            raise error

    return progress


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"RK504.*no space left on .*/two after 1\d\d of 30\d kB"),
        (OSError(errno.EIO, "Input/output error"), "RK509"),
        (KeyboardInterrupt(), None),
    ],
)
def test_an_error_in_the_second_file_changes_nothing(
    old: bool, error: BaseException, match: str | None, case: Any, keep: remapkit.RuleSet, monkeypatch: Any
) -> None:
    from remapkit.files import copy as copying

    monkeypatch.setattr(copying, "STEP", 10_000)
    source, outputs = case
    if old:
        remapkit.apply(keep, source, outputs)
        save_file({f"{part}.w": torch.randn(25_000) for part in "abc"}, source)
    before = see(outputs)
    with pytest.raises(UnwritableOutput if match else KeyboardInterrupt) as caught:
        remapkit.apply(keep, source, outputs, force=old, progress=stop_in_second(error))
    if match:
        assert re.search(match, str(caught.value))
    assert see(outputs) == before


def refuse_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    rename, count = atomic.NewFile.rename, itertools.count(1)

    def refused(self: atomic.NewFile) -> None:
        if next(count) == number:
            raise OSError(errno.EIO, "Input/output error")
        rename(self)

    monkeypatch.setattr(atomic.NewFile, "rename", refused)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_rename_that_the_system_refuses_is_undone(
    number: int, old: bool, shards: bool, case: Any, keep: remapkit.RuleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outputs = case
    options: dict[str, Any] = {"shard_size": 1000} if shards else {}
    if shards:
        outputs = {prefix: path.with_suffix(".safetensors") for prefix, path in outputs.items()}
        save_file({f"{part}.{n}": torch.randn(200) for part in "abc" for n in range(2)}, source)
    if old:
        remapkit.apply(keep, source, outputs, **options)
    before = see(outputs)
    refuse_rename(monkeypatch, number)
    with pytest.raises(UnwritableOutput, match="RK509"):
        remapkit.apply(keep, source, outputs, force=old, **options)
    assert see(outputs) == before


def test_without_hard_links_the_message_names_what_was_replaced(
    case: Any, keep: remapkit.RuleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outputs = case
    remapkit.apply(keep, source, outputs)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    refuse_rename(monkeypatch, 3)
    with pytest.raises(UnwritableOutput) as caught:
        remapkit.apply(keep, source, outputs, force=True)
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK514" and problem.title.startswith("2 of 3 files were replaced")
    assert problem.notes == (f"{outputs['a.']}\n{outputs['b.']}",)
    assert all(read_back([path]) for path in outputs.values()), "each one is whole"


def test_existing_outputs_are_all_named_and_none_is_touched(case: Any, keep: remapkit.RuleSet) -> None:
    source, outputs = case
    for prefix in ("a.", "b."):
        outputs[prefix].write_text("old")
    before = see(outputs)
    with pytest.raises(OutputExists) as caught:
        remapkit.apply(keep, source, outputs)
    assert str(outputs["a."]) in str(caught.value) and str(outputs["b."]) in str(caught.value)
    assert "2 of 3 outputs exist" in str(caught.value)
    outputs["b."].unlink()
    with pytest.raises(OutputExists, match=r"a\.pth exists"):
        remapkit.apply(keep, source, outputs)
    outputs["a."].unlink()
    assert see(outputs) == [{}, {}] and before[0] == {"a.pth": b"old"}


def test_missing_folders_are_all_named(case: Any, keep: remapkit.RuleSet) -> None:
    source, outputs = case
    for folder in {path.parent for path in outputs.values()}:
        shutil.rmtree(folder)
    with pytest.raises(UnwritableOutput, match=r"one and .*two") as caught:
        remapkit.apply(keep, source, outputs)
    assert "mkdir -p" in str(caught.value)


WRONG = [
    (["a.=1.pth", "b.=2.pth"], "RK515", "1 of 3 keys goes to no output"),
    (["a.=1.pth", "b.=2.pth", "c.=3.pth", "d.=4.pth"], "RK516", "no key begins with 'd.'"),
    (["a.=1.pth", "b.=2.pth", "c.=3.pth", "rest.pth"], "RK516", "other outputs take every key"),
    (["a.=1.pth", "b.=./1.pth", "c.=2.pth"], "RK517", "would write 1.pth"),
    (["a=1.pth", "2.pth"], "RK518", "end the prefix with a dot"),
    (["a.w=1.pth", "2.pth"], "RK518", "use a shorter prefix"),
    (["a.=1.gguf", "2.pth"], "RK511", "cannot tell the format"),
    (["a.={t}.pth", "2.pth"], "RK426", ""),
    (["a.=in.safetensors", "2.pth"], "RK501", "same file"),
    (["a.=", "2.pth"], "RK426", ""),
    (["a.=1.safetensors", "2.pth", "--shard-size", "1MB"], "RK505", "2.pth"),
    (["a.=1.pth", "2.safetensors", "--to-format", "pth"], "RK511", "2.safetensors"),
    (["a.=in.pth", "2.pth", "--in-place"], "RK609", "--output"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG)
@pytest.mark.parametrize("dry", [False, True])
def test_wrong_outputs_have_one_message_and_write_nothing(
    arguments: list[str], code: str, said: str, dry: bool, case: Any, monkeypatch: Any, capsys: Any
) -> None:
    source, _ = case
    monkeypatch.chdir(source.parent)
    pack = str(rules(source.parent, KEEP))
    before = everything_in(source.parent)
    cut = next((n for n, text in enumerate(arguments) if text.startswith("--")), len(arguments))
    outputs, options = [f"-o{text}" for text in arguments[:cut]], arguments[cut:]
    if dry and code in ("RK501", "RK505"):
        return  # a dry run looks at names, not at the disk or the layout
    assert main(["apply", pack, source.name, *outputs, *options, *(["--dry-run"] if dry else [])]) == 2
    errors = capsys.readouterr().err
    assert f"error[{code}]" in errors and said in errors and errors.count("error[") == 1
    assert everything_in(source.parent) == before


def test_a_target_without_the_prefixes_is_named_as_such(case: Any, keep: remapkit.RuleSet) -> None:
    source, outputs = case
    target = {"w": remapkit.TensorSpec("F32", (25_000,))}
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.apply(keep, source, outputs, target_keys=target)
    problems = {each.code: each for each in caught.value.diagnostics}
    assert set(problems) == {"RK310", "RK311"}
    assert "before the prefixes of the outputs (a., b. and c.) are taken off" in problems["RK311"].help[0]
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.apply(keep, source, source.with_name("o.pth"), target_keys=target)
    assert "prefixes of the outputs" not in str(caught.value)


def test_a_dry_run_says_what_goes_where(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, outputs = case
    options = [f"-o{prefix}={path}" for prefix, path in outputs.items()]
    assert main(["apply", str(rules(source.parent, KEEP)), str(source), *options, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(f"{path}: 1 tensor" in said for path in outputs.values())
    assert see(outputs) == [{}, {}]
