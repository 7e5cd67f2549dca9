"""Packs and plugins are found by name, and never taken for one another."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from remapkit.diagnostics.errors import UsageError
from remapkit.models import reference
from remapkit.registry import installed as library


def install_distribution(monkeypatch: pytest.MonkeyPatch, folder: Path, *points: tuple[str, str]) -> None:
    """Put a distribution with these entry points on the path, as `pip install` leaves it."""
    info = folder / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    for name, text in describe_distribution(*points).items():
        (info / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def describe_distribution(*points: tuple[str, str]) -> dict[str, str]:
    listed = "".join(f"{name} = {value}\n" for name, value in points)
    metadata = "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n"
    return {"METADATA": metadata, "entry_points.txt": f"[{library.GROUP}]\n{listed}"}


def test_the_shipped_plugin_and_packs_are_found() -> None:
    assert [plugin.name for plugin in library.plugins()] == ["wan"]
    assert {"wan22_pth", "wan22_diffusers"} <= {pack.name for pack in library.packs()}


def test_no_package_named_wan_becomes_importable() -> None:
    reference.resolve_reference("wan.vae:WanVAE")
    assert importlib.util.find_spec("wan") is None


def test_upstreams_own_package_and_the_plugin_live_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan" / "__init__.py").write_text("UPSTREAM = True\n")
    code = (
        "import wan\n"
        "from remapkit.models.reference import resolve_reference\n"
        "vae = resolve_reference('wan.vae:WanVAE')\n"
        "assert wan.UPSTREAM and vae.__module__ == 'remapkit.plugins.wan.vae', vae.__module__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment(tmp_path))


def _environment(*folders: Path) -> dict[str, str]:
    import os

    root = Path(library.__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, root)))}


def test_two_plugins_of_one_name_are_refused_with_both_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_distribution(monkeypatch, tmp_path, ("wan", "somebody.wan"))
    with pytest.raises(UsageError) as caught:
        library.plugins()
    assert "two plugins are named 'wan'" in str(caught.value)
    assert "somebody.wan" in str(caught.value)
    assert str(library.find_home("plugins")) in str(caught.value)


def test_a_plugin_from_an_entry_point_brings_models_and_packs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "their_plugin"
    (package / "rules").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text("class Net: ...\n")
    (package / "rules" / "theirs.yaml").write_text("remapkit: 1\nname: theirs\nkeep: ['{all:**}']\n")
    install_distribution(monkeypatch, tmp_path, ("their", "their_plugin"))
    assert reference.resolve_reference("their.model:Net").__name__ == "Net"
    assert library.find_rules("theirs") == package / "rules" / "theirs.yaml"
    assert {pack.origin for pack in library.packs() if pack.name == "theirs"} == {"plugin their"}


def test_a_plugin_in_an_archive_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = tmp_path / "theirs.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, text in describe_distribution(("their", "their_plugin")).items():
            file.writestr(f"theirs-1.0.dist-info/{name}", text)
    monkeypatch.syspath_prepend(str(archive))
    assert {plugin.name for plugin in library.plugins()} == {"their", "wan"}


def test_a_plugin_that_only_another_finder_knows_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_distribution(monkeypatch, tmp_path, ("their", "their_plugin"))
    [found] = importlib.metadata.distributions(name="theirs")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    assert [plugin.name for plugin in library.plugins()] == ["wan"]

    class Finder(importlib.metadata.DistributionFinder):
        def find_spec(self, *_: object) -> None: ...

        def find_distributions(self, context: object = None) -> Iterator[importlib.metadata.Distribution]:
            yield found

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert [plugin.name for plugin in library.plugins()] == ["their", "wan"]


def test_a_pack_is_found_without_reading_every_distribution(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from remapkit.registry.installed import find_rules\n"
        "assert find_rules('wan22_pth').name == 'wan22_pth.yaml'\n"
        "assert 'importlib.metadata' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment(tmp_path))


def test_two_packs_of_one_name_are_refused_with_both_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "clashing_plugin"
    (package / "rules").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "rules" / "wan22_pth.yaml").touch()
    install_distribution(monkeypatch, tmp_path, ("clashing", "clashing_plugin"))
    with pytest.raises(UsageError) as caught:
        library.find_rules("wan22_pth")
    assert "two packs are named 'wan22_pth'" in str(caught.value)
    assert str(package) in str(caught.value)


def test_a_misspelt_pack_gets_the_near_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'wan22_pth'"):
        library.find_rules("wan22_pht")


def test_a_path_is_never_taken_for_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert library.find_rules("wan22_pth.yaml") == Path("wan22_pth.yaml")
    (tmp_path / "local").write_text("")
    assert library.find_rules("local") == Path("local")


def test_the_wheel_layout_is_found_without_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "remapkit"
    (package / "_bundled" / "rules").mkdir(parents=True)
    (tmp_path / "site-packages" / "rules").mkdir()  # a stranger's folder, not ours
    monkeypatch.setattr(library, "_PACKAGE", package)
    assert library.find_home("rules") == package / "_bundled" / "rules"
