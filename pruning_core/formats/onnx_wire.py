"""An ONNX file as bytes: where each initialiser's numbers lie, and the rest of the model without them.

The file is a Protocol Buffers message. Only its outermost levels are walked here, so that the numbers are not parsed;
what is left is small, and is parsed by the ``onnx`` package's schema.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.files import impossible

#: Of the model without its initialisers: nodes, names, constants.
MAX_STRUCTURE_BYTES = 64 * 2**20
MAX_INITIALISERS = 100_000
MAX_DIMENSIONS = 16
MAX_NAME_LENGTH = 500
RESERVED_NAME = "__metadata__"
SAVE_ADVICE = "Save the model as one file: onnx.save(model, path), or torch.onnx.export(…, external_data=False)."

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _GRAPH_INITIALISER = 7, 5
_DIMS, _TYPE, _SEGMENT, _FLOATS, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 3, 4, 8, 9, 13, 14
#: TensorProto.DataType -> what torch calls it.
DTYPES: dict[int, torch.dtype] = {
    **{1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64},
    **{9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16},
}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An initialiser whose numbers lie in the file as they are: little-endian, row by row.

    Attributes:
        name: Its name in the graph.
        dtype: Of its elements.
        shape: Its dimensions.
        offset: Where its bytes begin in the file.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A walked file.

    Attributes:
        structure: The model without the initialisers in ``stored``, as bytes of a ModelProto.
        stored: Initialisers by name.
    """

    structure: bytes
    stored: dict[str, Stored]
    data: mmap.mmap

    def tensor(self, name: str) -> Tensor:
        """Return a copy of an initialiser's numbers.

        Raises:
            ModelError: It is boolean, and holds other bytes than 0 and 1.
        """
        stored = self.stored[name]
        if not stored.size:
            return torch.empty(stored.shape, dtype=stored.dtype)
        raw = bytearray(self.data[stored.offset : stored.offset + stored.size])
        flat = torch.frombuffer(raw, dtype=stored.dtype)
        if stored.dtype == torch.bool and bool((flat.view(torch.uint8) > 1).any()):
            raise ModelError(f"The initialiser {name!r} is boolean, but has bytes other than 0 and 1.")
        return flat.reshape(stored.shape)


def looks_like_onnx(head: bytes) -> bool:
    """Return whether a file begins as every exporter's models do: with a small ir_version, then another field.

    >>> looks_like_onnx(bytes([8, 8, 18, 7]) + b"pytorch")
    True
    """
    return len(head) > 2 and head[0] == 0x08 and 3 <= head[1] < 0x20 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"


def walk(path: Path) -> Wire:
    """Walk a file.

    Raises:
        ModelError: It is truncated, or its sizes lie.
        UnsupportedModel: Numbers lie in other files, or in a form that is not read.
    """
    size = path.stat().st_size
    if size == 0:
        raise ModelError("The file is empty.", expected="an ONNX model", received=0)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rest, graphs = bytearray(), []
    for field, kind, tag, start, stop in _fields(data, 0, size):
        if field == _MODEL_GRAPH:
            graphs.append((kind, start, stop))
        else:
            _keep(rest, data, tag, stop)
    if len(graphs) != 1 or graphs[0][0] != _BYTES:
        raise ModelError(
            "The file does not hold one graph.", expected="an ONNX model", received=f"{len(graphs)} graphs"
        )
    stored: dict[str, Stored] = {}
    graph = bytearray()
    for field, kind, tag, start, stop in _fields(data, *graphs[0][1:]):
        found = _stored(data, start, stop) if field == _GRAPH_INITIALISER and kind == _BYTES else None
        if found is None:
            _keep(graph, data, tag, stop)
            continue
        if found.name in stored:
            raise ModelError(f"The graph has two initialisers {found.name!r}.", expected="every name once")
        stored[found.name] = found
        if len(stored) > MAX_INITIALISERS:
            raise ModelError("The graph has too many initialisers.", expected=f"at most {MAX_INITIALISERS}")
    return Wire(structure=bytes(rest) + _framed(_MODEL_GRAPH, bytes(graph)), stored=stored, data=data)


def _keep(structure: bytearray, data: mmap.mmap, start: int, stop: int) -> None:
    if len(structure) + stop - start > MAX_STRUCTURE_BYTES:
        raise ModelError(
            "The graph is too large.", expected=f"at most {MAX_STRUCTURE_BYTES} bytes beside the initialisers' numbers"
        )
    structure += data[start:stop]


def _framed(field: int, data: bytes) -> bytes:
    length, head = len(data), bytearray([field << 3 | _BYTES])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes(head) + bytes([length]) + data


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, wire type, and where tag, value and end of value are, of each field of a message."""
    at = start
    while at < stop:
        tag = at
        key, at = _varint(data, at, stop)
        field, kind = key >> 3, key & 7
        value = at
        if kind == _VARINT:
            _, at = _varint(data, at, stop)
        elif kind == _BYTES:
            length, value = _varint(data, at, stop)
            at = value + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ModelError("The file is no Protocol Buffers message that ONNX uses.", received=f"wire type {kind}")
        if at > stop or not field:
            raise ModelError("The file is truncated, or a size in it lies.", expected="a complete ONNX model")
        yield field, kind, tag, value, at


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ModelError("The file is truncated, or a number in it is too long.", expected="a complete ONNX model")


def _stored(data: mmap.mmap, start: int, stop: int) -> Stored | None:
    """Return an initialiser, or None where its numbers do not lie in the file as they are."""
    dims: list[int] = []
    found: dict[int, Any] = {}
    for field, kind, _, value, end in _fields(data, start, stop):
        if field == _DIMS and kind == _BYTES:  # packed
            while value < end and len(dims) <= MAX_DIMENSIONS:
                size, value = _varint(data, value, end)
                dims.append(size)
        elif field == _DIMS:
            dims.append(_varint(data, value, end)[0])
        elif field in found and field not in (_EXTERNAL, _FLOATS):
            raise ModelError("An initialiser has a field twice.", received=field)
        else:
            found[field] = _varint(data, value, end)[0] if kind == _VARINT else (value, end, field in found)
        if len(dims) > MAX_DIMENSIONS:
            raise ModelError("An initialiser has too many dimensions.", expected=f"at most {MAX_DIMENSIONS}")
    name = _name(data, found.get(_NAME))
    if found.get(_LOCATION, 0) != 0 or _EXTERNAL in found:
        raise UnsupportedModel(
            f"The numbers of {name!r} lie in another file.",
            expected="one file that holds everything",
            advice=SAVE_ADVICE,
        )
    if _SEGMENT in found or any(size >= 2**40 for size in dims) or impossible(dims):
        raise ModelError(f"The initialiser {name!r} is segmented, or has impossible dimensions.", received=dims)
    dtype = DTYPES.get(found.get(_TYPE, 0))
    if dtype is None:
        raise UnsupportedModel(
            f"The initialiser {name!r} is of a type that is not read.",
            expected="float16, bfloat16, float32, float64, bool, or plain integers",
            received=f"TensorProto.DataType {str(found.get(_TYPE))[:40]}",
        )
    where = found.get(_RAW) or (found.get(_FLOATS) if dtype == torch.float32 else None)
    if where is None:
        if 0 not in dims:
            return None
        where = (stop, stop, False)
    if not isinstance(where, tuple) or where[2] or (_RAW in found and _FLOATS in found):
        return None
    stored = Stored(name=name, dtype=dtype, shape=tuple(dims), offset=where[0])
    if stored.size != where[1] - where[0]:
        raise ModelError(
            f"The initialiser {name!r} of shape {dims} needs {stored.size} bytes.",
            expected=stored.size,
            received=where[1] - where[0],
        )
    return stored


def _name(data: mmap.mmap, where: Any) -> str:
    text = data[where[0] : min(where[1], where[0] + 4 * MAX_NAME_LENGTH + 4)] if isinstance(where, tuple) else b""
    try:
        name = text.decode()
    except UnicodeDecodeError as error:
        raise ModelError("The name of an initialiser is no UTF-8.", received=text[:40].hex(" ")) from error
    if not 0 < len(name) <= MAX_NAME_LENGTH or name == RESERVED_NAME:
        raise ModelError(
            "The name of an initialiser cannot be used.",
            expected=f"1 to {MAX_NAME_LENGTH} characters, not {RESERVED_NAME!r}",
            received=name[:40],
        )
    return name
