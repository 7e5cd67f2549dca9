"""What packs say about layouts is never remembered longer than it is true, whatever becomes of the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

import remapkit
from remapkit.registry import layout_cache, layouts
from remapkit.registry.fit_layouts import fit_layouts
from remapkit.tensors.spec import StateDictSpec, TensorSpec

PACK = "remapkit: 1\nname: mine\nfrom: m/a\nto: m/b\nsource: {keys: k.json}\nkeep: ['{r:**}']\n"


class Installed:
    """One pack in a folder, the only one that is installed, and a cache of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys, self.pack, self.cache = folder / "k.json", folder / "mine.yaml", folder / "cache"
        self.pack.write_text(PACK)
        self.write("a.0.w")
        self.files = [layouts.PackFile("mine", self.pack, "test")]
        self.made = 0
        make = layouts._make_entry

        def count(pack: layouts.PackFile) -> dict[str, object]:
            self.made += 1
            return make(pack)

        monkeypatch.setattr(layouts, "packs", lambda: tuple(self.files))
        monkeypatch.setattr(layouts, "_make_entry", count)
        monkeypatch.setattr(layout_cache, "SETTLED", 0)
        monkeypatch.setenv("REMAPKIT_CACHE", str(self.cache))
        layouts._KNOWN.clear()

    def write(self, *names: str) -> None:
        self.keys.write_text(json.dumps({name: {"dtype": "F32", "shape": [1]} for name in names}))

    def read(self, *, anew: bool = True) -> layouts.PackLayouts:
        """As a new process reads it, or as the same one does."""
        if anew:
            layouts._KNOWN.clear()
        return layouts.list_pack_layouts()[0]

    @property
    def file(self) -> Path:
        return self.cache / layout_cache.CACHE


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path, monkeypatch)


def test_the_suite_has_a_cache_of_its_own() -> None:
    mine = layout_cache.find_cache_folder()
    assert mine is not None and mine.name.startswith("remapkit-tests-")
    words = "from remapkit.registry.layout_cache import find_cache_folder; print(find_cache_folder())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(mine)


def test_nothing_is_read_twice(installed: Installed) -> None:
    said = installed.read()
    assert (said.source.names, said.source.kinds) == (("m/a",), frozenset({"a.*.w"}))
    assert (said.source.counts, said.source.manifest) == ({"a.*.w": 1}, installed.keys)
    assert installed.read() == installed.read(anew=False) == said
    assert installed.made == 1


KINDS = {
    "other keys": {"b.w"},
    "as long, at the same time": {"b.*.w"},
    "another file": {"b.*.w"},
    "removed": set(),
    "new": {"b.w"},
    "the pack": {"a.*.w"},
}


@pytest.mark.parametrize("anew", [True, False], ids=["another process", "the same process"])
@pytest.mark.parametrize("change", KINDS)
def test_a_change_of_any_file_is_noticed(installed: Installed, change: str, anew: bool) -> None:
    if change == "new":
        installed.keys.unlink()
    installed.read()
    before = installed.pack.stat() if change == "the pack" else None
    if change == "other keys":
        installed.write("b.w")
    elif change == "as long, at the same time":
        old = installed.keys.stat()
        installed.write("b.0.w")
        os.utime(installed.keys, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert (installed.keys.stat().st_mtime_ns, installed.keys.stat().st_size) == (old.st_mtime_ns, old.st_size)
    elif change == "another file":
        other = installed.keys.with_name("other.json")
        installed.keys.rename(other)
        installed.write("b.1.w")
    elif change == "removed":
        installed.keys.unlink()
    elif change == "the pack":
        installed.pack.write_text(PACK.replace("m/a", "m/c"))
        assert before is not None and installed.pack.stat().st_size == before.st_size
    if change == "new":
        assert installed.read(anew=anew).source.kinds == frozenset()
        installed.write("b.w")
    said = installed.read(anew=anew).source
    assert said.kinds == KINDS[change]
    assert said.names == (("m/c",) if change == "the pack" else ("m/a",))


def test_a_file_that_has_just_changed_is_not_trusted(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the resolution of the clock it may change again, and look the same: as with a clock that stands."""
    monkeypatch.setattr(layout_cache, "SETTLED", 3_600_000_000_000)
    stamp = layout_cache.stamp_file
    stood = {}
    monkeypatch.setattr(layout_cache, "stamp_file", lambda path: stood.setdefault(str(path), stamp(path)))
    monkeypatch.setattr(layouts, "stamp_file", layout_cache.stamp_file)
    assert installed.read().source.kinds == {"a.*.w"}
    installed.write("b.w")
    assert installed.read().source.kinds == {"b.w"}
    made = installed.made
    installed.read(anew=False)
    assert installed.made == made, "one process does not read it at every call"
    now = time.time_ns() + 2 * 3_600_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    installed.read(anew=False)
    installed.read(anew=False)
    installed.read()
    assert installed.made == made + 1, "once settled, it is read once more"


def whole(text: str) -> bytes:
    """A cache that is not damaged."""
    return f"{zlib.crc32(text.encode()):08x}\n{text}".encode()


def test_a_damaged_cache_is_no_cache(installed: Installed) -> None:
    said = installed.read()
    good = installed.file.read_bytes()
    assert good.count(b'"a.*.w"') == 1
    entry = json.loads(good.partition(b"\n")[2])
    for damaged in (
        b"",
        b"[]",
        good[:-1],
        good[: len(good) // 2],
        good.replace(b"a.*.w", b"b.*.w"),
        good.partition(b"\n")[2],
        b"\xff" * 100,
        whole("[]"),
        whole("[" * 100_000),
        whole(json.dumps({str(installed.pack): 3})),
        whole(json.dumps({str(installed.pack): {"files": 3}})),
        whole(json.dumps({key: {**each, "sides": 3} for key, each in entry.items()})),
        whole(json.dumps({key: {**each, "sides": each["sides"][:1]} for key, each in entry.items()})),
        whole(json.dumps({key: {**each, "made": "now"} for key, each in entry.items()})),
    ):
        installed.file.write_bytes(damaged)
        made = installed.made
        assert installed.read() == said
        assert installed.made == made + 1
        assert installed.file.read_bytes().partition(b"\n")[2].count(b'"a.*.w"') == 1
        assert [path.name for path in installed.cache.iterdir()] == [layout_cache.CACHE]


@pytest.mark.parametrize("place", ["a file", "below a file", "empty", "a folder of the name"])
def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    installed: Installed, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "place"
    if place in ("a file", "below a file"):
        folder.write_text("")
    if place == "a folder of the name":
        (folder / layout_cache.CACHE).mkdir(parents=True)
    chosen = {"below a file": str(folder / "x"), "empty": ""}.get(place, str(folder))
    monkeypatch.setenv("REMAPKIT_CACHE", chosen)
    assert installed.read().source.kinds == {"a.*.w"}
    assert installed.read().source.kinds == {"a.*.w"}
    assert installed.made == 2
    assert not folder.is_dir() or [path.name for path in folder.iterdir()] == [layout_cache.CACHE]


def test_packs_come_and_go(installed: Installed, tmp_path: Path) -> None:
    installed.read()
    other = tmp_path / "other.yaml"
    other.write_text(PACK.replace("mine", "other").replace("m/a", "m/z"))
    installed.files.append(layouts.PackFile("other", other, "test"))
    assert [each.pack for each in layouts.list_pack_layouts()] == ["mine", "other"]
    assert installed.made == 2
    del installed.files[0]
    assert [each.pack for each in layouts.list_pack_layouts()] == ["other"]
    installed.pack.unlink()
    third = tmp_path / "third.yaml"
    third.write_text(PACK.replace("mine", "third"))
    installed.files.append(layouts.PackFile("third", third, "test"))
    assert [each.pack for each in layouts.list_pack_layouts()] == ["other", "third"]
    text = installed.file.read_bytes().partition(b"\n")[2]
    assert sorted(Path(key).stem for key in json.loads(text)) == ["other", "third"]


def test_many_writers_leave_a_whole_cache(installed: Installed) -> None:
    entries = {str(installed.pack): {"made": 0, "files": [], "sides": ["x" * 200_000]}}
    seen: list[bool] = []

    def write() -> None:
        for _ in range(10):
            layout_cache.write_cache(entries)
            seen.append(layout_cache.read_cache() == entries)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 40
    assert [path.name for path in installed.cache.iterdir()] == [layout_cache.CACHE]


def test_the_answer_is_from_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warm cache an exact answer reads no rule file and no manifest."""
    header = remapkit.header(Path(remapkit.__file__).parent.parent / "rules" / "keys" / "flux_bfl.json")
    wanted = fit_layouts(header)
    monkeypatch.setattr("remapkit.registry.fit_layouts._read_manifest", lambda manifest: pytest.fail("read"))
    monkeypatch.setattr("remapkit.registry.pack_rules.PackRules._compile_once", lambda *args: pytest.fail("compiled"))
    assert fit_layouts(header) == wanted
    assert [fit.layout for fit in wanted.fits] == ["flux/bfl"]
    lora = {
        f"lora_unet_double_blocks_{n}_img_mlp_0.lora_{end}.weight": TensorSpec("F32", (2, 2))
        for n in range(9)
        for end in ("up", "down")
    }
    assert fit_layouts(StateDictSpec(lora)).known


def test_a_process_that_identifies_loads_little() -> None:
    """What is slow to import has no part in an exact answer."""
    words = (
        "import sys; from remapkit.cli.app import main; main(['identify', sys.argv[1]]); "
        "print([name for name in sys.modules if name.startswith(tuple(sys.argv[2:]))])"
    )
    slow = ["yaml", "torch", "rich", "numpy", "jsonschema"]
    slow += [f"remapkit.{each}" for each in ("proofs", "plans", "rules", "rulefile", "patterns", "write")]
    root = Path(remapkit.__file__).parent.parent
    command = [sys.executable, "-c", words, str(root / "rules" / "keys" / "flux_bfl.json"), *slow]
    for _ in range(2):  # the first may fill the cache
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]"
