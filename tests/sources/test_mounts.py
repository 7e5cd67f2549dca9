"""The grammar of mounts against an oracle that writes names and prefixes with Python's own formatting."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.diagnostics.errors import RemapkitError, UnreadableCheckpoint, UsageError
from remapkit.sources.mounts import find_files, is_mount, parse_mount

LITERALS = st.text("ab.-_", min_size=1, max_size=4).filter(lambda text: set(text) != {"."})
NUMBERS = st.integers(0, 120)


@st.composite
def mounts(draw: Any) -> tuple[str, str, list[str]]:
    """A prefix and a file, as a format of Python, and the names of their captures."""
    names = draw(st.lists(st.sampled_from(["t", "p"]), min_size=1, max_size=2, unique=True))
    prefix, file = "", ""
    for name in draw(st.permutations(names)):
        prefix += draw(LITERALS) + f"{{{name}}}"
    for name in draw(st.permutations(names)):
        spec = draw(st.sampled_from(["", ":02d", ":03d"]))
        file += draw(LITERALS) + f"{{{name}{spec}}}" + draw(st.sampled_from(["", "x/y"]))
    return prefix + ".", file + draw(st.sampled_from([".pth", "/m.pt"])), names


@given(mount=mounts(), numbers=st.tuples(NUMBERS, NUMBERS), pad=st.integers(0, 4))
def test_names_are_written_and_read_as_python_formats_them(
    mount: tuple[str, str, list[str]], numbers: tuple[int, int], pad: int
) -> None:
    prefix, file, names = mount
    values = dict(zip(names, numbers, strict=False))
    parsed = parse_mount(f"{prefix}={file}")
    assert parsed.write_prefix(values) == prefix.format(**values)
    assert parsed.write_file(values) == file.format(**values)
    assert str(parsed) == f"{prefix}={file}"
    key = prefix.format(**values) + "0.w"
    assert parsed.match_key(key) == (prefix.format(**values), values)
    assert parsed.match_key("z" + key) is None
    # A number without a width is read with any padding, one with a width only as it is written.
    padded = re.sub(r"\{(\w)\}", rf"{{\1:0{pad}d}}" if pad else r"{\1}", file).format(**values)
    assert parsed.file.match(padded) == values
    other = re.sub(r"\{(\w):0\dd\}", r"{\1:05d}", file).format(**values)
    assert (parsed.file.match(other) is not None) == (":" not in file)


@given(start=st.text("ab.", max_size=3), digits=st.text("0123456789", min_size=1, max_size=4))
def test_a_prefix_takes_a_whole_number_without_padding(start: str, digits: str) -> None:
    mount = parse_mount(f"{start}{{t}}=x{{t}}")
    found = mount.match_key(f"{start}{digits}.w")
    plain = str(int(digits)) == digits
    assert found == ((f"{start}{digits}", {"t": int(digits)}) if plain else None)


@settings(max_examples=40)
@given(
    there=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1),
    width=st.integers(1, 3),
    folders=st.booleans(),
)
def test_files_are_found_and_holes_are_named(
    there: set[tuple[int, int]], width: int, folders: bool, tmp_path_factory: Any
) -> None:
    """The oracle: the numbers that were written, and the grid between their least and greatest."""
    home = tmp_path_factory.mktemp("m")
    for t, p in there:
        path = home / (f"r{t:0{width}d}/m_{p}.pt" if folders else f"r{t:0{width}d}_{p}.pt")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (home / "r.pt").touch()
    (home / "rx_0.pt").touch()
    mount = parse_mount("s{t}.{p}.=" + ("r{t}/m_{p}.pt" if folders else "r{t}_{p}.pt"))
    ts, ps = zip(*there, strict=True)
    grid = set(itertools.product(range(min(ts), max(ts) + 1), range(min(ps), max(ps) + 1)))
    if grid != there:
        with pytest.raises(UnreadableCheckpoint) as caught:
            find_files(mount, home)
        (problem,) = caught.value.diagnostics
        t, p = min(grid - there)
        assert problem.code == "RK428"
        assert problem.title.startswith(f"t = {t}, p = {p} is missing: there is no r{t:0{width}d}")
        return
    found = find_files(mount, home)
    assert [tuple(file.numbers.values()) for file in found] == sorted(there)
    assert [file.prefix for file in found] == [f"s{t}.{p}." for t, p in sorted(there)]
    assert all(file.path.is_file() for file in found)


@given(text=st.text("{}=:t0d2pa./", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    """What is read is written again as it was; what is refused says how to write it."""
    try:
        mount = parse_mount(text)
    except UsageError as error:
        (problem,) = error.diagnostics
        assert problem.code == "RK426"
        assert problem.help
    else:
        assert str(mount) == text
        assert set(mount.prefix.list_names()) == set(mount.file.list_names())


# ------------------------------------------------------------------------------------------------- wrong use


def refuse(written: str, home: Path) -> Any:
    with pytest.raises(RemapkitError) as caught:
        find_files(parse_mount(written), home)
    (problem,) = caught.value.diagnostics
    return problem


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("vae.", "it has no '='"),
        ("vae.=", "no file follows the '='"),
        ("tp{t}.=c.pth", "{t} stands in the prefix, but not in the name of the file"),
        ("tp.=c{t}.pth", "{t} stands in the name of the file, but not in the prefix"),
        ("tp{t:02d}.=c{t}.pth", "a number in a prefix has no padding"),
        ("tp{t}.=c{t:x}.pth", "{t:x} is no capture"),
        ("tp{t}.=c{t.pth", "a brace without its partner in 'c{t.pth'"),
        ("tp{t}{p}.=c{t}.{p}.pth", "two numbers follow each other without a sign between them"),
        ("tp{t}.{p}.=c{t}1{p}.pth", "two numbers follow each other without a sign between them"),
    ],
)
def test_a_malformed_mount_says_what_is_wrong(written: str, said: str, tmp_path: Path) -> None:
    problem = refuse(written, tmp_path)
    assert problem.code == "RK426"
    assert problem.title == f"{written!r} is no mount: {said}"


def test_a_pattern_that_fits_nothing_shows_what_is_there(tmp_path: Path) -> None:
    for name in ("consolidated.00.pth", "consolidated.01.pth", "params.json"):
        (tmp_path / name).touch()
    problem = refuse("tp{t}.=consolidated_{t}.pth", tmp_path)
    assert problem.code == "RK427"
    assert problem.title == "nothing here fits 'consolidated_{t}.pth' of the mount 'tp{t}.=consolidated_{t}.pth'"
    assert problem.notes == ("here are: consolidated.00.pth, consolidated.01.pth and params.json",)
    assert problem.help == ("did you mean 'consolidated.{t}.pth'?",)
    problem = refuse("tp{t}.=step/c{t}.pth", tmp_path)
    assert (problem.code, problem.title) == ("RK427", "nothing here fits 'step' of the mount 'tp{t}.=step/c{t}.pth'")


def test_two_files_of_one_number_are_named(tmp_path: Path) -> None:
    for name in ("c.0.pth", "c.00.pth"):
        (tmp_path / name).touch()
    problem = refuse("tp{t}.=c.{t}.pth", tmp_path)
    assert (problem.code, problem.title) == ("RK429", "two files have t = 0: c.0.pth and c.00.pth")
    assert [file.path.name for file in find_files(parse_mount("tp{t}.=c.{t:02d}.pth"), tmp_path)] == ["c.00.pth"]


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        (tmp_path / f"c.{rank:02d}.pth").touch()
    problem = refuse("tp{t}.=c.{t}.pth", tmp_path)
    assert (problem.code, problem.title) == ("RK428", "t = 2 is missing: there is no c.02.pth")
    assert problem.notes == ("there: t = 0, 1 and 3",)


def test_a_folder_without_its_file_is_named(tmp_path: Path) -> None:
    for rank in (0, 1, 2):
        (tmp_path / f"mp_rank_{rank:02d}").mkdir()
    for rank in (0, 1):
        (tmp_path / f"mp_rank_{rank:02d}" / "model.pt").touch()
    problem = refuse("tp{t}.=mp_rank_{t}/model.pt", tmp_path)
    assert (problem.code, problem.title) == ("RK428", "model.pt is missing in mp_rank_02")


def test_a_capture_twice_is_one_number(tmp_path: Path) -> None:
    for one, other in ((0, 0), (1, 1), (0, 1)):
        (tmp_path / f"r{one}").mkdir(exist_ok=True)
        (tmp_path / f"r{one}" / f"m{other}.pt").touch()
    found = find_files(parse_mount("tp{t}.=r{t}/m{t}.pt"), tmp_path)
    assert [str(file.path.relative_to(tmp_path)) for file in found] == ["r0/m0.pt", "r1/m1.pt"]


def test_a_file_that_exists_wins_over_the_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b{t}.pth").touch()
    Path("b{x}.pth").touch()
    assert not is_mount("a=b{t}.pth")
    assert is_mount("a=c.pth")
    (found,) = find_files(parse_mount("vae.=b{x}.pth"))
    assert (found.prefix, found.path) == ("vae.", Path("b{x}.pth"))
    (found,) = find_files(parse_mount(f"vae.={tmp_path}/none.pth"))
    assert found.path == tmp_path / "none.pth"
    Path("x0.pth").touch()
    (found,) = find_files(parse_mount(f"v{{t}}.={tmp_path}/x{{t}}.pth"))
    assert found.path == tmp_path / "x0.pth"


def test_a_capture_that_is_written_twice_is_one_number(tmp_path: Path) -> None:
    mount = parse_mount("tp{t}.=rank{t}/model.{t:02d}.pth")
    assert mount.file.match("rank3/model.03.pth") == {"t": 3}
    assert mount.file.match("rank3/model.04.pth") is None
    assert parse_mount("a{t}.b{t}.=c{t}").match_key("a1.b2.w") is None
    (tmp_path / "rank3").mkdir()
    for name in ("model.03.pth", "model.04.pth"):
        (tmp_path / "rank3" / name).touch()
    assert [each.path.name for each in find_files(mount, tmp_path)] == ["model.03.pth"]
