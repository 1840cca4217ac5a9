"""What a Parquet file says of its sizes: the few numbers of its footer that must be sound before a library opens it.

The footer is Thrift in the compact protocol. pyarrow's own view of a column's entry ends the process if that is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_MAX_DEPTH = 32
# Field numbers of FileMetaData that are wanted; all else is skipped. A list has one element: what each of its items is.
_COLUMN = {3: {3: [bytes], 5: int, 6: int}}
_WANTED = {3: int, 4: [{1: [_COLUMN], 3: int}]}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One column in one row group: how many values it holds, and its bytes when inflated."""

    values: int
    size: int


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Some rows: how many, and each column's chunk by its path, such as "image.bytes"."""

    rows: int
    chunks: dict[str, Chunk]


def parse(data: bytes) -> tuple[int, list[RowGroup]]:
    """Return the number of rows, and the row groups, of a footer.

    Raises:
        ValueError: It is no sound footer.
    """
    try:
        found = _Reader(data).struct(_WANTED, 0)
        return found[3], [_group(entry) for entry in found.get(4, [])]
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"the footer is broken ({error})") from error


def _group(entry: dict[int, Any]) -> RowGroup:
    chunks = {}
    for column in entry[1]:
        about = column[3]
        chunks[b".".join(about[3]).decode()] = Chunk(values=about[5], size=about[6])
    return RowGroup(rows=entry[3], chunks=chunks)


class _Reader:
    """Reads what is wanted of Thrift's compact protocol, and skips the rest."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, wanted: dict[int, Any], depth: int) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError("the footer is nested too deeply")
        found: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) & 15 != _STOP:
            field = field + (head >> 4) if head >> 4 else self._signed()
            value = self._value(head & 15, wanted.get(field), depth)
            if field in wanted:
                if value is None or field in found:
                    raise ValueError("a field of the footer has another type, or comes twice")
                found[field] = value
        return found

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        """Return a value if it is wanted and of that type, else None; it is passed in any case."""
        if kind in (_I16, _I32, _I64):
            number = self._signed()
            return number if wanted is int else None
        if kind == _BINARY:
            text = self._take(self._varint())
            return text if wanted is bytes else None
        if kind == _STRUCT:
            found = self.struct(wanted if isinstance(wanted, dict) else {}, depth + 1)
            return found if isinstance(wanted, dict) else None
        if kind in (_LIST, _SET):
            return self._list(wanted if isinstance(wanted, list) else None, depth + 1)
        if kind == _MAP:
            size = self._varint()
            kinds = self._byte() if size else 0
            for _ in range(size):
                self._value(kinds >> 4, None, depth + 1)
                self._value(kinds & 15, None, depth + 1)
        elif kind in (_BYTE, _DOUBLE):
            self._take(1 if kind == _BYTE else 8)
        elif kind not in (_TRUE, _FALSE):
            raise ValueError("the footer has a field of an unknown type")
        return None

    def _list(self, wanted: list[Any] | None, depth: int) -> list[Any] | None:
        head = self._byte()
        size, kind = head >> 4, head & 15
        if size == 15:
            size = self._varint()
        if size > len(self._data) - self._at or depth > _MAX_DEPTH:
            raise ValueError("a list of the footer is longer than the footer, or nested too deeply")
        found = []
        for _ in range(size):
            # In a list a boolean takes a byte; in a struct the header has it.
            item = self._take(1) if kind in (_TRUE, _FALSE) else self._value(kind, wanted and wanted[0], depth)
            if wanted is not None:
                if item is None:
                    raise ValueError("a list of the footer holds something else")
                found.append(item)
        return None if wanted is None else found

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise IndexError("it ends early")
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number of the footer is too long")

    def _signed(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
