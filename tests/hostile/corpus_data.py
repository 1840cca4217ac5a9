"""The hostile corpus, continued: safetensors, npz, masks, and every format cut short."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

from tests.hostile import base, corpus_old
from tests.hostile.base import central_entries, entry, npy, npz, patched, safetensors
from tests.hostile.case import Case

CONFIG = json.dumps({"architecture": "mlpnet-mnist"})
_X = entry("F32", [3, 4], 0, 48)
_BIG = 2**63


def _headers() -> Iterator[tuple[Any, bytes]]:
    """Headers of safetensors that lie, each with the bytes that follow."""
    for item in (
        *(
            entry("F32", [3, 4], *ends)
            for ends in ((0, 47), (0, 49), (4, 52), (-48, 0), (48, 0), (0, _BIG), (0,), (0, 48, 96))
        ),
        *(entry("F32", [3, 4], *ends) for ends in ((0.0, 48.0), (False, 48), ("0", "48"), (None, 48), (0, 10**30))),
        *(
            entry("F32", shape, 0, 48)
            for shape in ([3, 5], [-3, -4], [2**62, 2**62], [0], [True, 12], "12", None, [[12]], [1] * 70 + [12])
        ),
        *(entry("F32", shape, 0, 48) for shape in ([12.0], [10**40], [2**32, 2**32], [{"n": 12}])),
        *(
            entry(dtype, [3, 4], 0, 48)
            for dtype in ("F8_E5M2", "C64", "f32", "", None, 7, ["F32"], "F32\0", "\u202eF32", "pickle")
        ),
        *({}, [], None, 7, "x", {"dtype": "F32"}, {"shape": [3, 4]}),
    ):
        yield {"x": item}, bytes(48)
    yield {"x": entry("F32", [0, 2**62, 2**62], 0, 0)}, b""
    yield {"x": _X, "z": _X}, bytes(48)
    yield {"x": _X, "z": entry("F32", [3, 4], 24, 72)}, bytes(72)
    yield {"x": _X, "z": entry("F32", [3, 4], 60, 108)}, bytes(108)
    yield {"x": _X}, bytes(400)
    yield {"x": _X}, b""
    yield {"x" * 100_000: _X}, bytes(47)
    yield {"x": _X, "__metadata__": {"a": 1}}, bytes(47)
    for text in (b"", b"{", b"{}x", b"[]", b"{" * 3000, b'{"x":' * 3000, b'{"x": NaN}', b"{\xff}", b'{"x": 1e999}'):
        yield text, bytes(48)
    whole = json.dumps(_X).encode()
    yield b'{"x":' + whole + b',"\\ud800":' + whole + b"}", bytes(48)
    yield b'{"x":' + whole + b',"x":' + whole + b"}", bytes(96)
    yield json.dumps({"x": _X}).encode("utf-16"), bytes(48)
    yield {f"x{i}": entry("F32", [], 4 * i, 4 * i + 4) for i in range(20_000)}, bytes(80_001)


def tensors() -> Iterator[Case]:
    """Safetensors as models, datasets and masks: headers that lie."""
    files = tuple(safetensors(header, body) for header, body in _headers())
    sound = safetensors({"x": _X}, bytes(48))
    lengths = (0, 1, 2, 7, 47, len(sound), 2**25 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
    files += tuple(safetensors({"x": _X}, bytes(48), length=length) for length in lengths)
    files += (sound + base.pt2(), sound[:8] + b" " + sound[8:], b"", sound[:8], sound[:9])
    yield Case(name="safetensors headers that lie", kind="dataset", files=files)
    yield Case(name="the same as masks", kind="mask", files=files)
    named = tuple(_with_config(data) for data in files)
    yield Case(name="the same as models", kind="model", files=(*files, *named))
    yield Case(name="a sound dataset", kind="dataset", files=(sound,), outcome="read")
    ones = safetensors({"w": entry("BOOL", [3, 4], 0, 12)}, b"\1" * 12)
    yield Case(name="a sound mask", kind="mask", files=(ones,), outcome="read")
    yield Case(
        name="masks that are none",
        kind="mask",
        files=(
            *(ones[:-1] + bytes([byte]) for byte in (2, 255)),
            safetensors({}),
            safetensors({"w": entry("BOOL", [0], 0, 0)}),
            safetensors({"w" * 2000: entry("BOOL", [1], 0, 1)}, b"\1"),
            safetensors({"w": entry("U8", [1], 0, 1)}, b"\1"),
            base.pt2(),
            npz(w=npy("'|b1'", body=bytes(12))),
        ),
    )
    nan, huge = struct.pack("<f", float("nan")) * 12, struct.pack("<f", float("inf")) * 12
    yield Case(
        name="numbers that are none",
        kind="dataset",
        files=(
            *(safetensors({"x": _X}, body) for body in (nan, huge)),
            safetensors({"x": entry("BF16", [3, 1], 0, 6)}, b"\x80\x7f" * 3),
            *(npz(x=npy(body=body)) for body in (nan, huge)),
            npz(x=npy("'<f8'", "(1,)", body=struct.pack("<d", float("-inf")))),
        ),
        says="holds",
    )
    tiny = struct.pack("<f", 1e-45) * 12
    yield Case(
        name="numbers that are hardly any",
        kind="dataset",
        files=(safetensors({"x": _X}, tiny), npz(x=npy(body=tiny))),
        outcome="read",
    )
    architectures = (
        "resnet20-cifar10",
        "mlpnet-mnist",
        "../../x",
        "x" * 10**5,
        "__class__",
        "",
        7,
        None,
        ["mlpnet-mnist"],
        {},
    )
    configs = [json.dumps({"architecture": name}) for name in architectures]
    configs += ["[" * 3000, "{", "null", "NaN", '{"architecture": "\\ud800"}', "\x00", '{"a":' * 3000]
    yield Case(
        name="configs that lie",
        files=(
            *(safetensors({"x": _X, "__metadata__": {"config": config}}, bytes(48)) for config in configs),
            *(base.zipped({"config.json": c.encode(), "model.safetensors": sound}, "") for c in configs),
            safetensors({"x": _X, "__metadata__": {"config": ["mlpnet-mnist"]}}, bytes(48)),
        ),
    )


def _with_config(data: bytes) -> bytes:
    return base.zipped({"config.json": CONFIG.encode(), "model.safetensors": data}, "")


def arrays() -> Iterator[Case]:
    """npz: headers that lie, bombs, members that are none."""
    yield Case(
        name="sound arrays",
        kind="dataset",
        files=(
            npz(x=npy()),
            npz(zipfile.ZIP_DEFLATED, x=npy()),
            npz(x=npy(order="True"), y=npy("'>i8'", "(3,)", body=bytes(24))),
        ),
        outcome="read",
    )
    descrs = (
        "'|O'",
        "'O'",
        "'|O8'",
        "'<U3'",
        "'|S4'",
        "'|V4'",
        "'<M8[s]'",
        "'<c8'",
        "'<f16'",
        "[('a', '<f4')]",
        "('<f4', (2,))",
        "'<f4' * 9",
    )
    descrs += ("__import__('os').system('x')", "None", "{}", "''", "'<f'", "'f4,f4'", "4", "'<i16'", "b'<f4'", '"<f4"')
    shapes = (
        "(-3, -4)",
        "(-1,)",
        "(3, -4)",
        "(3.0, 4)",
        "(3, 4, 0)",
        "(99999999999999999999,)",
        "(9223372036854775807, 9)",
        "[3, 4]",
        "12",
        "(True, 12)",
        "((3, 4),)",
        "('3', '4')",
        "(3, 4",
        "(" * 2000,
        "(1,)" * 500,
    )
    shapes += ("(" + "1, " * 17 + "12)", "(3, 4, 1e9)", "(0x3, 4)", "(3_0, 4)", "(١٢,)")
    orders = ("None", "0", "'False'", "true", "")
    yield Case(
        name="array headers that lie",
        kind="dataset",
        files=(
            *(npz(x=npy(descr=d)) for d in descrs),
            *(npz(x=npy(shape=s)) for s in shapes if s.isascii()),
            *(npz(x=npy(order=o)) for o in orders),
            *(npz(x=patched(npy(), 6, version)) for version in (b"\0\0", b"\4\0", b"\x02\0", b"\x03\0", b"\xff\xff")),
            *(npz(x=patched(npy(), 8, struct.pack("<H", n))) for n in (0, 1, 50, 5000, 65535)),
            *(
                npz(x=data)
                for data in (b"", b"\x93NUMPY", npy()[:-1], npy() + b"\0", b"PK\3\4", b"\x80\4K\1.", bytes(500))
            ),
            npz(x=npy().replace(b"'shape'", b"'descr'")),
            npz(x=npy().replace(b", }", b", 'x': 1}")),
            npz(y=npy("'|b1'", "(3,)", body=b"\0\1\2")),
            npz(x=npy("'<f4'", "(2,)", body=bytes(8)), y=npy("'<f4'", "(3,)", body=bytes(12))),
        ),
    )
    zeros = bytes(48 + 2**24)
    bomb = npz(zipfile.ZIP_DEFLATED, x=npy(shape=f"({len(zeros) // 4},)", body=zeros))
    nested = npz(zipfile.ZIP_DEFLATED, x=bomb)
    sound = npz(x=npy(), y=npy("'<i8'", "(3,)", body=bytes(24)))
    one, two = central_entries(sound)
    yield Case(
        name="bombs", kind="dataset", files=(bomb, nested, _overlapping()), says="zip bomb|no npy|overlaps|broken"
    )
    fields = (
        *(
            (8, b"\1\0"),
            (10, b"\x63\0"),
            (10, b"\x09\0"),
            (20, b"\xff" * 8),
            (20, bytes(8)),
            (28, b"\xff\xff"),
            (42, b"\xff" * 4),
            (46, b"\xff"),
        ),
        *((16, bytes(4)), (30, b"\xff\xff"), (24, struct.pack("<L", 2**31)), (42, sound[one + 42 : one + 46])),
    )
    end = len(sound) - 22
    zip64 = struct.pack("<4sLQL", b"PK\6\7", 0, 2**64 - 1, 1)
    yield Case(
        name="archives of arrays that lie",
        kind="dataset",
        outcome="either",  # Python's reader forgives what it does not use
        files=(
            *(patched(sound, two + at, value) for at, value in fields),
            *(
                patched(sound, end + at, value)
                for at, value in ((8, b"\xff\xff\xff\xff"), (12, b"\xff" * 4), (16, b"\xff" * 4), (10, b"\0\0"))
            ),
            sound[:end] + zip64 + sound[end:],
            patched(sound, struct.unpack_from("<L", sound, two + 42)[0], b"PK\0\0"),
            npz(**{f"x{i}": npy() for i in range(65)}),
            *(
                base.zipped({name: npy()}, "")
                for name in (
                    "../x.npy",
                    "/x.npy",
                    "x",
                    "x.txt",
                    "a/x.npy",
                    ".npy",
                    "x" * 200 + ".npy",
                    "x\n.npy",
                    "C:x.npy",
                    "x .npy",
                    "",
                )
            ),
            base.zipped({"a/0.png": b"x", "": b"x"}, ""),
            base.zipped({"x.npy": npy(), "X.npy": npy(), "x.NPY": npy()}, ""),
            npy(),
            b"PK\5\6" + bytes(18),
        ),
    )


def _overlapping() -> bytes:
    """Many directory entries for one well packed member: each within its ratio, all together not."""
    data = npz(zipfile.ZIP_DEFLATED, x=npy(shape="(500,)", body=random.Random(0).randbytes(2000)))
    (at,) = central_entries(data)
    end = len(data) - 22
    copies = b"".join(data[at:end].replace(b"x.npy", b"%c.npy" % (97 + i)) for i in range(20))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20, 20, len(copies), at, 0)
    return data[:at] + copies + tail


def cut() -> Iterator[Case]:
    """Every format cut short at each of its boundaries, and at many other places."""
    tensor_file, pt2 = safetensors({"x": _X, "__metadata__": {"config": CONFIG}}, bytes(48)), base.pt2()
    both = _with_config(tensor_file)
    arrays = npz(zipfile.ZIP_DEFLATED, x=npy(), y=npy("'<i8'", "(3,)", body=bytes(24)))
    ones = safetensors({"w": entry("BOOL", [3, 4], 0, 12)}, b"\1" * 12)
    for kind, what, data in (
        ("model", "pt2", pt2),
        *(("model", name, data) for name, data in corpus_old.cut()),
        ("model", "zip of safetensors", both),
        ("model", "safetensors", tensor_file),
        ("dataset", "npz", arrays),
        ("dataset", "safetensors", tensor_file),
        ("mask", "safetensors", ones),
    ):
        yield Case(name=f"{what} ({kind}) cut short", kind=kind, files=tuple(data[:at] for at in _boundaries(data)))  # type: ignore[arg-type]


def _boundaries(data: bytes) -> list[int]:
    places = {0, 1, 4, 8, 9, 16, len(data) - 1, len(data) - 2, len(data) - 4}
    if data.startswith(b"PK"):
        places |= {at for at in range(len(data)) if data[at : at + 2] == b"PK" and data[at + 2] < 8}
        places |= {len(data) - 22 + at for at in (4, 8, 10, 12, 16, 20)}
        with_sizes = [at for at in places if data[at : at + 4] == b"PK\3\4"]
        places |= {at + 30 + sum(struct.unpack_from("<2H", data, at + 26)) for at in with_sizes}
    else:
        length = int.from_bytes(data[:8], "little")
        places |= {8 + length, 7 + length, 9 + length}
    chance = random.Random(0)
    places |= {chance.randrange(len(data)) for _ in range(60)}
    return sorted(at for at in places if 0 <= at < len(data))
