"""Verdict by verdict against the `safetensors` library, on mutated files: nothing is accepted that it refuses.

What is refused beyond that is named here: what the library lets through and no writer makes.
"""

from __future__ import annotations

import collections
import json
import os
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from remapkit.diagnostics.errors import RemapkitError
from remapkit.formats import open_checkpoint, safetensors

COUNT = int(os.environ.get("REMAPKIT_FUZZ", "5000"))
"""How many files; set REMAPKIT_FUZZ=60000 for a longer run."""

STRICTER = re.compile(
    r"duplicate name|exactly the fields|control character|which changes the order|more than 1000000 tensors"
    r"|dimensions; tensors have at most 64|must map strings to strings|must start with"
)
"""The refusals that the library does not share."""

NAMES = [
    "w",
    "a.b",
    "é",
    "漢",
    "😀",
    "",
    "__metadata__",
    "\\u0041",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00",
    "a\\n",
    "x" * 40,
]
DTYPES = [
    "F32",
    "F16",
    "BF16",
    "U8",
    "I64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F6_E2M3",
    "C64",
    "C128",
    "F8_E8M0",
    "f32",
    "",
    "U16",
]
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "8",
    "16",
    "24",
    "-1",
    "-0",
    "1.0",
    "1e1",
    "01",
    "4294967296",
    "9223372036854775808",
]
NUMBERS += [
    "18446744073709551615",
    "18446744073709551616",
    "1" * 30,
    "true",
    "null",
    '"4"',
    "[]",
    "4611686018427387904",
]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "U16": 2, "C64": 8}


def honest(random: random.Random) -> tuple[list[tuple[str, str, list[str], list[str]]], int]:
    """Tensors that follow each other, as text, and how many bytes they take."""
    tensors, at = [], 0
    for number in range(random.randint(0, 4)):
        dtype = random.choice(list(WIDTHS))
        shape = [random.choice([0, 1, 2, 3]) for _ in range(random.randint(0, 3))]
        size = WIDTHS[dtype]
        for dimension in shape:
            size *= dimension
        tensors.append((f"t{number}", dtype, list(map(str, shape)), [str(at), str(at + size)]))
        at += size
    return tensors, at


def structured(random: random.Random) -> bytes:
    """A header whose parts are each honest, or now and then something that is not."""
    tensors, size = honest(random)
    odd = random.choice([0.0, 0.03, 0.1])

    def part(value: str, others: list[str]) -> str:
        return random.choice(others) if random.random() < odd else value

    entries = []
    for fqn, dtype, shape, offsets in tensors:
        shape = [part(each, NUMBERS) for each in shape]
        offsets = [part(each, NUMBERS) for each in offsets]
        if random.random() < odd:
            random.choice([shape, offsets]).append(random.choice(NUMBERS))
        fields = [
            f'"dtype":"{part(dtype, DTYPES)}"',
            f'"shape":[{",".join(shape)}]',
            f'"data_offsets":[{",".join(offsets)}]',
        ]
        if random.random() < odd:
            fields.append(random.choice(['"extra":1', '"dtype":"F32"', '"shape":[]', '"x":{"y":[NaN]}', fields[0]]))
        if random.random() < odd:
            fields.pop(random.randrange(len(fields)))
        random.shuffle(fields)
        entries.append(f'"{part(fqn, NAMES)}":{{{",".join(fields)}}}')
    if random.random() < 0.3:
        value = part(
            '{"format":"pt"}', ["{}", "[]", "null", '{"a":1}', '{"a":"\\ud800"}', '{"a":"b","a":"c"}', '{"a":null}']
        )
        entries.append(f'"__metadata__":{value}')
    random.shuffle(entries)
    raw = (
        "{"
        + ",".join(entries)
        + "}"
        + random.choice(["", "   ", "\n", "\0", "x", ","] if random.random() < odd else ["", "  "])
    ).encode()
    data = bytes(max(0, size + (random.choice([-1, 1, 8]) if random.random() < odd else 0)))
    length = len(raw) + (random.choice([-1, 1, 7, 1 << 30, 1 << 63]) if random.random() < odd else 0)
    return struct.pack("<Q", length % (1 << 64)) + raw + data


TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"-",
    b"0",
    b"9",
    b"1e9",
    b".5",
    b"\xff",
    b"\xc3",
]
TOKENS += [
    b" ",
    b"\n",
    b"\0",
    b"\x1b",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"NaN",
    b"true",
    b"null",
    b"/**/",
    b"\xe2\x80\xae",
    b"\x7f",
]


def mutated(content: bytes, random: random.Random) -> bytes:
    """One to three bytes or tokens changed, put in, taken away or repeated."""
    raw = bytearray(content)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(raw) + 1)
        what = random.randrange(5)
        if what == 0 and at < len(raw):
            raw[at] = random.randrange(256)
        elif what == 1:
            raw[at:at] = random.choice(TOKENS)
        elif what == 2:
            del raw[at : at + random.randint(1, 4)]
        elif what == 3:
            raw[at:at] = raw[at : at + random.randint(1, 30)]
        elif at < len(raw):
            raw[at] ^= 1 << random.randrange(8)
    if random.random() < 0.7 and len(raw) >= 8:
        # Mostly the length is made right again, or nothing but lengths would be looked at.
        end = raw.rfind(b"}") + 1
        raw[:8] = struct.pack("<Q", max(0, end - 8))
    return bytes(raw)


def theirs(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    """What the library reads, or None where it refuses."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError, ValueError, UnicodeError):
        return None


def ours(path: Path) -> dict[str, tuple[str, list[int]]] | str:
    """What is read here, or the title of the refusal."""
    try:
        with open_checkpoint(path) as reader:
            if reader.format != "safetensors":
                return "another format"
            return {name: (spec.dtype, list(spec.shape)) for name, spec in reader.header().items()}
    except RemapkitError as error:
        (diagnostic,) = error.diagnostics
        return diagnostic.title


def compare(path: Path, count: int, seed: int) -> collections.Counter[str]:
    """Counts of verdicts; raises at the first that must not be."""
    counts: collections.Counter[str] = collections.Counter()
    generator = random.Random(seed)
    for _ in range(count):
        content = structured(generator)
        if generator.random() < 0.5:
            content = mutated(content, generator)
        # A new file each time: writing over an old one waits for the disk.
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        here, there = ours(path), theirs(path)
        if isinstance(here, dict):
            assert there is not None, f"accepted, and the library refuses: {content!r}"
            assert here == there, f"read otherwise than by the library: {content!r}"
            counts["both accept"] += 1
        elif there is None:
            counts["both refuse"] += 1
        else:
            assert STRICTER.search(here) or here == "another format", (
                f"refused without a reason ({here}): {content!r}"
            )
            counts["stricter"] += 1
    return counts


def test_nothing_is_accepted_that_the_library_refuses(tmp_path: Path) -> None:
    counts = compare(tmp_path / "m.safetensors", COUNT, 20_26)
    # A run in which nearly everything is refused, or nothing, would prove nothing.
    assert min(counts["both accept"], counts["both refuse"]) > COUNT // 10, counts
    assert counts["stricter"] > 0


def _lenient_size(fqn: str, spec: Any, start: int, end: int) -> None:
    assert spec.nbytes == end - start or 0 in spec.shape


def _lenient_order(entries: dict[str, Any], data_bytes: int) -> dict[str, Any]:
    return dict(sorted(entries.items(), key=lambda item: item[1][1]))


FAULTS: dict[str, tuple[str, Any]] = {
    "sizes are multiplied without a limit": ("_check_size", _lenient_size),
    "holes and overlaps are let through": ("_sort_entries", _lenient_order),
    "lone surrogates are let through": ("find_name_problem", lambda name: None),
    "the width of a dtype is forgotten": ("_check_size", lambda *_: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_planted_fault(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, planted = FAULTS[fault]
    monkeypatch.setattr(safetensors, name, planted)
    with pytest.raises((AssertionError, OverflowError, UnicodeEncodeError)):
        compare(tmp_path / "m.safetensors", 20_000, 7)


def test_what_is_stricter_is_refused_though_the_library_reads_it(tmp_path: Path) -> None:
    """The list above is no excuse for anything else: each of its reasons, on a file that the library accepts."""
    fields = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
    cases = {
        "duplicate name": '{"w":{' + fields + '},"w":{' + fields + "}}",
        "exactly the fields": '{"w":{' + fields + ',"extra":1}}',
        "control character": '{"w\\u001b":{' + fields + "}}",
        "which changes the order": '{"w\\u202e":{' + fields + "}}",
        "must start with": ' {"w":{' + fields + "}}",
        "at most 64": json.dumps({"w": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}}),
    }
    for words, header in cases.items():
        path = tmp_path / "m.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0")
        assert theirs(path) is not None, words
        assert words in str(ours(path))
