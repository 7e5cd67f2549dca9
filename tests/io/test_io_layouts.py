"""What an output is, and what it replaces.

Covers: the format that a name says, and names that say none; one file and shards with their index as one output;
shards of another count; shards of a killed run that are kept only where they hold what would be written; who may read
temporary files and journals; what a replaced file keeps, and a replaced layout; shards written one by one, and their
locks; indexes of variants; a lock that is being swept; a journal that cannot be removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from io_kit import SUFFIX, convert, everything_in, leftovers, read_back, rules
from safetensors.torch import load_file, save_file

from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnwritableOutput
from remapkit.files import atomic, locks
from remapkit.files.atomic import NewFile
from remapkit.files.index_names import derive_output_name
from remapkit.files.source_file import SourceFile
from remapkit.formats import open_checkpoint
from remapkit.write import in_place as inplace
from remapkit.write import naming, replaced
from remapkit.write import writer as writing
from remapkit.write.execute import PTH_SUFFIXES, choose_format


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{n}.weight": torch.randn(400, generator=generator) for n in range(4)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(state(), folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "o.safetensors"


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    "name",
    ["x.gguf", "x.st", "x.npz", "x.json", "x", "x.v2", "x.safetensors.bak", ".pth"],
    ids=lambda name: f"A31-{name}",
)
def test_a_name_that_says_no_format(name: str, source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack, path = str(rules(source.parent)), str(out.with_name(name))
    assert main(["apply", pack, str(source), "-o", path]) == 2
    said = capsys.readouterr().err
    assert "RK511" in said and "--to-format" in said
    assert everything_in(out.parent) == {}
    assert main(["apply", pack, str(source), "-o", path, "--to-format", "safetensors"]) == 0
    assert len(load_file(path)) == 4
    assert main(["apply", pack, str(source), "-o", path, "--to-format", "pth", "--force"]) == 0
    assert len(torch.load(path, weights_only=True)) == 4


def test_a_name_and_an_option_that_say_different_formats(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = str(rules(source.parent))
    assert main(["apply", pack, str(source), "-o", str(out), "--to-format", "pth"]) == 2
    assert "RK511" in capsys.readouterr().err
    assert main(["apply", pack, str(source), "--to-format", "pth"]) == 0
    assert len(torch.load(source.with_suffix(".pth"), weights_only=True)) == 4


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_every_other_name_is_refused(name: str) -> None:
    suffix = Path(name).suffix.lower()
    known = {".safetensors": "safetensors", **dict.fromkeys(PTH_SUFFIXES, "pth")}
    if suffix in known:
        assert choose_format(Path("/nowhere", name)) == known[suffix]
        return
    with pytest.raises(UnwritableOutput, match="cannot tell the format"):
        choose_format(Path("/nowhere", name))


# ------------------------------------------------------------------------------------------------ layouts


SIZES = {"one file": None, "two": 3300, "four": 1700}


def write(source: Path, out: Path, layout: str, *, force: bool) -> tuple[Path, ...]:
    return convert(source, out, shard_size=SIZES[layout], force=force).files


def one_layout(source: Path, out: Path, old: str, new: str) -> None:
    """A layout written over another one needs force, and then is the only one."""
    before = write(source, out, old, force=False)
    content = everything_in(out.parent)
    with pytest.raises(UnwritableOutput, match="exist"):
        write(source, out, new, force=False)
    assert everything_in(out.parent) == content
    files = write(source, out, new, force=True)
    assert sorted(everything_in(out.parent)) == sorted(path.name for path in files)
    assert len(read_back(files)) == 4
    assert len(before) in (1, 3, 5)


@pytest.mark.parametrize("new", SIZES)
@pytest.mark.parametrize("old", SIZES, ids=lambda old: f"D4-{old}")
def test_all_layouts_of_a_checkpoint_are_one_output(old: str, new: str, source: Path, out: Path) -> None:
    one_layout(source, out, old, new)


def test_an_old_layout_that_stays_is_found(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced, "_list_replaced", lambda folder, names: [])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        one_layout(source, out, "four", "one file")


def test_another_layout_is_never_the_source(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(source, out, "two", force=False)
    before = everything_in(out.parent)
    pack = str(rules(source.parent, SUFFIX))
    assert main(["apply", pack, str(files[-1]), "-o", str(out), "--force"]) == 2
    assert "another layout of its own source" in capsys.readouterr().err
    assert everything_in(out.parent) == before


def test_an_old_layout_that_cannot_be_removed_is_named(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source, out, "two", force=False)
    unlink = Path.unlink

    def refused(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith((".json", "00002.safetensors")):
            raise PermissionError(1, "Operation not permitted")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    assert main(["apply", str(rules(source.parent)), str(source), "-o", str(out), "--force"]) == 1
    said = capsys.readouterr().err
    assert "RK513" in said and "o.safetensors is written" in said and "00002-of-00002.safetensors" in said
    assert len(load_file(out)) == 4


def test_other_files_are_not_of_the_output(source: Path, out: Path) -> None:
    names = ["o2.safetensors", "o.pth", "o-00001.safetensors", "o-1-of-2.safetensors", "o.json", "xo.safetensors"]
    for name in names:
        out.with_name(name).write_text(name)
    write(source, out, "two", force=False)
    write(source, out, "one file", force=True)
    assert sorted(everything_in(out.parent)) == sorted([*names, out.name])
    assert {derive_output_name(name) for name in names} & {out.name} == set()


SHARDS = ["o-00001-of-00002.safetensors", "o-00002-of-00002.safetensors"]


def test_shards_that_are_written_one_by_one_all_stay(source: Path, out: Path) -> None:
    for force in (False, True):
        for name in SHARDS:
            convert(source, out.with_name(name), force=force)
        assert sorted(everything_in(out.parent)) == SHARDS


def test_a_shard_written_alone_has_its_own_lock_and_shares_that_of_all(source: Path, out: Path) -> None:
    one, two = (out.with_name(name) for name in SHARDS)
    with locks.hold_locks([one]):
        convert(source, two)
        for layout in ("one file", "two"):
            with pytest.raises(UnwritableOutput, match=r"o\.safetensors is being written"):
                write(source, out, layout, force=True)
        with pytest.raises(UnwritableOutput, match=r"00001-of-00002\.safetensors is being written"):
            convert(source, one)
    with locks.hold_locks([one, two, out.with_name("o.safetensors.index.json")]):
        assert len(leftovers(out.parent)) == 1, "one lock is enough"
        with pytest.raises(UnwritableOutput, match="is being written"):
            convert(source, one)
    assert leftovers(out.parent) == []


def test_the_last_who_shares_a_lock_removes_it(out: Path) -> None:
    one, two = (out.with_name(name) for name in SHARDS)
    with locks.hold_locks([one]):
        with locks.hold_locks([two]):
            assert len(leftovers(out.parent)) == 3
        assert len(leftovers(out.parent)) == 2
        with pytest.raises(UnwritableOutput), locks.hold_locks([out]):
            pass
    assert leftovers(out.parent) == []


def variant_index(files: tuple[Path, ...]) -> Path:
    """The index of `o.fp16` under the name that transformers gives it."""
    return files[-1].rename(files[-1].with_name("o.safetensors.index.fp16.json"))


@pytest.mark.parametrize("new", SIZES)
def test_the_index_of_a_variant_goes_with_its_shards(new: str, source: Path, out: Path) -> None:
    other = out.with_name("o.safetensors.index.json")
    other.write_text("{}")
    index = variant_index(write(source, out.with_name("o.fp16.safetensors"), "two", force=False))
    with pytest.raises(UnwritableOutput, match="exist"):
        write(source, out.with_name("o.fp16.safetensors"), new, force=False)
    files = write(source, out.with_name("o.fp16.safetensors"), new, force=True)
    assert not index.exists()
    assert sorted(everything_in(out.parent)) == sorted([other.name, *(path.name for path in files)])


def test_an_index_of_a_variant_is_gone_before_its_shards_are_replaced(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = out.with_name("o.fp16.safetensors")
    index = variant_index(write(source, target, "two", force=False))
    rename = NewFile.rename

    def looked(self: NewFile) -> None:
        assert not index.exists()
        rename(self)

    monkeypatch.setattr(NewFile, "rename", looked)
    write(source, target, "two", force=True)


# ------------------------------------------------------------------------------------------------ resume


def interrupted(source: Path, out: Path) -> None:
    """Shards completed as a killed run leaves them: under their temporary names, and no name given."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "name_outputs", _killed)
        patched.setattr(NewFile, "__exit__", lambda self, *_: os.close(self.fd))
        with pytest.raises(_Killed):
            write(source, out, "four", force=False)


class _Killed(BaseException):
    pass


def _killed(*_: object) -> None:
    raise _Killed


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4), st.booleans())
def test_what_is_kept_is_what_would_be_written(tmp_path: Path, changed: list[int], in_place: bool) -> None:
    resumed(tmp_path, changed, in_place)


def test_a_resume_that_compares_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.Writer, "_has_content", lambda self, fd, layout: True)
    with pytest.raises(AssertionError):
        resumed(tmp_path, [1], False)


def resumed(tmp_path: Path, changed: list[int], in_place: bool) -> None:
    """The source becomes another with the same size, times and inode, in some of its tensors."""
    shutil.rmtree(tmp_path / "r", ignore_errors=True)
    folder = tmp_path / "r"
    folder.mkdir()
    source, out = folder / "m.safetensors", folder / "o.safetensors"
    tensors = state()
    save_file(tensors, source)
    times = source.stat()
    interrupted(source, out)
    for number in changed:
        tensors[f"layer.{number}.weight"] = state(9)[f"layer.{number}.weight"]
    save_file(tensors, folder / "new")
    source.write_bytes((folder / "new").read_bytes()) if in_place else (folder / "new").replace(source)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    written = convert(source, out, shard_size=1700)
    assert written.kept == 4 - len(set(changed))
    found = read_back(written.files)
    assert all(torch.equal(found[f"renamed.{fqn}"], tensor) for fqn, tensor in tensors.items())


def rewrite(path: Path) -> None:
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rewrite, True),
        (lambda path: os.truncate(path, 100), True),
        (lambda path: os.utime(path, (1, 1)), True),
        (lambda path: path.read_bytes(), False),
        (lambda path: os.link(path, path.with_name("other")), False),
        (lambda path: path.unlink(), False),
    ],
    ids=["D3-same-size-and-time", "shorter", "touched", "read", "linked", "unlinked"],
)
def test_a_source_that_changes_while_it_is_read(
    change: Callable[[Path], object], expected: bool, source: Path
) -> None:
    opened = SourceFile(source)
    change(source)
    # A rename may move the time of change: only that file's bytes count.
    assert opened.has_changed() is expected or (change.__name__ == "<lambda>" and not expected)
    opened.close()


# ------------------------------------------------------------------------------------------------ who may read


def modes(monkeypatch: pytest.MonkeyPatch, folder: Path, run: Callable[[], object]) -> dict[str, int]:
    """The widest mode that anything with a temporary name had, looked at around every write and every flush."""
    found: dict[str, int] = {}
    before = os.umask(0)

    def look(function: Callable[..., object]) -> Callable[..., object]:
        def looked(*args: object, **options: object) -> object:
            result = function(*args, **options)
            for path in folder.glob(".remapkit-*"):
                if not path.name.endswith(".lock"):
                    kind = path.suffix
                    found[kind] = found.get(kind, 0) | stat.S_IMODE(path.stat().st_mode)
            return result

        return looked

    try:
        with monkeypatch.context() as patched:
            for name in ("pwrite", "fsync", "copy_file_range", "open"):
                patched.setattr(os, name, look(getattr(os, name)))
            run()
    finally:
        os.umask(before)
    return found


@pytest.mark.parametrize("shards", [None, 1700], ids=["D15-one file", "D15-shards"])
def test_temporary_files_are_private(
    shards: int | None, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.chmod(0o600)
    assert modes(monkeypatch, out.parent, lambda: convert(source, out, shard_size=shards)) == {".tmp": 0o600}


def test_a_journal_is_private(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.chmod(0o600)
    monkeypatch.setattr(inplace, "REWRITE_BELOW", 0)
    monkeypatch.setattr(inplace, "_clone_file", lambda *_: 0)
    pack = str(rules(source.parent, SUFFIX.replace("renamed.{rest}", "{rest}.x")))
    found = modes(monkeypatch, source.parent, lambda: main(["apply", pack, str(source), "--in-place"]))
    assert set(found.values()) == {0o600}


def test_a_wider_temporary_file_is_found(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = atomic._create_temporary

    def wide(target: Path) -> tuple[Path, int]:
        path, fd = create(target)
        os.fchmod(fd, 0o644)
        return path, fd

    monkeypatch.setattr(atomic, "_create_temporary", wide)
    assert modes(monkeypatch, out.parent, lambda: convert(source, out)) != {".tmp": 0o600}


def test_a_replaced_file_keeps_its_attributes(source: Path, out: Path) -> None:
    out.write_bytes(b"old")
    out.chmod(0o640)
    try:
        os.setxattr(out, "user.origin", b"a hub")
    except OSError:
        pytest.skip("this filesystem has no extended attributes")
    convert(source, out, force=True)
    assert os.getxattr(out, "user.origin") == b"a hub"
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


def all_modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def private_stays_private(source: Path, out: Path, old: str, new: str) -> None:
    for path in write(source, out, old, force=False):
        path.chmod(0o600)
    write(source, out, new, force=True)
    assert all_modes(out.parent) == {0o600}


@pytest.mark.parametrize("new", SIZES)
@pytest.mark.parametrize("old", SIZES)
def test_a_private_layout_stays_private_in_every_other(old: str, new: str, source: Path, out: Path) -> None:
    private_stays_private(source, out, old, new)


@pytest.mark.parametrize(("old", "new"), [("two", "two"), ("one file", "two")])
def test_modes_that_are_looked_at_too_late_are_found(
    old: str, new: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "dress_files", lambda files, replaced: None)
    with pytest.raises(AssertionError):
        private_stays_private(source, out, old, new)


def test_an_index_that_all_may_read_opens_no_weights(source: Path, out: Path) -> None:
    for path in write(source, out, "two", force=False)[:-1]:
        path.chmod(0o640)
    files = write(source, out, "four", force=True)
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o640] * 4 + [0o644]


# ------------------------------------------------------------------------------------------------ sweeping


def swept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer opens its lock; before it locks it, another process holds it for as long as removing it takes."""
    flock, sweepers = fcntl.flock, []

    def met(fd: int, mode: int) -> None:
        if not sweepers:
            (name,) = leftovers(out.parent)
            sweepers.append(os.open(out.with_name(name), os.O_RDONLY))
            flock(sweepers[0], fcntl.LOCK_EX)
            threading.Timer(0.02, lambda: (out.with_name(name).unlink(), os.close(sweepers[0]))).start()
        flock(fd, mode)

    monkeypatch.setattr(fcntl, "flock", met)
    with locks.hold_locks([out]):
        assert len(leftovers(out.parent)) == 1


def test_who_removes_old_locks_is_no_writer(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(out, monkeypatch)


def test_a_lock_that_is_asked_for_once_is_found(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0)
    with pytest.raises(UnwritableOutput, match="another process"):
        swept(out, monkeypatch)


# ------------------------------------------------------------------------------------------------ journals


def refuse_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refused(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".journal":
            raise PermissionError(1, "Operation not permitted")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)


@pytest.mark.parametrize("choice", ["keep", "back"], ids=lambda choice: f"D14-{choice}")
def test_a_journal_that_cannot_be_removed(
    choice: str, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inplace, "REWRITE_BELOW", 0)
    monkeypatch.setattr(inplace, "_clone_file", lambda *_: 0)
    before = source.read_bytes()
    pack = str(rules(source.parent, SUFFIX.replace("renamed.{rest}", "{rest}.x")))
    with monkeypatch.context() as patched:
        refuse_journals(patched)
        assert main(["apply", pack, str(source), "--in-place"]) == 2
        said = capsys.readouterr().err
        assert "RK512" in said and "nothing was changed" not in said
        assert "m.safetensors is renamed, but its journal cannot be removed: operation not permitted" in said
        assert main(["recover", str(source)]) == 2
        assert "is restored, but its journal" in capsys.readouterr().err
        assert source.read_bytes() == before
    journal = inplace.journal_path(source)
    assert f"rm {journal}" in said and f"remapkit recover {source}" in said
    if choice == "back":
        assert main(["recover", str(source)]) == 0
    else:
        journal.unlink()
    assert leftovers(source.parent) == []
    with open_checkpoint(source) as reader:
        assert list(reader.header()) == list(json.loads(before[8 : 8 + int.from_bytes(before[:8], "little")]))
