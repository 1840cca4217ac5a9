"""A zip archive of class folders: every entry is checked before anything is inflated."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning_core.calibration.folders import MAX_MEMBERS, MAX_NAME_LENGTH, arrange, is_picture, refused
from pruning_core.calibration.npz import MAX_RATIO, RATIO_FLOOR_BYTES, check_directory
from pruning_core.calibration.pictures import MAX_ENCODED_BYTES, Pictures

#: Of the directory that `zipfile` makes objects of.
MAX_DIRECTORY_BYTES = 16 * 2**20

_ENCRYPTED = 0x1
_LOCAL_HEADER_BYTES = 30
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, NotImplementedError),
    *(RuntimeError, ValueError),
)


def holds_pictures(path: Path) -> bool:
    """Return whether a zip archive is one of pictures: some member is named like one, and none like an array."""
    try:
        with path.open("rb") as file:
            check_directory(file, path.stat().st_size, members=MAX_MEMBERS, directory_bytes=MAX_DIRECTORY_BYTES)
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
    except _BROKEN:
        return False
    return any(map(is_picture, names)) and not any(name.endswith(".npy") for name in names)


def read(path: Path) -> Pictures:
    """Read the names of a zip archive of class folders.

    Raises:
        DatasetError: The archive is broken or hostile, or is not one of class folders.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    except _BROKEN as error:
        raise refused(f"The archive is broken: {error}", "a complete zip archive") from error
    end = 0
    for member in sorted(members, key=lambda entry: entry.header_offset):
        _check(member)
        if member.header_offset < end:
            raise refused(f"The member {ascii(member.filename)[:80]} overlaps another.", "members one after another")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size
    found = arrange((member.filename, member) for member in members)

    def data(chosen: Sequence[int]) -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive:
            for index in chosen:
                yield _inflated(archive, found.places[index])

    return Pictures(format="zip", samples=len(found.places), labels=found.labels, classes=found.classes, read=data)


def _check(member: zipfile.ZipInfo) -> None:
    shown = ascii(member.orig_filename)[:80]
    if member.orig_filename != member.filename or len(member.filename) > MAX_NAME_LENGTH:
        raise refused(f"The archive holds a member named {shown}.", "plain names")
    kind = member.external_attr >> 16 & 0o170000
    if kind not in (0, 0o100000):
        raise refused(f"The member {shown} is a link or a device.", "plain files and folders")
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refused(f"The member {shown} is encrypted or compressed in an unusual way.", "stored or deflated")
    if member.file_size > MAX_ENCODED_BYTES:
        raise refused(f"The member {shown} has {member.file_size} bytes.", f"at most {MAX_ENCODED_BYTES}")
    ratio = member.file_size / max(1, member.compress_size)
    if member.file_size > RATIO_FLOOR_BYTES and ratio > MAX_RATIO:
        raise refused(f"The member {shown} claims to inflate {ratio:.0f} times.", f"at most {MAX_RATIO} times")


def _inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as stream:
            data = stream.read(member.file_size)
            # Reading past the end makes zipfile compare the checksum.
            if len(data) != member.file_size or stream.read(1):
                raise refused(
                    f"The member {ascii(member.filename)[:80]} has another size than it says.", "its own size"
                )
            return data
    except _BROKEN as error:
        raise refused(f"The member {ascii(member.filename)[:80]} is broken: {error}", "a complete member") from error
