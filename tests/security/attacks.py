"""Every attack by its name: the file, the code of its refusal, words of the message. docs/security.md shows them."""

from __future__ import annotations

import functools
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from hostile_kit import (
    Archive,
    Entry,
    archive,
    array,
    call,
    entry,
    integer,
    legacy,
    mapping,
    name,
    pickled,
    pth,
    safetensors,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)

GOOD = mapping(w=tensor())
"""One honest tensor of 16 bytes."""


@dataclass(frozen=True)
class Attack:
    """`make` gives the file; `words` are part of the message, `code` is its code."""

    make: Callable[[], bytes]
    code: str
    words: str


class Reduced:
    """Pickles as a call of `posix.system`, in whatever protocol."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def by_protocol(protocol: int) -> bytes:
    return archive(pickle.dumps({"state_dict": {"x": Reduced()}}, protocol=protocol)).bytes()


SYSTEM = call("posix.system", text("touch pwned"))
SETSTATE = name("argparse.Namespace") + b")\x81" + mapping(payload=SYSTEM) + b"b"
FROM_MEMO = text("posix") + b"q\x00" + text("system") + b"q\x01" + b"00h\x00h\x01\x93" + tuple_of(text("true")) + b"R"
DOTTED = text("torch") + text("os.system") + b"\x93" + tuple_of(text("true")) + b"R"
LAUGHS = b"}" + b"".join(b"q%c}(" % n + text("a") + b"h%c" % n + text("b") + b"h%c" % n + b"u" for n in range(39))
TUPLES = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(39))


def copies() -> bytes:
    """One list of 50,000 pairs, of which an OrderedDict is made again and again."""
    pairs = b"](" + (text("k") + b"N\x86") * 50_000 + b"eq\x00"
    return pairs + (b"0" + name("collections.OrderedDict") + b"h\x00\x85R") * 2000


def long_paths() -> bytes:
    """190 levels of keys of 60 kB, and 3,000 mappings of tensors at the bottom: paths of 11 MB each."""
    key = text("k" * 60_000)
    bottom = b"}(" + b"".join(text(f"m{n}") + mapping(w=b"h\x01") for n in range(3000)) + b"u"
    head = tensor() + b"q\x010" + key + b"q\x020"
    return head + b"}h\x02" * 190 + bottom + b"s" * 190


def views() -> bytes:
    """300 views of one storage of 16 bytes, each as large as a view may be without being asked for."""
    wide = {f"w{n}": tensor((15_000_000 - n,), (0,), n % 4) for n in range(300)}
    return pth(mapping(**wide))


PICKLES: dict[str, Attack] = {
    "os.system": Attack(
        lambda: pth(mapping(state_dict=mapping(w=tensor(), x=SYSTEM))),
        "RK404",
        "'state_dict.x' is a posix.system object, not a tensor",
    ),
    "builtins.eval": Attack(
        lambda: pth(mapping(x=call("builtins.eval", text("1")))),
        "RK404",
        "'x' is a builtins.eval object, not a tensor",
    ),
    "__builtin__.exec, the name of Python 2": Attack(
        lambda: pth(mapping(x=call("__builtin__.exec", text("1")))), "RK404", "builtins.exec"
    ),
    "nested reduce": Attack(
        lambda: pth(mapping(x=call("builtins.eval", call("builtins.compile", text("1"))))), "RK404", "builtins.eval"
    ),
    "a call within the arguments of a tensor": Attack(
        lambda: pth(mapping(w=tensor(of=SYSTEM))), "RK404", "posix.system"
    ),
    "a `__setstate__` gadget": Attack(lambda: pth(mapping(w=tensor(), x=SETSTATE)), "RK404", "posix.system"),
    "`torch.hub.load`": Attack(
        lambda: pth(mapping(x=call("torch.hub.load", text("a/b"), text("m")))),
        "RK404",
        "'x' is a torch.hub.load object",
    ),
    "a function of torch outside the allow-list": Attack(
        lambda: pth(mapping(w=tensor(), x=call("torch.from_file", text("/etc/passwd")))),
        "RK404",
        "'x' is a torch.from_file object",
    ),
    "`torch.storage._load_from_bytes`, a pickle in a pickle": Attack(
        lambda: pth(mapping(x=call("torch.storage._load_from_bytes", text("x")), w=tensor())),
        "RK409",
        "'x' is a tensor pickled without torch.save",
    ),
    "STACK_GLOBAL from the memo": Attack(lambda: pth(mapping(x=FROM_MEMO)), "RK404", "posix.system"),
    "a dotted name that walks attributes": Attack(lambda: pth(mapping(x=DOTTED)), "RK404", "torch.os.system"),
    "a hostile pickle that is also broken": Attack(
        lambda: archive(b"\x80\x02" + SYSTEM).bytes(), "RK404", "names posix.system, and is broken"
    ),
    "INST, the call of protocol 0": Attack(
        lambda: pth(mapping(x=b"(" + text("true") + b"iposix\nsystem\n")), "RK404", "posix.system"
    ),
    "OBJ, the call of protocol 1": Attack(
        lambda: pth(mapping(x=b"(" + name("posix.system") + text("true") + b"o")), "RK404", "posix.system"
    ),
    "an extension code": Attack(lambda: pth(b"\x82\x01"), "RK404", "an extension code, which stands for a global"),
    "a persistent id as text": Attack(lambda: pth(b"Pstorage\n"), "RK404", "a persistent id as text"),
    "a persistent id that is not a storage": Attack(
        lambda: pth(text("x") + b"Q"), "RK404", "a persistent id is a str, not a storage"
    ),
    "a buffer outside the pickle": Attack(lambda: pth(b"\x97"), "RK404", "a buffer outside the pickle"),
    "300,000 nested lists": Attack(
        lambda: pth(b"]" * 300_000 + b"a" * 299_999), "RK404", "nested more than 200 levels deep"
    ),
    "300,000 nested tuples": Attack(
        lambda: pth(b")" + b"\x85" * 300_000), "RK404", "nested more than 200 levels deep"
    ),
    "300,000 nested tuples as a key": Attack(
        lambda: pth(b"}" + b")" + b"\x85" * 300_000 + tensor() + b"s"), "RK406", "holds no mapping of tensors"
    ),
    "300,000 nested tuples as the key of an entry": Attack(
        lambda: pth(b"}(" + text("w") + tensor() + b")" + b"\x85" * 300_000 + tensor() + b"u"),
        "RK406",
        "a tensor under the key <a tuple>, which is not text",
    ),
    "300,000 nested dicts": Attack(
        lambda: pth((b"}" + text("k")) * 300_000 + b"N" + b"s" * 300_000), "RK404", "nested more than 200 levels deep"
    ),
    "39 levels of shared dicts": Attack(lambda: pth(LAUGHS), "RK406", "holds no mapping of tensors"),
    "39 levels of shared tuples as a key": Attack(
        lambda: pth(b"}(" + text("w") + tensor() + TUPLES + tensor() + b"u"),
        "RK406",
        "a tensor under the key <a tuple>, which is not text",
    ),
    "a list that holds itself": Attack(lambda: pth(b"]q\x00h\x00a"), "RK406", "holds no mapping of tensors"),
    "one list copied 2,000 times": Attack(
        lambda: pth(copies()), "RK404", "the pickle builds more than any checkpoint does"
    ),
    "three million dicts": Attack(
        lambda: pth(b"}0" * 3_000_000 + b"N"), "RK404", "the pickle builds more than any checkpoint does"
    ),
    "two million values on the stack": Attack(
        lambda: pth(b"N" * 2_000_000), "RK404", "the pickle's stack grows beyond 1048576 values"
    ),
    "200 MB of text": Attack(
        lambda: zipped(pickled(b"](" + text("x" * 65_000) * 3000 + b"e"), zipfile.ZIP_STORED),
        "RK404",
        "the pickle builds more than any checkpoint does",
    ),
    "paths of 11 MB": Attack(lambda: pth(long_paths()), "RK406", "3000 mappings of tensors"),
    "`LONG_BINPUT` with index 2^31": Attack(
        lambda: pth(b"}r\xff\xff\xff\x7f"), "RK404", "the pickle uses memo slot 2147483647 within its first"
    ),
    "`PUT` with a number of 60,000 digits": Attack(
        lambda: pth(b"}p" + b"9" * 60_000 + b"\n"), "RK404", "a number of 60000 digits"
    ),
    "`BINBYTES` of 4 GB": Attack(lambda: pth(b"B\xff\xff\xff\xff"), "RK404", "the pickle asks for 4.29 GB where"),
    "`BINBYTES8` of 1 TB": Attack(
        lambda: pth(b"\x8e" + struct.pack("<Q", 10**12)), "RK404", "the pickle asks for 1.00 TB where"
    ),
    "`BINUNICODE8` of 1 TB": Attack(
        lambda: pth(b"\x8d" + struct.pack("<Q", 10**12)), "RK404", "the pickle asks for 1.00 TB where"
    ),
    "`BYTEARRAY8` of 1 TB": Attack(
        lambda: pth(b"\x96" + struct.pack("<Q", 10**12)), "RK404", "the pickle asks for 1.00 TB where"
    ),
    "`LONG4` of 2 GB": Attack(lambda: pth(b"\x8b\xff\xff\xff\x7f"), "RK404", "a number of 2.15 GB"),
    "`FRAME` of 2^63": Attack(
        lambda: pth(b"\x95" + struct.pack("<Q", 1 << 63)), "RK404", "a frame of 9.22 EB, but only"
    ),
    "a missing STOP": Attack(lambda: archive(b"\x80\x02}").bytes(), "RK404", "the pickle ends without STOP"),
    "an empty pickle": Attack(lambda: archive(b"").bytes(), "RK404", "the pickle ends without STOP"),
    "a second pickle behind the first": Attack(
        lambda: archive(pickled(GOOD) + pickled(SYSTEM)).bytes(), "RK404", "follow the end of the pickle"
    ),
    "protocol 9": Attack(lambda: archive(b"\x80\x09}.").bytes(), "RK404", "pickle protocol 9 is unknown"),
    "an unknown opcode": Attack(lambda: pth(b"\xff"), "RK404", "0xff is not a pickle opcode"),
    "a memo slot that was never written": Attack(
        lambda: pth(b"h\x07"), "RK404", "the pickle reads memo slot 7, which was never written"
    ),
    "a value from an empty stack": Attack(lambda: pth(b"a"), "RK404", "the pickle takes a value from an empty stack"),
    "a mark that is not there": Attack(lambda: pth(b"t"), "RK404", "the pickle looks for a mark that is not there"),
    "SETITEM on a tensor": Attack(
        lambda: pth(tensor() + text("k") + b"Ns"), "RK404", "the pickle sets an item of a tensor"
    ),
    "APPEND on a tensor": Attack(lambda: pth(tensor() + b"Na"), "RK404", "the pickle appends to a tensor"),
    "BUILD on a tensor": Attack(lambda: pth(tensor() + b"}b"), "RK404", "the pickle sets the state of a tensor"),
    "a call of something that is not a function": Attack(
        lambda: pth(tensor() + b")R"), "RK404", "the pickle calls a tensor"
    ),
    "a call without arguments": Attack(
        lambda: pth(name("collections.OrderedDict") + b"NR"), "RK404", "with None for arguments"
    ),
    "the name of a global with 60,000 characters": Attack(
        lambda: pth(name("a." + "b" * 60_000)), "RK404", "a global with more than 512 characters"
    ),
    "a string that is not UTF-8": Attack(lambda: pth(b"X\x01\0\0\0\xff"), "RK404", "a string is not UTF-8"),
    "an object in a tensor's place": Attack(
        lambda: pth(mapping(w=tensor(), x=name("my.Thing") + b")R")),
        "RK404",
        "'x' is a my.Thing object, not a tensor",
    ),
    "control characters in a key": Attack(
        lambda: pth(mapping(**{"w\x1b[31m": tensor()})), "RK406", "a key holds the control character U+001B"
    ),
    "a lone surrogate in a key": Attack(
        lambda: pth(mapping(**{"w\ud800": tensor()})), "RK406", "a key holds the lone surrogate U+D800"
    ),
    "a key twice": Attack(lambda: pth(b"}(" + (text("w") + tensor()) * 2 + b"u"), "RK406", "duplicate key 'w'"),
}
PICKLES |= {
    f"os.system in protocol {protocol}": Attack(
        functools.partial(by_protocol, protocol), "RK404", "'state_dict.x' is a posix.system object, not a tensor"
    )
    for protocol in range(6)
}

LEGACY: dict[str, Attack] = {
    "os.system in a legacy file": Attack(
        lambda: legacy(mapping(x=SYSTEM, w=tensor())), "RK404", "'x' is a posix.system object"
    ),
    "a pickle that torch.save did not write": Attack(
        lambda: pickled(mapping(x=text("a"))), "RK409", "a pickle, but not one that torch.save wrote"
    ),
    "os.system in such a pickle": Attack(lambda: pickled(mapping(x=SYSTEM)), "RK404", "posix.system"),
    "an array of numpy with fewer bytes than its shape": Attack(
        lambda: pickled(mapping(x=array((4, 4)))), "RK404", "has 16 B of data, not 64 B"
    ),
    "an array of numpy of 2^122 elements": Attack(
        lambda: pickled(mapping(x=array((1 << 61, 1 << 61)))), "RK404", "not more than a file can have"
    ),
    "`_reconstruct` of another class": Attack(
        lambda: pickled(mapping(w=array(), x=array(cls="my.Thing"))),
        "RK404",
        "'x' is a my.Thing object, not a tensor",
    ),
    "os.system in the state of an array": Attack(
        lambda: pickled(mapping(w=array(), x=array(data=SYSTEM))), "RK404", "names posix.system, and is broken"
    ),
    "a legacy file that ends within its storages": Attack(lambda: legacy(GOOD)[:-3], "RK405", "it is truncated"),
    "a legacy storage of 2^63 elements": Attack(
        lambda: legacy(GOOD, {"0": (-(1 << 63), bytes(16))}), "RK405", "it is truncated"
    ),
    "bytes behind the last legacy storage": Attack(
        lambda: legacy(GOOD) + b"x", "RK405", "1 B follow the last storage"
    ),
    "a legacy storage that no tensor uses": Attack(
        lambda: legacy(GOOD, {"1": (4, bytes(16))}), "RK405", "belongs to no tensor"
    ),
    "a legacy storage listed twice": Attack(
        lambda: legacy(GOOD).replace(b"](" + text("0"), b"](" + text("0") * 2), "RK405", "is listed twice"
    ),
    "a big-endian legacy file": Attack(
        lambda: legacy(GOOD).replace(pickled(b"}"), pickled(mapping(little_endian=b"\x89"))),
        "RK409",
        "written on a big-endian machine",
    ),
    "a legacy version that is a deep tuple": Attack(
        lambda: legacy(GOOD).replace(pickled(b"M\xe9\x03"), pickled(TUPLES)),
        "RK409",
        "version a tuple of the legacy format is unknown",
    ),
}

TENSORS: dict[str, Attack] = {
    "stride 0 that declares 4 TB over 16 bytes": Attack(
        lambda: pth(mapping(w=tensor((1 << 40,), (0,)))),
        "RK410",
        "tensor 'w' repeats a 16-byte storage into 4.40 TB (stride 0); refused",
    ),
    "overlapping strides": Attack(
        lambda: pth(mapping(w=tensor((2,) * 30, (0,) * 29 + (1,)))), "RK410", "repeats a 16-byte storage into 4.29 GB"
    ),
    "300 views that are each just small enough": Attack(views, "RK410", "tensors of 18.0 GB in a file of"),
    "a storage size that is not the entry's": Attack(
        lambda: pth(mapping(w=tensor((1 << 40,), (1,), of=storage(numel=1 << 40)))),
        "RK405",
        "storage '0' is 16 bytes, the pickle says 4398046511104",
    ),
    "a negative storage size": Attack(
        lambda: pth(mapping(w=tensor(of=storage(numel=-4)))), "RK405", "the pickle says -16"
    ),
    "a view past its storage": Attack(
        lambda: pth(mapping(w=tensor((5,)))), "RK405", "the view ends at byte 20 of storage '0', which is 16 bytes"
    ),
    "an offset past its storage": Attack(
        lambda: pth(mapping(w=tensor((1,), (1,), 4))), "RK405", "the view ends at byte 20"
    ),
    "a stride past its storage": Attack(
        lambda: pth(mapping(w=tensor((2, 2), (4, 1)))), "RK405", "the view ends at byte 24"
    ),
    "a negative offset": Attack(lambda: pth(mapping(w=tensor(offset=-1))), "RK405", "a negative offset: -1"),
    "a negative stride": Attack(lambda: pth(mapping(w=tensor((2,), (-1,), 3))), "RK405", "a negative stride: -1"),
    "a negative size": Attack(lambda: pth(mapping(w=tensor((-4,)))), "RK405", "a negative size: -4"),
    "two negative sizes": Attack(lambda: pth(mapping(w=tensor((-2, -2), (2, 1)))), "RK405", "a negative size: -2"),
    "2^60 elements on paper": Attack(
        lambda: pth(mapping(w=tensor((1 << 60,)))), "RK405", "the view ends at byte 4611686018427387904"
    ),
    "2^60 elements of stride 0": Attack(
        lambda: pth(mapping(w=tensor((1 << 60,), (0,)))), "RK410", "into 4.61 EB (stride 0)"
    ),
    "sizes that overflow 64 bits": Attack(
        lambda: pth(mapping(w=tensor((1 << 40, 1 << 40), (0, 0)))), "RK405", "overflows 64 bits"
    ),
    "sizes that overflow 64 bits beside a 0": Attack(
        lambda: pth(mapping(w=tensor((1 << 62, 4, 0), (0, 0, 0)))), "RK405", "overflows 64 bits"
    ),
    "a size of 2^2000": Attack(lambda: pth(mapping(w=tensor((1 << 2000, 0), (0, 0)))), "RK405", "overflows 64 bits"),
    "an offset of 2^100": Attack(
        lambda: pth(mapping(w=tensor((0,), (1,), 1 << 100))),
        "RK405",
        "the offset 1267650600228229401496703205376 overflows 64 bits",
    ),
    "more strides than sizes": Attack(
        lambda: pth(mapping(w=tensor((4,), (1, 1)))), "RK405", "1 dimensions, but 2 strides"
    ),
    "65 dimensions": Attack(
        lambda: pth(mapping(w=tensor((1,) * 65, (1,) * 65))),
        "RK404",
        "a tensor's offset, shape or stride is not made of whole numbers",
    ),
    "a size that is not a number": Attack(
        lambda: pth(
            mapping(
                w=call(
                    "torch._utils._rebuild_tensor_v2",
                    storage(),
                    integer(0),
                    tuple_of(text("4")),
                    tuple_of(integer(1)),
                    b"\x89",
                    b"N",
                )
            )
        ),
        "RK404",
        "is not made of whole numbers",
    ),
    "a storage that is not in the file": Attack(
        lambda: pth(mapping(w=tensor(of=storage("7")))), "RK405", "its storage '7' is not in the file"
    ),
    "a storage whose key leads elsewhere": Attack(
        lambda: pth(mapping(w=tensor(of=storage("../data.pkl")))),
        "RK405",
        "its storage '../data.pkl' is not in the file",
    ),
    "a storage of a class that is not a storage": Attack(
        lambda: pth(mapping(w=tensor(of=storage(cls="posix.system")))), "RK404", "a storage's class is posix.system"
    ),
    "a tensor over something that is not a storage": Attack(
        lambda: pth(mapping(w=tensor(of=text("x")))), "RK404", "a tensor's storage is a str"
    ),
    "an untyped storage without a dtype": Attack(
        lambda: pth(mapping(w=tensor(of=storage(numel=16, cls="torch.storage.UntypedStorage")))),
        "RK404",
        "a tensor over an untyped storage has no dtype",
    ),
}


def two_pickles() -> bytes:
    return Archive(
        [Entry("a/data.pkl", pickled(GOOD)), Entry("b/data.pkl", pickled(SYSTEM)), Entry("a/data/0", bytes(16))]
    ).bytes()


def overlap() -> bytes:
    """The data of `m/data/0` hold a whole local header, which a second entry claims."""
    raw = b"m/data/1"
    inner = b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 4, 4, len(raw), 0) + raw + b"abcd"
    first = Archive([Entry("m/data.pkl", pickled(GOOD)), Entry("m/data/0", inner)])
    content = first.bytes()
    at = content.index(inner)
    directory = content.index(b"PK\x01\x02")
    body, central = content[:directory], content[directory : content.index(b"PK\x05\x06")]
    fields = (20, 20, 0, 0, 0, 0, 0, 4, 4, len(raw), 0, 0, 0, 0, 0, at)
    central += b"PK\x01\x02" + struct.pack("<6H3L5H2L", *fields) + raw
    return body + central + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 3, 3, len(central), len(body), 0)


def zip64_ends(count: int) -> bytes:
    """An end record and a zip64 end record that name different numbers of entries."""
    content = archive(pickled(GOOD)).bytes()
    end = content.index(b"PK\x05\x06")
    directory = content.index(b"PK\x01\x02")
    wide = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 2, 2, end - directory, directory)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1)
    tail = struct.pack("<4H2LH", 0, 0, count, count, end - directory, directory, 0)
    return content[:end] + wide + locator + b"PK\x05\x06" + tail


def bomb(declared: int | None) -> bytes:
    """512 MB of zeros in an entry of 510 kB; `declared` is the size that the directory and the pickle say."""
    pickle_bytes = pickled(mapping(w=tensor((128_000_000,), of=storage(numel=128_000_000))))
    return (
        archive(pickle_bytes, {}, Entry("m/data/0", bytes(512_000_000), deflate=True)).bytes()
        if declared is None
        else archive(
            pickled(GOOD), {}, Entry("m/data/0", bytes(512_000_000), deflate=True, size=declared, local_size=declared)
        ).bytes()
    )


def changed(old: bytes, new: bytes, times: int = 1) -> bytes:
    """An honest archive with some bytes replaced."""
    content = archive(pickled(GOOD)).bytes()
    assert content.count(old) == times, content.count(old)
    return content.replace(old, new)


def stretched(**fields: object) -> bytes:
    return archive(pickled(GOOD), {}, Entry("m/data/0", bytes(16), **fields)).bytes()  # type: ignore[arg-type]


ZIPS: dict[str, Attack] = {
    "two `data.pkl`": Attack(two_pickles, "RK403", "the archive holds 2 files named data.pkl"),
    "two central entries on one local header": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/data/0", bytes(16), same_place_as=1)).bytes(),
        "RK403",
        "duplicate entry 'm/data/0'",
    ),
    "two names on one local header": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/data/1", bytes(16), same_place_as=1)).bytes(),
        "RK403",
        "the entry's local header has another name",
    ),
    "a local header with another name": Attack(
        lambda: stretched(local_name="m/data/1"), "RK403", "the entry's local header has another name"
    ),
    "overlapping entries": Attack(overlap, "RK403", "overlap"),
    "two entries of one name": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/data.pkl", pickled(SYSTEM))).bytes(),
        "RK403",
        "duplicate entry 'm/data.pkl'",
    ),
    "names that differ only in case": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/DATA.PKL", pickled(SYSTEM))).bytes(),
        "RK403",
        "the entries 'm/data.pkl' and 'm/DATA.PKL' differ only in case",
    ),
    "a NUL in a name": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/data.pkl\0x", pickled(SYSTEM))).bytes(),
        "RK403",
        "the entry's name holds a NUL",
    ),
    "a size that lies in the directory": Attack(
        lambda: stretched(size=32),
        "RK403",
        "the entry's sizes disagree: 16 bytes in its local header, 32 in the directory",
    ),
    "a size that lies in the local header": Attack(
        lambda: stretched(local_size=8),
        "RK403",
        "the entry's sizes disagree: 8 bytes in its local header, 16 in the directory",
    ),
    "a size that lies in the local zip64 field": Attack(
        lambda: stretched(local_size=0xFFFFFFFF, extra=struct.pack("<HHQQ", 1, 16, 99, 99)),
        "RK403",
        "the entry's sizes disagree: 99 bytes in its local header, 16 in the directory",
    ),
    "a zip64 field that is too short": Attack(
        lambda: stretched(local_size=0xFFFFFFFF, extra=struct.pack("<HHL", 1, 4, 99)),
        "RK403",
        "a zip64 field is too short",
    ),
    "two end records that contradict each other": Attack(
        lambda: zip64_ends(1), "RK403", "the zip archive's two end records contradict each other"
    ),
    "a stored entry with two sizes": Attack(
        lambda: changed(
            struct.pack("<2L", 16, 16) + struct.pack("<H", 8) + bytes(12),
            struct.pack("<2L", 16, 17) + struct.pack("<H", 8) + bytes(12),
        ),
        "RK403",
        "the entry's sizes differ though it is stored: 16 and 17 bytes",
    ),
    "a wrong checksum of the pickle": Attack(
        lambda: Archive([Entry("m/data.pkl", pickled(GOOD), crc=7), Entry("m/data/0", bytes(16))]).bytes(),
        "RK403",
        "the entry's checksum is",
    ),
    "two checksums": Attack(
        lambda: stretched(local_crc=7), "RK403", "the entry's local header has another checksum than the directory"
    ),
    "a 510 KB entry that inflates to 512 MB": Attack(
        lambda: bomb(None), "RK410", "tensors of 512 MB in a file of 498 kB are refused"
    ),
    "a bomb that declares 16 bytes": Attack(
        lambda: bomb(16), "RK403", "the entry inflates to more than the 16 bytes it declares"
    ),
    "a `data.pkl` that inflates to 100 MB": Attack(
        lambda: zipped(bytes(100_000_000), zipfile.ZIP_DEFLATED),
        "RK403",
        "the entry is 100 MB; at most 64.0 MB are read",
    ),
    "a deflated entry that is too short": Attack(
        lambda: archive(pickled(GOOD), {}, Entry("m/data/0", bytes(8), deflate=True, size=16, local_size=16)).bytes(),
        "RK403",
        "the entry holds 8 bytes, not the 16 it declares",
    ),
    "a deflate stream that is none": Attack(lambda: stretched(method=8), "RK403", "the entry cannot be inflated"),
    "an entry outside the file": Attack(lambda: stretched(shift=1 << 30), "RK403", "the entry is outside the file"),
    "an entry whose header is elsewhere": Attack(
        lambda: stretched(shift=-1), "RK403", "the entry's local header is not where the directory says"
    ),
    "an encrypted entry": Attack(lambda: stretched(flags=1), "RK403", "the entry is encrypted"),
    "an unknown compression": Attack(
        lambda: stretched(method=14),
        "RK403",
        "the entry is compressed by method 14; only stored and deflated ones are supported",
    ),
    "a missing `data.pkl`": Attack(
        lambda: Archive([Entry("m/data/0", bytes(16))]).bytes(), "RK403", "a zip archive without data.pkl"
    ),
    "a directory that is elsewhere": Attack(
        lambda: Archive([Entry("m/data.pkl", pickled(GOOD))], directory_shift=1).bytes(),
        "RK403",
        "the zip archive's directory is not where its end record says",
    ),
    "fewer entries than counted": Attack(
        lambda: Archive([Entry("m/data.pkl", pickled(GOOD))], count=3).bytes(),
        "RK403",
        "a zip directory of 56 B for 3 entries",
    ),
    "more entries than counted": Attack(
        lambda: (
            archive(pickled(GOOD)).bytes().replace(struct.pack("<4H", 0, 0, 2, 2), struct.pack("<4H", 0, 0, 1, 1))
        ),
        "RK403",
        "the zip directory is longer than its entries",
    ),
    "bytes behind the archive": Attack(
        lambda: Archive([Entry("m/data.pkl", pickled(GOOD))], tail=b"x").bytes(),
        "RK403",
        "bytes follow the end of the zip archive",
    ),
    "a truncated archive": Attack(
        lambda: archive(pickled(GOOD)).bytes()[:-30],
        "RK403",
        "the zip archive has no end record: the file is truncated",
    ),
    "an archive in several parts": Attack(
        lambda: archive(pickled(GOOD)).bytes().replace(b"PK\x05\x06\0\0", b"PK\x05\x06\1\0"),
        "RK403",
        "a multi-part zip archive, which is not supported",
    ),
    "a TorchScript archive": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/constants.pkl", pickled(b")"))).bytes(),
        "RK409",
        "a TorchScript archive",
    ),
    "code in the archive": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/code/__torch__.py", b"x")).bytes(),
        "RK409",
        "a TorchScript archive",
    ),
    "`byteorder=big`": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/byteorder", b"big")).bytes(),
        "RK409",
        "byteorder 'big': only little-endian checkpoints are supported",
    ),
    "a byteorder of 1 kB": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/byteorder", b"x" * 1000)).bytes(),
        "RK403",
        "the entry is 1.00 kB; at most 64 B are read",
    ),
    "metadata that are no JSON": Attack(
        lambda: archive(pickled(GOOD), None, Entry("m/.data/remapkit.json", b"[" * 100_000)).bytes(),
        "RK403",
        "the metadata is not JSON",
    ),
}

W = entry()


def two(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    """Two tensors at these offsets of 32 bytes."""
    return safetensors({"a": entry(offsets=first), "b": entry(offsets=second)}, bytes(32))


def raw(header: str, data: bytes = bytes(16)) -> bytes:
    return safetensors(header.encode("utf-8", "surrogatepass"), data)


FIELDS = '"dtype":"F32","shape":[4],"data_offsets":[0,16]'

SAFETENSORS: dict[str, Attack] = {
    "a header longer than 100 MB": Attack(
        lambda: safetensors({"w": W}, bytes(16), length=100_000_001).ljust(64, b"x"),
        "RK402",
        "the format allows 100 MB",
    ),
    "a header of 2^64 - 1 bytes": Attack(
        lambda: safetensors({"w": W}, bytes(16), length=(1 << 64) - 1), "RK402", "the format allows 100 MB"
    ),
    "a header longer than the file": Attack(
        lambda: safetensors({"w": W}, bytes(16), length=10_000), "RK402", "the header is 10.0 kB, the file only"
    ),
    "a header that is not JSON": Attack(lambda: raw('{"w":'), "RK402", "the header is not valid JSON"),
    "a header with bytes behind it": Attack(
        lambda: raw('{"w":{' + FIELDS + "}}\0"), "RK402", "the header is not valid JSON"
    ),
    "a name twice": Attack(
        lambda: raw('{"w":{' + FIELDS + '},"w":{' + FIELDS + "}}"), "RK402", "duplicate name 'w' in the header"
    ),
    "a name twice, once escaped": Attack(
        lambda: raw('{"w":{' + FIELDS + '},"\\u0077":{' + FIELDS + "}}"),
        "RK402",
        "duplicate name 'w' in the header",
    ),
    "a field twice": Attack(
        lambda: raw('{"w":{"dtype":"F16",' + FIELDS + "}}"), "RK402", "duplicate name 'dtype' in the header"
    ),
    "an extra field": Attack(
        lambda: safetensors({"w": {**W, "code": "x"}}, bytes(16)),
        "RK402",
        "a tensor has exactly the fields dtype, shape and data_offsets",
    ),
    "a missing field": Attack(
        lambda: safetensors({"w": {"dtype": "F32", "shape": [4]}}, bytes(16)),
        "RK402",
        "a tensor has exactly the fields",
    ),
    "an unknown dtype": Attack(lambda: safetensors({"w": entry("F33")}, bytes(16)), "RK402", "unknown dtype 'F33'"),
    "overlapping offsets": Attack(lambda: two((0, 16), (8, 24)), "RK402", "the data overlaps: expected offset 16"),
    "offsets with a hole": Attack(lambda: two((0, 16), (17, 33)), "RK402", "the data has a hole: expected offset 16"),
    "a hole before the first tensor": Attack(
        lambda: safetensors({"w": entry(offsets=(8, 24))}, bytes(24)),
        "RK402",
        "the data has a hole: expected offset 0",
    ),
    "bytes behind the last tensor": Attack(
        lambda: safetensors({"w": W}, bytes(17)), "RK402", "bytes follow the last tensor"
    ),
    "a truncated file": Attack(lambda: safetensors({"w": W}, bytes(15)), "RK402", "the file is truncated"),
    "offsets outside the file": Attack(
        lambda: safetensors({"w": entry("U8", (1 << 40,), (0, 1 << 40))}, bytes(16)), "RK402", "the file is truncated"
    ),
    "offsets the wrong way round": Attack(
        lambda: safetensors({"w": entry(offsets=(16, 0))}, bytes(16)),
        "RK402",
        "must be [start, end] with start <= end",
    ),
    "a size that does not fit dtype and shape": Attack(
        lambda: safetensors({"w": entry(shape=(5,))}, bytes(16)),
        "RK402",
        "F32 [5] takes 20 bytes, its data_offsets span 16",
    ),
    "a negative size of a header": Attack(
        lambda: safetensors({"w": entry(shape=(-4,))}, bytes(16)),
        "RK402",
        "the header holds the negative number -4",
    ),
    "a negative zero": Attack(
        lambda: raw('{"w":{"dtype":"F32","shape":[4],"data_offsets":[-0,16]}}'),
        "RK402",
        "the header holds the negative number -0",
    ),
    "a size of 2^64": Attack(
        lambda: safetensors({"w": entry(shape=(1 << 64,))}, bytes(16)),
        "RK402",
        "must be a list of whole numbers from 0 to 2^64 - 1",
    ),
    "a size of 2^64 beside a 0": Attack(
        lambda: safetensors({"w": entry(shape=(0, 1 << 64), offsets=(0, 0))}),
        "RK402",
        "must be a list of whole numbers from 0 to 2^64 - 1",
    ),
    "a product that overflows before a 0": Attack(
        lambda: safetensors({"w": entry(shape=(1 << 63, 4, 0), offsets=(0, 0))}), "RK402", "overflows 64 bits"
    ),
    "bits that overflow": Attack(
        lambda: safetensors({"w": entry("F64", (1 << 61,))}, bytes(16)), "RK402", "overflows 64 bits"
    ),
    "a size that is not a whole number": Attack(
        lambda: safetensors({"w": entry(shape=(4.0,))}, bytes(16)), "RK402", "must be a list of whole numbers"
    ),
    "a size that is a boolean": Attack(
        lambda: safetensors({"w": entry("U8", (True,), (0, 1))}, bytes(1)), "RK402", "must be a list of whole numbers"
    ),
    "NaN as an offset": Attack(
        lambda: raw('{"w":{"dtype":"F32","shape":[4],"data_offsets":[NaN,16]}}'),
        "RK402",
        "the header holds NaN, which is not a JSON number",
    ),
    "a number of a million digits": Attack(
        lambda: raw('{"w":{"dtype":"F32","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,16]}}'),
        "RK402",
        "the header holds a number of 1000000 digits",
    ),
    "three offsets": Attack(
        lambda: safetensors({"w": entry(offsets=(0, 8, 16))}, bytes(16)), "RK402", "must be [start, end]"
    ),
    "half a byte": Attack(
        lambda: safetensors({"w": entry("F4", (3,), (0, 2))}, bytes(2)), "RK402", "is not a whole number of bytes"
    ),
    "65 dimensions in a header": Attack(
        lambda: safetensors({"w": entry("U8", (1,) * 65, (0, 1))}, bytes(1)),
        "RK402",
        "a shape of 65 dimensions; tensors have at most 64",
    ),
    "invalid UTF-8": Attack(
        lambda: safetensors(b'{"\xff":{' + FIELDS.encode() + b"}}", bytes(16)),
        "RK402",
        "the header is not UTF-8: byte 2",
    ),
    "a lone surrogate": Attack(
        lambda: raw('{"\\ud800":{' + FIELDS + "}}"), "RK402", "a name holds the lone surrogate U+D800"
    ),
    "a lone surrogate in the metadata": Attack(
        lambda: raw('{"__metadata__":{"a":"\\udfff"},"w":{' + FIELDS + "}}"),
        "RK402",
        "`__metadata__` holds a lone surrogate",
    ),
    "a control character in a name": Attack(
        lambda: raw('{"\\u001b[2J":{' + FIELDS + "}}"), "RK402", "a name holds the control character U+001B"
    ),
    "a character that reorders text in a name": Attack(
        lambda: raw('{"a\u202eb":{' + FIELDS + "}}"), "RK402", "a name holds U+202E"
    ),
    "metadata that are no strings": Attack(
        lambda: raw('{"__metadata__":{"a":1},"w":{' + FIELDS + "}}"),
        "RK402",
        "`__metadata__` must map strings to strings",
    ),
    "metadata that are a list": Attack(
        lambda: raw('{"__metadata__":[],"w":{' + FIELDS + "}}"), "RK402", "`__metadata__` must map strings to strings"
    ),
    "a depth bomb": Attack(lambda: raw('{"w":' + "[" * 2_000_000), "RK402", "nested too deeply"),
    "a depth bomb of objects": Attack(lambda: raw('{"w":' + '{"a":' * 100_000), "RK402", "nested too deeply"),
    "eight million empty lists": Attack(
        lambda: raw('{"w":[' + "[]," * 8_000_000 + "[]]}"), "RK402", "more than 1000000 tensors could need"
    ),
    "1.6 million tensors in 95 MB": Attack(
        lambda: raw(
            "{"
            + ",".join(f'"{n:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(1_600_000))
            + "}",
            b"",
        ),
        "RK402",
        "more than 1000000 tensors could need",
    ),
}

JSONS: dict[str, Attack] = {
    "a depth bomb of a manifest": Attack(lambda: b'{"a":' + b"[" * 1_000_000, "RK408", "nested too deeply"),
    "thirty million empty objects": Attack(
        lambda: b'{"a":[' + b"{}," * 30_000_000 + b"{}]}", "RK408", "more than 1000000 tensors could need"
    ),
    "a manifest of 200 MB": Attack(
        lambda: b'{"a": "' + b"x" * 200_000_000 + b'"}', "RK408", "a manifest or an index has at most 100 MB"
    ),
    "a number of a million digits in a manifest": Attack(
        lambda: b'{"w": {"dtype": "F32", "shape": [' + b"9" * 1_000_000 + b"]}}",
        "RK408",
        "a number of 1000000 digits",
    ),
    "a manifest of 2^70 elements": Attack(
        lambda: json.dumps({"w": {"dtype": "F32", "shape": [1 << 35, 1 << 35]}}).encode(),
        "RK408",
        "overflows 64 bits",
    ),
    "a manifest of 100,000 dimensions": Attack(
        lambda: json.dumps({"w": {"dtype": "F32", "shape": [1 << 62] * 100_000}}).encode(),
        "RK408",
        "a shape of 100000 dimensions; tensors have at most 64",
    ),
    "a name twice in a manifest": Attack(lambda: b'{"w": {}, "w": {}}', "RK408", "duplicate name 'w' in the file"),
    "a control character in the name of a manifest": Attack(
        lambda: b'{"a\\u0007": {"dtype": "F32", "shape": []}}', "RK408", "a name holds the control character U+0007"
    ),
}

ATTACKS: dict[str, dict[str, Attack]] = {
    "Pickles": PICKLES,
    "Legacy files": LEGACY,
    "Tensors": TENSORS,
    "Zip archives": ZIPS,
    "safetensors": SAFETENSORS,
    "Manifests": JSONS,
}
