"""The hostile corpus, continued: archives whose members and directories lie."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator

from tests.hostile import base
from tests.hostile.base import central_entries, patched
from tests.hostile.case import Case


def archives() -> Iterator[Case]:
    """Lies about members: names, sizes, places, checksums, numbers of them."""
    sound = base.pt2()
    entries = central_entries(sound)
    end = len(sound) - 22

    def put(name: str) -> bytes:
        return base.pt2(lambda m: m.update({name: b"x"}))

    yield Case(name="a sound archive", files=(sound,), outcome="read")
    tricks = (
        "../../x",
        "extra/../../x",
        "/etc/cron.d/x",
        "extra//x",
        "./x",
        "extra/.",
        "C:/x",
        "extra/C:x",
        "extra/a\nb",
    )
    yield Case(name="names that lead out", files=tuple(put(name) for name in tricks), says="name that is not allowed")
    odd = ("extra/a\u202egnp.so", "extra/\u200b", "extra/\ufeff", "extra/\u2028", "extra/" + "x" * 1100)
    yield Case(name="names that are not what they look like", files=tuple(map(put, odd)), says="not allowed")
    # zipfile cuts a name at NUL and turns backslashes round, so these are put in afterwards
    spot = put("extra/abcd")
    yield Case(
        name="NUL, backslash, CESU-8 and Latin-1 in names",
        files=tuple(
            spot.replace(b"extra/abcd", b"extra/" + new) for new in (b"a\0bc", b"..\\x", b"\xed\xa0\x80x", b"\xe9abc")
        ),
        says="name",
    )
    wide = ("extra/e\u0301", "extra/\u00e9", "extra/\u5b57", "extra/\U0001f600")
    yield Case(name="names beyond ASCII", files=tuple(map(put, wide)), outcome="read")

    case = base.pt2(lambda m: m.update({"data/weights/WEIGHT_0": b"x"}))
    copy = spot.replace(b"m/extra/abcd", b"m/.data/VERSIO"[:12])
    yield Case(name="the same name twice", files=(case, copy), says="two members|not known|name")
    link = bytearray(sound)
    for at in entries:
        link[at + 38 : at + 42] = struct.pack("<L", 0o120777 << 16)
    yield Case(name="members that say they are links", files=(bytes(link),), outcome="read")
    yield Case(
        name="compressed members",
        files=tuple(
            base.zipped({**base.contents(), "data/weights/weight_0": bytes(2**24)}, compression=method)
            for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
        says="compressed",
    )
    inner = base.zipped({"a": bytes(2**20)}, compression=zipfile.ZIP_DEFLATED)
    yield Case(
        name="a bomb within, never opened",
        files=(base.pt2(lambda m: m.update({"extra/b.zip": inner})),),
        outcome="read",
    )
    first, second = entries[0], entries[1]
    quoted = patched(sound, second + 42, sound[first + 42 : first + 46])
    yield Case(name="two entries for one member", files=(quoted,), says="disagrees|overlap")
    fields = (
        *((8, struct.pack("<H", flag)) for flag in (1, 1 << 5, 1 << 13)),
        *((10, struct.pack("<H", method)) for method in (8, 9, 12, 99)),
        *((20, struct.pack("<2L", size, size)) for size in (0, 1, 2**31, 2**32 - 2, 2**32 - 1)),
        *((28, struct.pack("<H", length)) for length in (0, 1, 0xFFFF)),
        *((30, struct.pack("<H", length)) for length in (4, 0xFFFF)),
        *((42, struct.pack("<L", place)) for place in (0, 1, end, 2**32 - 1)),
        *((at, b"\xff\xff") for at in (6, 32, 34)),
        (16, b"\0\0\0\0"),
        (46, b"/"),
    )
    yield Case(
        name="directory entries that lie",
        files=tuple(patched(sound, entries[1] + at, value) for at, value in fields),
        outcome="refused",
    )
    local = struct.unpack_from("<L", sound, entries[1] + 42)[0]
    places = (
        (0, b"PK\7\x08"),
        (6, b"\1\0"),
        (8, b"\x08\0"),
        (14, bytes(4)),
        (18, b"\1"),
        (22, b"\xff" * 4),
        (26, b"\1\0"),
        (30, b"n"),
    )
    yield Case(name="local headers that disagree", files=tuple(patched(sound, local + at, v) for at, v in places))
    ends = (
        *((at, b"\1\0") for at in (4, 6, 8, 20)),
        *((at, struct.pack("<H", 0xFFFF)) for at in (8, 10)),
        *((12, struct.pack("<L", size)) for size in (0, 2**31, 2**32 - 1)),
        *((16, struct.pack("<L", place)) for place in (0, end, 2**32 - 1)),
    )
    yield Case(name="directory ends that lie", files=tuple(patched(sound, end + at, value) for at, value in ends))
    start, size = struct.unpack_from("<2L", sound, end + 12)[::-1]
    yield Case(
        name="zip64 ends", files=tuple(_zip64(sound, end, *lie) for lie in _zip64_lies(len(entries), size, start))
    )
    yield Case(name="a sound zip64 end", files=(_zip64(sound, end, len(entries), size, start),), outcome="read")
    yield Case(
        name="a million members",
        files=(_zip64(sound, end, 10**6, size, start), empty_members(100_001)),
        says="too many members|disagree|does not end",
    )
    yield Case(
        name="polyglots",
        files=(b"\x7fELF" + sound, b"%PDF-1.7\n" + sound, b"#!/bin/sh\n" + sound, sound + b"<html>", sound + sound),
    )
    yield Case(name="bytes that no member owns", files=(_with_gap(sound, b"\x7fELF" + bytes(60)),), outcome="read")


def _zip64_lies(count: int, size: int, start: int) -> Iterator[tuple[int, ...]]:
    yield count + 1, size, start
    yield count, size + 1, start
    yield count, size, start + 1
    yield 2**64 - 1, size, start
    yield count, 2**64 - 1, start
    yield count, size, 2**64 - 1
    yield count, 0, start + size
    yield count, 2**63, 2**63 + start + size


def _zip64(data: bytes, end: int, count: int, size: int, start: int) -> bytes:
    """The archive with a zip64 end that says this."""
    full = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return data[:end] + full + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, *(2**32 - 1,) * 2, 0)


def empty_members(count: int) -> bytes:
    """An archive of so many empty members, each with a header of its own."""
    data, directory = bytearray(), bytearray()
    for i in range(count):
        name = b"m/extra/%07d" % i
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *(0,) * 7, len(name), *(0,) * 5, len(data)) + name
        data += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *(0,) * 7, len(name), 0) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, *(2**32 - 1,) * 2, 0)
    return _zip64(bytes(data + directory + end), len(data) + len(directory), count, len(directory), len(data))


def _with_gap(data: bytes, gap: bytes) -> bytes:
    """The archive with bytes between its last member and its directory."""
    end = len(data) - 22
    start = struct.unpack_from("<L", data, end + 16)[0]
    tail = patched(data[start:], end - start + 16, struct.pack("<L", start + len(gap)))
    return data[:start] + gap + tail
