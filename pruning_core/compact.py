"""A compact form of a pruned file, for the way and the shelf: zeros are not sent, and every byte comes back.

The file's format does not matter. Where the bytes of a pruned weight stand in it as they are, only the places and the
values of its numbers that are not zero are kept; all else is kept as it is. Three streams, each under zstd:

- *rest*: the file without those weights;
- *places*: for each weight a bitmap, or the gaps between nonzero numbers, whichever packs smaller;
- *values*: the numbers that are not zero, byte by byte (all first bytes, then all second ones, …: of floats the bytes
  with the exponent resemble each other, the others do not).

A number is zero here if all its bits are: -0.0 is kept. Needs numpy and zstandard, no torch. Takes the file's size a
few times in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruning_core.errors import InputError

MAGIC = b"PRUNED\x01\n"
LEVEL = 12
_HEADER_BYTES = 64 * 2**20
_LENGTH_BYTES = 8
#: A gap of this many zeros and more is written as this, and the rest after it.
_LONG = 255

_Bytes = NDArray[np.uint8]


class CompactError(InputError):
    """The bytes are not a compact file, or a broken one."""

    slug = "compact-file"
    title = "Compact file cannot be expanded"


@dataclass(frozen=True, kw_only=True)
class Array:
    """The numbers of one weight as they may stand in a file: raw bytes, and how many bytes one number has."""

    data: bytes
    itemsize: int


class _Span(BaseModel):
    model_config = ConfigDict(extra="forbid")

    offset: int = Field(ge=0)
    count: int = Field(gt=0)
    itemsize: Literal[1, 2, 4, 8]
    kept: int = Field(ge=0)
    code: Literal["bitmap", "gaps"]
    places: int = Field(ge=0)  # bytes of the places stream

    @property
    def size(self) -> int:
        return self.count * self.itemsize


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=0)
    sha256: str
    spans: list[_Span]
    streams: tuple[int, int, int]  # packed bytes of rest, places, values


def compress(data: bytes, weights: Iterable[Array]) -> bytes:
    """Return the compact form of a file.

    Args:
        data: The whole file.
        weights: Those with many zeros. One that does not stand in the file as it is (compressed, transposed) is left
            where it is: it costs room, nothing else.
    """
    spans, places, values = [], [], []
    rest: list[bytes] = []
    position = 0
    for offset, weight in _found(data, weights):
        items = np.frombuffer(weight.data, dtype=np.uint8).reshape(-1, weight.itemsize)
        nonzero = np.asarray(items.any(axis=1))
        code, coded = _places(nonzero)
        kept = int(nonzero.sum())
        span = _Span(offset=offset, count=len(items), itemsize=weight.itemsize, kept=kept, code=code, places=len(coded))
        spans.append(span)
        places.append(coded)
        values.append(np.ascontiguousarray(items[nonzero].T).tobytes())
        rest.append(data[position:offset])
        position = offset + span.size
    rest.append(data[position:])
    packer = zstandard.ZstdCompressor(level=LEVEL)
    streams = [packer.compress(b"".join(parts)) for parts in (rest, places, values)]
    first, second, third = map(len, streams)
    header = _Header(
        size=len(data), sha256=hashlib.sha256(data).hexdigest(), spans=spans, streams=(first, second, third)
    )
    described = packer.compress(header.model_dump_json().encode())
    return b"".join((MAGIC, len(described).to_bytes(_LENGTH_BYTES, "little"), described, *streams))


def expand(data: bytes, *, max_bytes: int = 2**40) -> bytes:
    """Return the file, bit for bit.

    Args:
        data: What `compress` gave.
        max_bytes: How large the file may be; nothing larger is ever allocated.

    Raises:
        CompactError: These bytes are not that, or not whole; the digest of what is returned was compared.
    """
    if not data.startswith(MAGIC):
        raise CompactError(
            "This is no compact file.",
            expected=f"a file that begins with {MAGIC!r}",
            received=repr(data[: len(MAGIC)]),
        )
    begin = len(MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(data[len(MAGIC) : begin], "little")
    header = _header(_unpacked(data[begin : begin + length], min(_HEADER_BYTES, max_bytes + 4096), "header"))
    if header.size > max_bytes:
        raise CompactError("The file would be too large.", expected=f"at most {max_bytes}", received=header.size)
    sizes = _sizes(header)
    if begin + length + sum(header.streams) != len(data):
        raise CompactError("The compact file is not whole.", expected=begin + length + sum(header.streams))
    streams, position = [], begin + length
    for name, packed, size in zip(("rest", "places", "values"), header.streams, sizes, strict=True):
        streams.append(_unpacked(data[position : position + packed], size, name, exact=True))
        position += packed
    made = _joined(header, *streams)
    if hashlib.sha256(made).hexdigest() != header.sha256:
        raise CompactError("The expanded file has another SHA-256 than the one that was made compact.")
    return made


def is_compact(path: Path) -> bool:
    """Return whether a file begins as a compact one."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _found(data: bytes, weights: Iterable[Array]) -> list[tuple[int, Array]]:
    """Return the weights that stand in the file, with their offsets, in order; none overlaps another."""
    found = []
    for weight in weights:
        offset = data.find(weight.data) if weight.data else -1
        if offset >= 0:
            found.append((offset, weight))
    found.sort(key=lambda pair: pair[0])
    apart, end = [], 0
    for offset, weight in found:
        if offset >= end:
            apart.append((offset, weight))
            end = offset + len(weight.data)
    return apart


def _places(nonzero: NDArray[np.bool_]) -> tuple[Literal["bitmap", "gaps"], bytes]:
    bitmap, gaps = np.packbits(nonzero).tobytes(), _gaps(nonzero)
    packer = zstandard.ZstdCompressor(level=3)
    return ("bitmap", bitmap) if len(packer.compress(bitmap)) <= len(packer.compress(gaps)) else ("gaps", gaps)


def _gaps(nonzero: NDArray[np.bool_]) -> bytes:
    """Return for each nonzero number how many zeros come before it: bytes, each 255 meaning that more follow.

    >>> list(_gaps(np.array([1, 0, 0, 1] + 300 * [0] + [1], dtype=bool)))
    [0, 2, 255, 45]
    """
    zeros = np.diff(np.flatnonzero(nonzero), prepend=-1) - 1
    long, last = np.divmod(zeros, _LONG)
    coded = np.full(int(long.sum()) + len(zeros), _LONG, dtype=np.uint8)
    coded[np.cumsum(long + 1) - 1] = last
    return coded.tobytes()


def _from_gaps(coded: _Bytes, span: _Span) -> NDArray[np.int64]:
    ends = np.flatnonzero(coded != _LONG)
    if len(ends) != span.kept or (len(coded) and coded[-1] == _LONG):
        raise _broken("places")
    sums = np.concatenate(([0], np.cumsum(coded, dtype=np.int64)[ends]))
    return np.diff(sums).cumsum() + np.arange(span.kept)


def _joined(header: _Header, rest: bytes, places: bytes, values: bytes) -> bytes:
    made = np.zeros(header.size, dtype=np.uint8)
    taken = at_place = at_value = position = 0
    for span in header.spans:
        before = span.offset - position
        made[position : span.offset] = np.frombuffer(rest, np.uint8, before, taken)
        taken += before
        coded = np.frombuffer(places, np.uint8, span.places, at_place)
        at_place += span.places
        if span.code == "bitmap":
            if len(coded) != -(-span.count // 8):
                raise _broken("places")
            where = np.flatnonzero(np.unpackbits(coded, count=span.count))
        else:
            where = _from_gaps(coded, span)
        if len(where) != span.kept or (len(where) and int(where[-1]) >= span.count):
            raise _broken("places")
        planes = np.frombuffer(values, np.uint8, span.kept * span.itemsize, at_value)
        at_value += len(planes)
        items = made[span.offset : span.offset + span.size].reshape(span.count, span.itemsize)
        items[where] = planes.reshape(span.itemsize, span.kept).T
        position = span.offset + span.size
    made[position:] = np.frombuffer(rest, np.uint8, header.size - position, taken)
    return made.tobytes()


def _header(text: bytes) -> _Header:
    try:
        header = _Header.model_validate(_json(text))
    except (ValidationError, ValueError, RecursionError) as error:
        raise _broken("header") from error
    end = 0
    for span in header.spans:
        if span.offset < end or span.kept > span.count:
            raise _broken("header")
        end = span.offset + span.size
    if end > header.size:
        raise _broken("header")
    return header


def _json(text: bytes) -> Any:
    return json.loads(text)


def _sizes(header: _Header) -> Sequence[int]:
    """Return the bytes of rest, places and values before they were packed."""
    spans = header.spans
    return (
        header.size - sum(span.size for span in spans),
        sum(span.places for span in spans),
        sum(span.kept * span.itemsize for span in spans),
    )


def _unpacked(packed: bytes, size: int, name: str, *, exact: bool = False) -> bytes:
    """Unpack at most so many bytes."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            found: bytes = reader.read(size + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise _broken(name) from error
    if len(found) > size or (exact and len(found) != size):
        raise _broken(name)
    return found


def _broken(name: str) -> CompactError:
    return CompactError(f"The {name} of the compact file is broken.", advice="Download it again.")
