"""A pack whose rules cannot be compiled decides nothing about a layout, is compiled once, and is named once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import remapkit
from remapkit.cli.app import main
from remapkit.registry import layout_cache, layouts, load
from remapkit.registry.fit_layouts import Verdict, fit_layouts
from remapkit.registry.layouts import PackFile
from remapkit.rules import compile as compiling
from remapkit.tensors.spec import StateDictSpec, TensorSpec

GOOD, NARROW = "keep: ['h.{i:int}.w', 'out']\n", "keep: ['h.{i:0..1}.w', 'out']\n"
BROKEN = "keep: ['h.{i:int}.w', 'out', 'x.{i']\n"
UNCOUNTABLE = "params: {n: {count: 'h.{i:int}.w', value: 2}}\nkeep: ['h.{i:0..n/2}.w', 'out']\n"


def make(*names: str) -> StateDictSpec:
    return StateDictSpec({name: TensorSpec("F32", (2,)) for name in names})


LARGER = make("h.0.w", "h.1.w", "h.2.w", "out")


@pytest.fixture(params=["a cache", "no cache"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REMAPKIT_CACHE", str(tmp_path / "cache") if request.param == "a cache" else "")
    monkeypatch.setattr(layout_cache, "SETTLED", 0)
    layouts._KNOWN.clear()
    return tmp_path


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, bodies: Sequence[str], sizes: int = 1) -> None:
    """Install packs that read one layout, each with `sizes` manifests of its own in further packs that write it."""
    files = []
    for number, body in enumerate(bodies):
        entries = {name: {"dtype": "F32", "shape": [2]} for name in ("h.0.w", "h.1.w", "out")}
        (folder / "a.json").write_text(json.dumps(entries))
        text = f"remapkit: 1\nname: p{number}\nfrom: m/a\nsource: {{keys: a.json}}\n{body}"
        (folder / f"p{number}.yaml").write_text(text)
        files.append(PackFile(f"p{number}", folder / f"p{number}.yaml", "test"))
    for size in range(sizes - 1):
        entries = {name: {"dtype": "F32", "shape": [2 + size]} for name in ("h.0.w", "h.1.w", "out")}
        (folder / f"w{size}.json").write_text(json.dumps(entries))
        text = f"remapkit: 1\nname: w{size}\nto: m/a\ntarget: {{keys: w{size}.json}}\nkeep: ['{{r:**}}']\n"
        (folder / f"w{size}.yaml").write_text(text)
        files.append(PackFile(f"w{size}", folder / f"w{size}.yaml", "test"))
    monkeypatch.setattr(layouts, "packs", lambda: tuple(files))


@pytest.mark.parametrize(
    ("bodies", "verdict", "foreign", "skipped"),
    [
        ((GOOD,), Verdict.OTHER_SIZE, (), ()),
        ((NARROW,), Verdict.NEAR, ("h.2.w",), ()),
        ((BROKEN,), Verdict.NEAR, (), ("p0",)),
        ((BROKEN, GOOD), Verdict.OTHER_SIZE, (), ("p0",)),
        ((GOOD, BROKEN), Verdict.OTHER_SIZE, (), ()),
        ((BROKEN, NARROW), Verdict.NEAR, ("h.2.w",), ("p0",)),
        ((NARROW, BROKEN), Verdict.NEAR, ("h.2.w",), ("p1",)),
        ((BROKEN, BROKEN), Verdict.NEAR, (), ("p0", "p1")),
    ],
)
def test_the_other_packs_decide(
    bodies: Sequence[str],
    verdict: Verdict,
    foreign: tuple[str, ...],
    skipped: tuple[str, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(folder, monkeypatch, bodies)
    for _ in range(2):  # from the files, then from the cache
        layouts._KNOWN.clear()
        found = fit_layouts(LARGER)
        (fit,) = found.fits or found.near
        assert (fit.verdict, fit.foreign, tuple(found.broken)) == (verdict, foreign, skipped)


def test_a_broken_pack_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(folder, monkeypatch, (BROKEN,), sizes=5)
    fit_layouts(LARGER)  # the cache is full
    compiled = []
    compile_rules = compiling.compile_rules
    monkeypatch.setattr(compiling, "compile_rules", lambda *args: compiled.append(args) or compile_rules(*args))
    assert fit_layouts(LARGER).broken.keys() == {"p0"}
    assert len(compiled) == 1


def test_an_exact_layout_asks_no_pack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(folder, monkeypatch, (BROKEN,))
    monkeypatch.setattr(load, "load_rules", lambda *args: pytest.fail("compiled"))
    (fit,) = fit_layouts(make("h.0.w", "h.1.w", "out")).fits
    assert fit.verdict is Verdict.EXACT


@pytest.mark.parametrize("command", ["identify", "inspect", "convert"])
def test_every_command_names_it_once(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, monkeypatch, (BROKEN,), sizes=4)
    manifest = folder / "larger.json"
    manifest.write_text(json.dumps({name: {"dtype": "F32", "shape": [2]} for name in LARGER}))
    more = ["--to", "m/a", "--dry-run"] if command == "convert" else []
    code = main([command, str(manifest), *more])
    said = "".join(capsys.readouterr())
    assert code == {"identify": 1, "inspect": 0, "convert": 2}[command]
    assert said.count("the pack p0 was skipped: its rules cannot be compiled") == 1
    assert "RK131" in said or "RK120" in said, said


def test_what_python_gets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(folder, monkeypatch, (BROKEN,))
    manifest = folder / "larger.json"
    manifest.write_text(json.dumps({name: {"dtype": "F32", "shape": [2]} for name in LARGER}))
    found = remapkit.identify(manifest)
    assert [(each.code, each.values["pack"]) for each in found.diagnostics] == [("RK695", "p0")]
    assert found.diagnostics[0].help == ("`remapkit lint p0` shows every problem of it",)


def test_rules_that_cannot_be_compiled_for_what_is_counted_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder, monkeypatch, (UNCOUNTABLE, GOOD))
    found = fit_layouts(LARGER)
    assert [fit.verdict for fit in found.fits] == [Verdict.OTHER_SIZE]
    assert tuple(found.broken) == ("p0",)
