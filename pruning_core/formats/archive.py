"""Zip archives of stored (uncompressed) members, parsed strictly and read through a memory map.

A strict parser of its own, because two zip parsers may see two different files in one archive: here every size is
stated twice and must agree, members may not overlap, and nothing is inflated.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pruning_core.errors import ModelError

#: The first bytes of a zip archive.
MAGIC = b"PK\x03\x04"
MAX_MEMBERS = 100_000
MAX_DIRECTORY_BYTES = 64 * 2**20
MAX_NAME_BYTES = 1024
_CHUNK = 4 * 2**20

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SENTINEL = 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
#: How much a compressed member may grow.
_RATIO = 100
_HAS_DESCRIPTOR = 1 << 3
#: The newest zip version (6.3) that other readers open.
_NEWEST_VERSION = 63
_ALLOWED_FLAGS = _HAS_DESCRIPTOR | 1 << 11 | 0b110  # descriptor, UTF-8 names, two hints for compressors


@dataclass(frozen=True, kw_only=True)
class Member:
    """One stored file.

    Attributes:
        name: With forward slashes, never absolute, never with ``..``.
        offset: Where its bytes start in the archive.
        size: How many they are.
        packed: How many they are in the archive: fewer where it is compressed.
        crc: Their CRC-32, as the archive states it.
        crc_fields: Where the archive states it: offsets of 4-byte little-endian fields.
        holder: Name of the member that it is within; its checksum is over these bytes too.
    """

    name: str
    offset: int
    size: int
    packed: int
    crc: int
    crc_fields: tuple[int, ...]
    holder: str | None = None


class Archive:
    """A zip archive that was checked; its members are read through a private memory map, lazily.

    Args:
        path: The file.
        deflated: Whether members may be compressed; of such a member only `view` gives the bytes.

    Attributes:
        map: All of the file.
        start: Where in it the archive begins,
        size: and how long it is.
        members: By name.

    Raises:
        ModelError: It is not a sound zip archive of stored members.
    """

    def __init__(self, path: Path, *, deflated: bool = False) -> None:
        self.path = path
        self.map = open_map(path)
        self.start, self.size = 0, len(self.map)
        self.members: Mapping[str, Member] = _members(memoryview(self.map), (_STORED, _DEFLATED)[: 1 + deflated])

    def within(self, name: str) -> Archive:
        """Return the archive that a member is, its members at their places in the outer file.

        Raises:
            ModelError: There is no such member, it is damaged, or no sound archive of stored members.
        """
        view, at = self.view(name), self.members[name].offset
        inner = object.__new__(Archive)
        inner.path, inner.map, inner.start, inner.size = self.path, self.map, at, len(view)
        inner.members = {
            key: replace(member, offset=at + member.offset, crc_fields=tuple(at + f for f in member.crc_fields))
            for key, member in _members(view, (_STORED,)).items()
        }
        return inner

    def joined(self, name: str, inside: Archive) -> Archive:
        """Return this archive with the members of one that is `within` it, each as ``name/…``."""
        whole = object.__new__(Archive)
        whole.path, whole.map, whole.start, whole.size = self.path, self.map, self.start, self.size
        more = {f"{name}/{key}": replace(member, holder=name) for key, member in inside.members.items()}
        whole.members = {**self.members, **more}
        return whole

    def view(self, name: str, limit: int | None = None) -> memoryview:
        """Return a member's bytes after comparing them with their CRC.

        Args:
            name: Its name.
            limit: The most bytes that it may have.

        Raises:
            ModelError: It is not there, too large, or damaged.
        """
        member = self.members.get(name)
        if member is None:
            raise ModelError(f"The archive has no member {name!r}.", expected=name, received=sorted(self.members)[:20])
        if limit is not None and member.size > limit:
            raise ModelError(
                f"The member {name!r} is too large.", expected=f"at most {limit} bytes", received=member.size
            )
        view = memoryview(self.map)[member.offset : member.offset + member.packed]
        if member.packed != member.size:
            view = _inflated(view, member)
        if checksum(view) != member.crc:
            raise ModelError(f"The member {name!r} is damaged: its checksum does not match.", advice="Send it again.")
        return view


def open_map(path: Path) -> mmap.mmap:
    """Return a private copy-on-write map of a file: read lazily, never written back.

    Raises:
        ModelError: The file is empty.
    """
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:
            raise ModelError("The model file is empty.", expected="a model file", received="0 bytes") from None


def checksum(data: memoryview) -> int:
    """Return the CRC-32 of some bytes, a piece at a time."""
    crc = 0
    for start in range(0, len(data), _CHUNK):
        crc = zlib.crc32(data[start : start + _CHUNK], crc)
    return crc


def _broken(why: str) -> ModelError:
    return ModelError(
        f"The archive is truncated or damaged: {why}.",
        expected="a zip archive of stored members, as torch.export.save writes it",
        advice="Send it again; compare its SHA-256 with the original's.",
    )


def _inflated(view: memoryview, member: Member) -> memoryview:
    """Return the bytes of a compressed member: never more than it says, and it may not say too much."""
    if member.size > max(_RATIO * member.packed, 2**20):
        raise ModelError(
            f"The member {member.name!r} would grow too much.",
            expected=f"at most {_RATIO} times its {member.packed} bytes",
            received=member.size,
        )
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(view, member.size + 1)
    except zlib.error:
        raise _broken(f"the compressed member {member.name!r} is not sound") from None
    if len(data) != member.size:
        raise _broken(f"the compressed member {member.name!r} has another size than it says")
    return memoryview(bytearray(data))  # writable, as a map is: tensors are made of it


def _members(data: memoryview, methods: tuple[int, ...]) -> dict[str, Member]:
    start, size, count = _directory(data)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
        raise ModelError("The archive has too many members.", expected=f"at most {MAX_MEMBERS}", received=count)
    members: dict[str, Member] = {}
    folded: set[str] = set()
    spans: list[tuple[int, int]] = []
    for member, begin in _entries(data, start, size, count, methods):
        if member.name.lower() in folded:  # some readers look names up without regard to case
            raise ModelError(f"The archive has two members named {member.name!r}.", expected="distinct names")
        folded.add(member.name.lower())
        members[member.name] = member
        spans.append((begin, member.offset + member.packed))
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if any(begin < end for (begin, _), end in zip(spans, ends, strict=False)) or ends[-1] > start:
        raise _broken("its members overlap")
    return members


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Return offset, size and number of entries of the central directory."""
    end = len(data) - _END.size
    if end < 0 or bytes(data[end : end + 4]) != b"PK\x05\x06":
        raise _broken("the end of its directory is missing")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, end)
    stated = (here, count, size, start)
    if comment or disk or first_disk:
        raise _broken("it has a comment or several parts")
    stop = end
    locator = end - _LOCATOR.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\x06\x07":
        _, _, stop, _ = _LOCATOR.unpack_from(data, locator)
        if stop + _END64.size != locator or bytes(data[stop : stop + 4]) != b"PK\x06\x06":
            raise _broken("its zip64 directory end is not where it should be")
        _, length, _, _, _, _, here, count, size, start = _END64.unpack_from(data, stop)
        full = (here, count, size, start)
        limits = (0xFFFF, 0xFFFF, _SENTINEL, _SENTINEL)
        if length != _END64.size - 12 or any(
            a not in (b, limit) for a, b, limit in zip(stated, full, limits, strict=True)
        ):
            raise _broken("its two directory ends disagree")
    if here != count or start + size != stop:
        raise _broken("its directory does not end where it says")
    return start, size, count


def _entries(
    data: memoryview, start: int, size: int, count: int, methods: tuple[int, ...]
) -> Iterator[tuple[Member, int]]:
    """Yield each member and where its local header begins."""
    at, stop = start, start + size
    for _ in range(count):
        if at + _CENTRAL.size > stop or bytes(data[at : at + 4]) != b"PK\x01\x02":
            raise _broken("its directory is cut short")
        fields = _CENTRAL.unpack_from(data, at)
        _, _, version, flags, method, _, _, crc, packed, size_, name_len, extra_len, comment_len, disk, _, _, begin = (
            fields
        )
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_len
        following = extra_at + extra_len + comment_len
        if following > stop:
            raise _broken("its directory is cut short")
        name = _name(bytes(data[name_at:extra_at]))
        extra = bytes(data[extra_at : extra_at + extra_len])
        size_, packed, begin = _widen(extra, (size_, packed, begin))
        if method not in methods or (method == _STORED and packed != size_):
            raise ModelError(
                f"The member {name!r} is compressed.",
                expected="stored members (no compression)",
                received=f"compression method {method}",
                advice="torch.export.save stores members as they are; with the zip tool use `zip -0`.",
            )
        if flags & ~_ALLOWED_FLAGS or disk or version > _NEWEST_VERSION:
            raise _broken(f"the member {name!r} is encrypted or of an unknown kind or version")
        offset = _local_data(data, begin, start, name, flags, method, (crc, packed, size_))
        if offset + packed > start:
            raise _broken(f"the member {name!r} reaches beyond the end")
        if not name.endswith("/"):
            fields_ = (at + 16, *_local_checksums(data, begin, offset + packed, flags, crc, name))
            yield Member(name=name, offset=offset, size=size_, packed=packed, crc=crc, crc_fields=fields_), begin
        elif size_:
            raise _broken(f"the folder {name!r} has contents")
        at = following
    if at != stop:
        raise _broken("its directory has trailing bytes")


def _widen(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replace values that are 0xFFFFFFFF by those of the zip64 field."""
    wide = list(values)
    missing = [i for i, value in enumerate(values) if value == _SENTINEL]
    at = 0
    while missing and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and length >= 8 * len(missing) and at + 4 + length <= len(extra):
            for i, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, at + 4), strict=True):
                wide[i] = value
            missing = []
        at += 4 + length
    if missing:
        raise _broken("a 64-bit size is missing")
    return wide[0], wide[1], wide[2]


def _local_data(
    data: memoryview, begin: int, stop: int, name: str, flags: int, method: int, stated: tuple[int, int, int]
) -> int:
    """Return where the bytes of a member start, after comparing its local header with the directory."""
    if begin + _LOCAL.size > stop or bytes(data[begin : begin + 4]) != b"PK\x03\x04":
        raise _broken(f"the header of member {name!r} is missing")
    _, _, own_flags, own_method, _, _, crc, packed, size, name_len, extra_len = _LOCAL.unpack_from(data, begin)
    name_at = begin + _LOCAL.size
    deferred = (crc, packed, size) == (0, 0, 0) and flags & _HAS_DESCRIPTOR
    extra = bytes(data[name_at + name_len : name_at + name_len + extra_len])
    size, packed, _ = _widen(extra, (size, packed, 0))
    agrees = deferred or (crc, packed, size) == stated
    if (
        own_flags != flags
        or own_method != method
        or not agrees
        or bytes(data[name_at : name_at + name_len]) != name.encode()
        or name_at + name_len + extra_len > stop
    ):
        raise _broken(f"the header of member {name!r} disagrees with the directory")
    return int(name_at + name_len + extra_len)


def _local_checksums(data: memoryview, begin: int, end: int, flags: int, crc: int, name: str) -> list[int]:
    """Return where a member's checksum stands: in its header, and after its bytes if there is a descriptor."""
    places = []
    if not flags & _HAS_DESCRIPTOR or bytes(data[begin + 14 : begin + 18]) != bytes(4):
        places.append(begin + 14)
    if flags & _HAS_DESCRIPTOR:
        signed = bytes(data[end : end + 4]) == b"PK\x07\x08"
        places.append(end + (4 if signed else 0))
        if data[places[-1] : places[-1] + 4] != crc.to_bytes(4, "little"):
            raise _broken(f"the two checksums of member {name!r} disagree")
    return places


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise ModelError("A member of the archive has a name that is not UTF-8.", received=repr(raw[:80])) from None
    parts = name.removesuffix("/").split("/")
    bad = any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name or not name.isprintable()
    if bad or len(raw) > MAX_NAME_BYTES:
        raise ModelError(
            "A member of the archive has a name that is not allowed.",
            expected="a relative path without '..', '\\', ':' or control characters",
            received=name[:200],
        )
    return name
