"""What can go wrong while writing: one clear message each, the exit code, and nothing changed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from io_kit import SUFFIX, convert, everything_in, leftovers, raw, rules
from safetensors.torch import load_file, save_file

from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnreadableCheckpoint, UnwritableOutput
from remapkit.files import atomic
from remapkit.files import copy as copying
from remapkit.formats import Reader, open_checkpoint
from remapkit.formats import single_file as opening
from remapkit.ops.dtype import AddOp
from remapkit.plans.moves import Move, RuleRef
from remapkit.write.execute import write_checkpoint

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "m.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.randn(300_000), "b": torch.randn(100_000)}, path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "o.safetensors"


def apply(source: Path, *arguments: object) -> int:
    return main(["apply", str(rules(source.parent)), str(source), *map(str, arguments)])


def refused(
    capsys: pytest.CaptureFixture[str], words: str, source: Path, *arguments: object, folder: Path | None = None
) -> None:
    """Exit 2, one message with these words on stderr, and every file as it was."""
    rules(source.parent)
    watched = [source.parent, *([folder] if folder else [])]
    before = [everything_in(each) for each in watched]
    assert apply(source, *arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("error[") == 1 and shown.out == ""
    assert [everything_in(each) for each in watched] == before


# ------------------------------------------------------------------------------------------------ the target


def test_the_output_exists(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.write_text("precious")
    refused(capsys, f"{out} exists (use --force)", source, "-o", out, folder=out.parent)
    assert apply(source, "-o", out, "--force") == 0
    assert len(load_file(out)) == 2


def test_a_file_that_appears_while_writing_is_not_replaced(source: Path, out: Path) -> None:
    with pytest.raises(UnwritableOutput, match=r"exists \(use force=True\)"):
        convert(source, out, progress=lambda done, total: out.write_text("precious"))
    assert everything_in(out.parent) == {out.name: b"precious"}


def test_a_shard_that_appears_while_writing_takes_the_named_ones_back(source: Path, out: Path) -> None:
    second = out.parent / "o-00002-of-00002.safetensors"
    with pytest.raises(UnwritableOutput, match=r"o-00002-of-00002.safetensors exists"):
        convert(source, out, shard_size=1_000_000, progress=lambda done, total: second.write_text("precious"))
    assert everything_in(out.parent) == {second.name: b"precious"}


def test_renaming_without_the_system_call(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(atomic, "_rename_noreplace", missing)
    convert(source, out)
    with pytest.raises(UnwritableOutput, match=r"exists \(use force=True\)"):
        convert(source, out.with_name("p.safetensors"), progress=lambda *_: out.with_name("p.safetensors").touch())
    assert sorted(everything_in(out.parent)) == ["o.safetensors", "p.safetensors"]
    assert out.stat().st_nlink == 1


def test_source_and_target_are_one_file(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "source and target are the same file"
    refused(capsys, words, source, "-o", source, "--force")
    out.symlink_to(source)
    refused(capsys, words, source, "-o", out, "--force")
    out.unlink()
    os.link(source, out)
    refused(capsys, words, source, "-o", out, "--force", folder=out.parent)
    refused(capsys, "--in-place", source, "-o", source, "--force")


def test_no_directory_and_a_directory(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "there is no directory", source, "-o", out.parent / "missing" / "o.safetensors")
    refused(capsys, "is a directory", source, "-o", out.parent)
    refused(capsys, "is a directory", source, "-o", out.parent, "--force")
    os.mkfifo(out)
    refused(capsys, "is not a regular file", source, "-o", out, "--force")


def test_a_folder_that_cannot_be_written(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.parent.chmod(0o555)
    for folder in source.parents:
        if os.geteuid() == 0 and folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    rules(source.parent)
    source.chmod(0o644)
    if os.geteuid():
        refused(capsys, f"cannot write in {out.parent}: permission denied", source, "-o", out)
        return
    os.seteuid(NOBODY)
    try:
        code = main(["apply", str(source.parent / "rules.yaml"), str(source), "-o", str(out)])
    finally:
        os.seteuid(0)
    assert code == 2
    assert f"cannot write in {out.parent}: permission denied" in capsys.readouterr().err
    assert everything_in(out.parent) == {}


def test_a_shard_that_is_missing(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in" / "m.safetensors"
    source.parent.mkdir()
    save_file({"a": torch.randn(300), "b": torch.randn(300)}, source)
    convert(source, source.parent / "s.safetensors", shard_size=1300)
    (source.parent / "s-00002-of-00002.safetensors").unlink()
    index = source.parent / "s.safetensors.index.json"
    refused(capsys, "shard 's-00002-of-00002.safetensors' is missing", index, "-o", out, folder=out.parent)


# ------------------------------------------------------------------------------------------------ space


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 3 MB, where root can mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small filesystem")
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_little_space_is_said_before_anything_is_written(
    small: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "filler").write_bytes(b"x" * 2_000_000)
    out = small / "o.safetensors"
    refused(
        capsys,
        f"not enough space for o.safetensors: 1.60 MB needed, {small} has 1.14 MB free",
        source,
        "-o",
        out,
        folder=small,
    )
    assert leftovers(small) == []


def test_a_disk_that_fills_up_meanwhile(small: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "STEP", 400_000)

    def fill(done: int, total: int) -> None:
        if done > 400_000:
            with (small / "filler").open("ab") as file:
                while True:
                    try:
                        os.write(file.fileno(), b"x" * 4096)
                    except OSError:
                        return

    (small / "o.safetensors").write_text("old")
    with pytest.raises(UnwritableOutput) as caught:
        convert(source, small / "o.safetensors", progress=fill, force=True)
    assert caught.value.exit_code == 2
    title = caught.value.diagnostics[0].title
    assert title.startswith(f"no space left on {small} after ") and title.endswith(" of 1.60 MB; nothing was changed")
    assert (small / "o.safetensors").read_text() == "old"
    assert leftovers(small) == []


@pytest.mark.parametrize("options", [[], ["--shard-size", "1MB"], ["--force"]])
def test_a_limit_on_the_size_of_files(options: list[str], source: Path, out: Path) -> None:
    if options == ["--force"]:
        out.write_text("old")
    before = everything_in(out.parent)
    arguments = ["apply", str(rules(source.parent)), str(source), "-o", str(out), *options]
    done = subprocess.run(
        [sys.executable, "-m", "remapkit", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert f"no space left on {out.parent} after " in done.stderr and "; nothing was changed" in done.stderr
    assert "the limit on the size of a file was reached" in done.stderr
    assert everything_in(out.parent) == before


def test_a_disk_that_fails(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UnwritableOutput, match="the disk failed") as caught:
        convert(source, out)
    assert caught.value.exit_code == 1 and caught.value.diagnostics[0].code == "RK509"
    assert everything_in(out.parent) == {}


# ------------------------------------------------------------------------------------------------ meanwhile


def change(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")
    os.utime(path, ns=(1, 1))


def shorten(path: Path) -> None:
    os.truncate(path, 10_000)


@pytest.mark.parametrize(
    ("meddle", "words"),
    [
        (change, "m.safetensors changed while it was read; nothing was written"),
        (shorten, "m.safetensors became shorter while it was read; nothing was written"),
    ],
)
@pytest.mark.parametrize("shard_size", [None, 1_300_000])
def test_a_source_that_changes(
    meddle: Callable[[Path], None],
    words: str,
    shard_size: int | None,
    source: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "STEP", 100_000)
    with pytest.raises(UnreadableCheckpoint) as caught:
        convert(source, out, shard_size=shard_size, progress=lambda *_: meddle(source))
    assert caught.value.diagnostics[0].title == words and caught.value.exit_code == 2
    assert everything_in(out.parent) == {}


def test_a_source_that_loses_its_name_is_still_read(source: Path, out: Path) -> None:
    expected = load_file(source)
    convert(source, out, progress=lambda *_: source.unlink(missing_ok=True))
    found = load_file(out)
    assert {name: raw(found[f"renamed.{name}"]) for name in expected} == {
        name: raw(expected[name]) for name in expected
    }


def test_a_folder_that_vanishes(source: Path, out: Path) -> None:
    with pytest.raises(UnwritableOutput) as caught:
        convert(source, out, progress=lambda *_: shutil.rmtree(out.parent, ignore_errors=True))
    assert caught.value.diagnostics[0].title == f"there is no directory {out.parent}"


# ------------------------------------------------------------------------------------------------ who else has it


def test_the_mode_of_the_replaced_file_is_kept(source: Path, out: Path) -> None:
    for mode in (0o600, 0o644, 0o664):
        out.write_text("old")
        out.chmod(mode)
        convert(source, out, force=True)
        assert stat.S_IMODE(out.stat().st_mode) == mode


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_umask_says(umask: int, source: Path, out: Path) -> None:
    before = os.umask(umask)
    try:
        convert(source, out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link_and_another_name_keeps_its_data(source: Path, out: Path) -> None:
    real, other = out.parent / "real", out.parent / "other"
    real.write_text("old")
    os.link(real, other)
    out.symlink_to(real)
    convert(source, out, force=True)
    assert out.is_symlink() and len(load_file(real)) == 2
    assert other.read_text() == "old"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_output_over_a_file_that_is_mapped_is_safe(suffix: str, tmp_path: Path) -> None:
    """Whoever has the old file mapped keeps the old bytes: torch's own writer would kill such a reader."""
    whole = torch.randn(400, 300)
    torch.save({"w": whole.T}, tmp_path / "m.pth")
    target = tmp_path / f"t{suffix}"
    old = {"old": torch.arange(50_000)}
    torch.save(old, target) if suffix == ".pth" else save_file(old, target)
    mapped = torch.load(target, mmap=True, weights_only=True) if suffix == ".pth" else load_file(target)
    convert(tmp_path / "m.pth", target, force=True)
    assert torch.equal(mapped["old"], torch.arange(50_000))
    with open_checkpoint(target) as reader:
        assert b"".join(map(bytes, reader.chunks("renamed.w"))) == raw(whole.T)


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(source: Path, out: Path) -> None:
    import fcntl

    dead, living = out.parent / ".remapkit-0-1-0.tmp", out.parent / ".remapkit-0-2-0.tmp"
    foreign = out.parent / ".remapkit-notes.txt"
    for path in (dead, living, foreign):
        path.write_text("x")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        convert(source, out)
    assert sorted(everything_in(out.parent)) == [living.name, foreign.name, out.name]


# ------------------------------------------------------------------------------------------------ flushed, then named


Event = tuple[str, int]


def trace(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> list[Event]:
    """The system calls of one run that write, flush or rename, each with the inode that it is about."""
    events: list[Event] = []

    def watch(name: str, about: Callable[..., int]) -> None:
        call = getattr(os, name)

        def watched(*args: object, **options: object) -> object:
            events.append((name, about(*args)))
            return call(*args, **options)

        monkeypatch.setattr(os, name, watched)

    watch("pwrite", lambda fd, *_: os.fstat(fd).st_ino)
    watch("copy_file_range", lambda _, fd, *__: os.fstat(fd).st_ino)
    watch("fsync", lambda fd: os.fstat(fd).st_ino)
    watch("rename", lambda old, new: Path(old).stat().st_ino)
    named = atomic._rename_noreplace
    monkeypatch.setattr(
        atomic,
        "_rename_noreplace",
        lambda old, new: (events.append(("rename", Path(old).stat().st_ino)), named(old, new)),
    )
    run()
    monkeypatch.undo()
    return events


def durable(events: list[Event], folder: Path) -> bool:
    """Every file is flushed after its last byte and before its name, and the folder after the last name."""
    dirty: set[int] = set()
    for name, inode in events:
        if name in ("pwrite", "copy_file_range"):
            dirty.add(inode)
        elif name == "fsync":
            dirty.discard(inode)
        elif inode in dirty:
            return False
    return events[-1] == ("fsync", folder.stat().st_ino) and not dirty


@pytest.mark.parametrize("options", [{}, {"shard_size": 1_300_000}, {"force": True}, {"format": "pth"}])
def test_a_file_is_on_the_disk_before_it_has_its_name(
    options: dict[str, object], source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = trace(monkeypatch, lambda: convert(source, out, **options))
    assert any(name == "rename" for name, _ in events)
    assert durable(events, out.parent)


def test_a_flush_that_is_left_out_is_found(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(atomic.NewFile, "flush", lambda self: None)
        events = trace(monkeypatch, lambda: convert(source, out))
    assert not durable(events, out.parent)


# ------------------------------------------------------------------------------------------------ in place, refused


def test_what_cannot_be_renamed_in_place(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(3)}, source.with_name("m.pth"))
    refused(capsys, "renames inside one safetensors file, but this is pth", source.with_name("m.pth"), "--in-place")
    refused(capsys, "it cannot be used with --output, --verify", source, "--in-place", "-o", out, "--verify")
    one = SUFFIX.replace("{rest:**}", "a").replace("{rest}", "a")
    drops = rules(source.parent, one + "drop: ['b']\n", "drops.yaml")
    before = source.read_bytes()
    assert main(["apply", str(drops), str(source), "--in-place"]) == 2
    assert "--in-place cannot drop tensors (b)" in capsys.readouterr().err
    os.link(source, source.with_name("second"))
    refused(capsys, "m.safetensors has 2 hard links; --in-place would change them all", source, "--in-place")
    source.with_name("second").unlink()
    out.symlink_to(source)
    refused(capsys, "--in-place", source, "--in-place", "--force")
    assert main(["apply", str(source.parent / "rules.yaml"), str(out), "--in-place"]) == 2
    assert f"{out} is a link to {source}" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_journal_that_does_not_fit_is_not_used(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = atomic.journal_path(source)
    journal.write_bytes(b"remapkit journal 1\n torn")
    assert main(["inspect", str(source)]) == 2
    assert "RK415" in capsys.readouterr().err
    before = source.read_bytes()
    assert main(["recover", str(source)]) == 2
    assert "is damaged; it was not used" in capsys.readouterr().err
    assert source.read_bytes() == before and journal.exists()


@pytest.mark.parametrize("linked", [False, True], ids=["D2-shard", "D2-linked shard"])
def test_a_shard_with_a_journal_is_not_read_through_its_index(
    linked: bool, source: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert apply(source, "-o", out, "--shard-size", "1MB") == 0
    shard, index = out.with_name("o-00001-of-00002.safetensors"), out.with_name("o.safetensors.index.json")
    held = shard
    if linked:
        held = shard.with_name("sub") / "x.safetensors"
        held.parent.mkdir()
        shard.rename(held)
        shard.symlink_to(held)
    assert main(["inspect", str(index)]) == 0
    capsys.readouterr()
    atomic.journal_path(held).write_bytes(b"remapkit journal 1\n")
    commands = [["inspect", index], ["inspect", out.parent], ["diff", index, source]]
    commands.append(["apply", source.parent / "rules.yaml", index, "-o", source.with_name("again.safetensors")])
    for command in commands:
        assert main(list(map(str, command))) == 2
        said = capsys.readouterr().err
        assert "RK415" in said and f"remapkit recover {shard}" in said
    monkeypatch.setattr(opening, "_check_journal", lambda path: None)
    assert main(["inspect", str(index)]) == 0, "nothing else would have refused it"


def test_recover_with_nothing_to_recover(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recover", str(source)]) == 0
    assert "has no journal" in capsys.readouterr().out
    assert main(["recover", str(source.with_name("missing"))]) == 2
    assert "no such file" in capsys.readouterr().err


def test_tensors_that_are_repeated_into_much_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in" / "m.pth"
    source.parent.mkdir()
    torch.save({"w": torch.ones(2, 1).expand(2, 40_000_000)}, source)
    out = tmp_path / "o.safetensors"
    refused(capsys, "tensor 'w' repeats a 8-byte storage into 320 MB (stride 0); refused", source, "-o", out)
    torch.save({"w": torch.ones(2, 1).expand(2, 5_000_000)}, source)
    assert apply(source, "-o", out, "--allow-expand") == 0
    assert out.stat().st_size > 40_000_000


def test_moves_without_a_way_to_compute_them_are_a_bug_not_a_file(source: Path, out: Path) -> None:
    def fails(move: Move, reader: Reader) -> NoReturn:
        raise RuntimeError("nobody runs this")

    with open_checkpoint(source) as reader:
        move = Move("a", ("a",), (AddOp(1.0),), RuleRef("all"), reader.header()["a"])
        with pytest.raises(RuntimeError, match="nobody runs this"):
            write_checkpoint([move], reader, out, run=fails)
    assert everything_in(out.parent) == {}
