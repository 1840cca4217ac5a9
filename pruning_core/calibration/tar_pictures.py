"""A plain tar archive of class folders, read header by header: no links, no devices, nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pruning_core.calibration.folders import MAX_MEMBERS, arrange, refused
from pruning_core.calibration.pictures import MAX_ENCODED_BYTES, Pictures

_BLOCK = 512
#: Of a long name or the attributes in front of a member.
_MAX_EXTRA_BYTES = 64 * 1024
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LONG_NAME, _ATTRIBUTES, _FOR_ALL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE


def read(path: Path) -> Pictures:
    """Read the names of a tar archive of class folders.

    Raises:
        DatasetError: The archive is broken or hostile, or is not one of class folders.
    """
    with path.open("rb") as file:
        found = arrange(_members(file, path.stat().st_size))

    def data(chosen: Sequence[int]) -> Iterator[bytes]:
        with path.open("rb") as file:
            for index in chosen:
                start, size = found.places[index]
                file.seek(start)
                yield file.read(size)

    return Pictures(format="tar", samples=len(found.places), labels=found.labels, classes=found.classes, read=data)


def _members(file: IO[bytes], total: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, and offset and size, of every plain file."""
    offset, count, name = 0, 0, None
    while offset + _BLOCK <= total:
        file.seek(offset)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            return
        header = _header(block)
        count += 1
        start, offset = offset + _BLOCK, offset + _BLOCK + -(-header.size // _BLOCK) * _BLOCK
        if count > MAX_MEMBERS:
            raise refused("The archive has too many members.", f"at most {MAX_MEMBERS}")
        if header.size < 0 or start + header.size > total:
            raise refused(
                f"The member {ascii(header.name)[:80]} claims {header.size} bytes.", "a complete tar archive", total
            )
        if header.type in (_LONG_NAME, _ATTRIBUTES, _FOR_ALL):
            if header.size > _MAX_EXTRA_BYTES:
                raise refused(f"A name or attributes take {header.size} bytes.", f"at most {_MAX_EXTRA_BYTES}")
            extra = file.read(header.size)
            if header.type == _LONG_NAME:
                name = _text(extra.rstrip(b"\0"))
            elif "path" in (attributes := _records(extra)) and header.type == _ATTRIBUTES:
                name = _text(attributes["path"])
            continue
        header.name, name = name or header.name, None
        if header.type in _FILES:
            if header.size > MAX_ENCODED_BYTES:
                raise refused(f"The member {ascii(header.name)[:80]} has {header.size} bytes.", MAX_ENCODED_BYTES)
            yield header.name.removeprefix("./"), (start, header.size)
        elif header.type != tarfile.DIRTYPE:
            raise refused(
                f"The member {ascii(header.name)[:80]} is no plain file: its type is {header.type!a}.",
                "plain files and folders: no links, no devices, no sparse files",
            )
    raise refused("The archive ends before its end mark.", "a complete tar archive", total)


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise refused(f"The archive is broken: {error}", "a complete tar archive, not compressed") from error


def _records(data: bytes) -> dict[str, bytes]:
    """Return the attributes in front of a member: lines of length, key and value.

    >>> _records(b"12 path=a/b" + bytes([10]))
    {'path': b'a/b'}
    """
    found: dict[str, bytes] = {}
    while data:
        digits, space, _ = data.partition(b" ")
        size = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        line, data = data[:size], data[size:]
        key, equals, value = line[len(digits) + 1 :].partition(b"=")
        if not space or not equals or not line.endswith(b"\n") or len(line) != size:
            raise refused("The attributes in front of a member are broken.", "a complete tar archive")
        name = key.decode("utf-8", "replace")
        if name == "size" or name.startswith("GNU.sparse"):
            raise refused(f"A member has the attribute {name!r}.", "plain files whose header says their size")
        found[name] = value[:-1]
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise refused("The name of a member is no UTF-8.", "names in UTF-8") from error
