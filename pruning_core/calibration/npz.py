"""The npz format, a zip of npy arrays: every header is checked before anything large is inflated.

No pickle, no ``eval``: an npy header must be the plain dictionary that NumPy writes, with a numeric or boolean dtype.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pruning_core.errors import DatasetError

MAX_ARRAYS = 64
MAX_DIRECTORY_BYTES = 64 * 1024
MAX_HEADER_BYTES = 4096
MAX_DIMENSIONS = 16
#: Real samples do not deflate this well; below the floor anything goes (labels of one class, a mask of ones).
MAX_RATIO = 200
RATIO_FLOOR_BYTES = 1 << 20

_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_ENCRYPTED = 0x1
_LOCAL_HEADER_BYTES = 30
_CHUNK = 1 << 20
_ITEM = re.compile(
    r"""\s*(?:'(?P<descr>descr)'\s*:\s*'(?P<dtype>[<>|=]?[a-zA-Z]\d{0,4})'
          |'(?P<order>fortran_order)'\s*:\s*(?P<fortran>True|False)
          |'(?P<shape>shape)'\s*:\s*\((?P<dims>\s*(?:\d{1,19}L?\s*,\s*)*(?:\d{1,19}L?\s*)?)\)
        )\s*(?:,|(?=\}))""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What an npy header declares, and where the numbers begin."""

    dtype: np.dtype[np.generic]
    fortran_order: bool
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read(path: Path, *, max_bytes: int) -> dict[str, Tensor]:
    """Read every array of an npz file.

    Each array is inflated once, straight into the memory that its tensor uses (Fortran order costs a second copy of
    that one array). Big-endian numbers are swapped in place.

    Raises:
        DatasetError: The archive is broken or hostile, or holds something else than plain arrays.
    """
    try:
        with path.open("rb") as file:
            check_directory(file, path.stat().st_size, members=MAX_ARRAYS, directory_bytes=MAX_DIRECTORY_BYTES)
            with zipfile.ZipFile(file) as archive:
                return _read_arrays(archive, max_bytes)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        OverflowError,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,
        ValueError,
    ) as error:
        raise _refused(f"The archive is broken: {error}", "a complete npz file") from error


def _refused(detail: str, expected: object, received: object = None) -> DatasetError:
    return DatasetError(
        detail,
        expected=expected,
        received=received,
        advice="Save the arrays again with numpy.savez(path, x=..., y=...).",
    )


def check_directory(file: IO[bytes], size: int, *, members: int, directory_bytes: int) -> None:
    """Refuse a huge central directory before `zipfile` makes one object of each of its entries.

    Raises:
        DatasetError: There are more members, or more bytes that name them, or there is no directory.
    """
    file.seek(max(0, size - 22 - 65535 - 20))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise _refused("The archive has no end record: it is truncated or no zip file.", "a complete npz file")
    count, directory = struct.unpack_from("<HI", tail, end + 10)
    locator = tail[max(0, end - 20) : end]
    if locator.startswith(b"PK\x06\x07"):
        # A zip64 record overrules the plain one, so it is what counts.
        file.seek(struct.unpack_from("<Q", locator, 8)[0])
        record = file.read(56)
        if not record.startswith(b"PK\x06\x06") or len(record) < 56:
            raise _refused("The archive's zip64 end record is broken.", "a complete npz file")
        count, directory = struct.unpack_from("<QQ", record, 32)
    if count > members or directory > directory_bytes:
        raise _refused("The archive has too many members.", f"at most {members}", count)


def _read_arrays(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, Tensor]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = _check_member(member)
        if name in members:
            raise _refused(f"The archive holds the array {name!r} twice.", "every name once")
        members[name] = member
    total = sum(member.file_size for member in members.values())
    if len(members) > MAX_ARRAYS or total > max_bytes:
        raise _refused(
            f"The arrays take {total} bytes; at most {max_bytes} bytes in {MAX_ARRAYS} arrays are read.",
            max_bytes,
            total,
        )
    _check_overlap(members)
    headers = {name: _read_header(archive, name, member) for name, member in members.items()}
    return {name: _read_array(archive, name, members[name], header) for name, header in headers.items()}


def _check_overlap(members: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes: each would inflate them again, whatever its own ratio."""
    end = 0
    for name, member in sorted(members.items(), key=lambda item: item[1].header_offset):
        if member.header_offset < end:
            raise _refused(f"The member '{name}.npy' overlaps another.", "members one after another")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size


def _check_member(member: zipfile.ZipInfo) -> str:
    shown = ascii(member.orig_filename)[:80]
    name = member.filename.removesuffix(".npy")
    if name == member.filename or not re.fullmatch(r"[\w.\-]{1,128}", name) or member.orig_filename != member.filename:
        raise _refused(
            f"The archive holds a member named {shown}.", "members named like 'x.npy': letters, digits, '_', '.', '-'"
        )
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(f"The member {shown} is encrypted or compressed in an unusual way.", "stored or deflated")
    ratio = member.file_size / max(1, member.compress_size)
    if member.file_size > RATIO_FLOOR_BYTES and ratio > MAX_RATIO:
        raise _refused(
            f"The member {shown} claims to inflate {ratio:.0f} times, as a zip bomb does.",
            f"at most {MAX_RATIO} times",
            round(ratio),
        )
    return name


def _read_header(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> _Header:
    with archive.open(member) as stream:
        magic = _exactly(stream, 8, name)
        wide = magic[6] in (2, 3)
        if magic[:6] != b"\x93NUMPY" or (magic[6] != 1 and not wide):
            raise _refused(f"The member '{name}.npy' is no npy array.", "npy format 1, 2 or 3", magic.hex(" "))
        (length,) = struct.unpack("<I" if wide else "<H", _exactly(stream, 4 if wide else 2, name))
        if length > MAX_HEADER_BYTES:
            raise _refused(f"Array {name!r} has a header of {length} bytes.", f"at most {MAX_HEADER_BYTES}", length)
        text = _exactly(stream, length, name).decode("utf-8" if magic[6] == 3 else "latin-1")
        offset = 8 + (4 if wide else 2) + length
    header = _parse_header(name, text, offset)
    if header.offset + header.nbytes != member.file_size:
        raise _refused(
            f"Array {name!r} declares {header.nbytes} bytes (shape {header.shape}, {header.dtype}), "
            f"but {member.file_size - header.offset} follow.",
            header.nbytes,
            member.file_size - header.offset,
        )
    return header


def _parse_header(name: str, text: str, offset: int) -> _Header:
    text = text.strip()
    fields: dict[str, str] = {}
    keys: list[str] = []
    position = 1
    while text.startswith("{") and (match := _ITEM.match(text, position)):
        keys += [key for key in ("descr", "order", "shape") if match[key]]
        fields |= {key: match[key] for key in ("dtype", "fortran", "dims") if match[key] is not None}
        position = match.end()
    if sorted(keys) != ["descr", "order", "shape"] or text[position:].strip() != "}":
        raise _refused(
            f"Array {name!r} has a header that is not the one of a plain array: {text[:120]}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (…)} with a numeric or boolean dtype",
        )
    code = fields["dtype"].lstrip("<>|=")
    if code not in _DTYPES:
        why = " Object arrays are pickles, which are never opened." if code.startswith("O") else ""
        raise _refused(
            f"Array {name!r} has dtype {fields['dtype']!r}.{why}",
            "bool, int8-64, uint8-64 or float16-64",
            fields["dtype"],
        )
    shape = tuple(int(n.strip().rstrip("L")) for n in fields["dims"].split(",") if n.strip())
    if len(shape) > MAX_DIMENSIONS:
        raise _refused(f"Array {name!r} has {len(shape)} dimensions.", f"at most {MAX_DIMENSIONS}", len(shape))
    order = ">" if fields["dtype"].startswith(">") else "<" if fields["dtype"].startswith("<") else "="
    dtype: np.dtype[np.generic] = np.dtype(order + code)
    return _Header(dtype=dtype, fortran_order=fields["fortran"] == "True", shape=shape, offset=offset)


def _read_array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo, header: _Header) -> Tensor:
    flat = np.empty(math.prod(header.shape), dtype=header.dtype)
    buffer = flat.view(np.uint8).data
    with archive.open(member) as stream:
        _exactly(stream, header.offset, name)
        done = 0
        while done < len(buffer):
            block = stream.read(min(_CHUNK, len(buffer) - done))
            if not block:
                raise _refused(f"Array {name!r} ends early.", header.nbytes, done)
            buffer[done : done + len(block)] = block
            done += len(block)
        # Reading past the end makes zipfile compare the checksum.
        if stream.read(1):
            raise _refused(f"Array {name!r} inflates to more than it declares.", header.nbytes)
    if header.dtype.byteorder == (">" if sys.byteorder == "little" else "<"):
        flat = flat.byteswap(inplace=True).view(header.dtype.newbyteorder())
    if header.dtype.kind == "b" and flat.size and int(flat.view(np.uint8).max()) > 1:
        raise _refused(f"Array {name!r} is boolean but holds other bytes than 0 and 1.", "0 or 1")
    if header.fortran_order:
        flat = np.ascontiguousarray(flat.reshape(header.shape[::-1]).T)
    return torch.from_numpy(flat.reshape(header.shape))


def _exactly(stream: IO[bytes], size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _refused(f"Array {name!r} ends within its header.", "a complete npy array")
    return data
