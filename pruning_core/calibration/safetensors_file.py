"""The safetensors format: a JSON header, checked here before the library maps the numbers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pruning_core.errors import DatasetError

MAX_ARRAYS = 64
MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 16
MAX_NAME_LENGTH = 128

_ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8},
}


def read(path: Path, *, max_bytes: int) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; the library maps the file, so pages are read when used.

    Raises:
        DatasetError: The header lies, is too large or names a dtype that no network input can take.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _refused(f"The header claims {length} bytes.", f"2 to {MAX_HEADER_BYTES}, within the file", length)
        header = _parse(file.read(length))
    _check(header, size - 8 - length, max_bytes)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise _refused(f"The file cannot be read: {error}", "a complete safetensors file") from error


def _refused(detail: str, expected: object, received: object = None) -> DatasetError:
    return DatasetError(
        detail, expected=expected, received=received, advice="Save the tensors again with safetensors.torch.save_file."
    )


def _parse(text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise _refused("The header holds the same key twice.", "every name once")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
        json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair is legal JSON and no text
    except (ValueError, RecursionError) as error:
        raise _refused("The header is no JSON.", "a JSON object") from error
    if not isinstance(header, dict):
        raise _refused("The header is no JSON object.", "a JSON object")
    header.pop("__metadata__", None)
    return header


def _check(header: dict[str, Any], available: int, max_bytes: int) -> None:
    """Check that the tensors tile the rest of the file exactly, without gap or overlap."""
    if len(header) > MAX_ARRAYS:
        raise _refused(f"The file holds {len(header)} tensors.", f"at most {MAX_ARRAYS}", len(header))
    if long := next((name for name in header if len(name) > MAX_NAME_LENGTH), None):
        raise _refused("The name of a tensor is too long.", f"at most {MAX_NAME_LENGTH} characters", len(long))
    spans = sorted(_span(name, entry) for name, entry in header.items())
    end = 0
    for start, stop in spans:
        if start != end:
            raise _refused("The tensors overlap or leave a gap.", f"a tensor at offset {end}", start)
        end = stop
    if end != available:
        raise _refused(f"The header declares {end} bytes of numbers, but {available} follow.", end, available)
    if end > max_bytes:
        raise _refused(f"The tensors take {end} bytes; at most {max_bytes} are read.", max_bytes, end)


def _span(name: str, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refused(f"The entry of tensor {name[:80]!r} is malformed.", ["dtype", "shape", "data_offsets"])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _refused(f"Tensor {name[:80]!r} has dtype {str(dtype)[:20]!r}.", sorted(_ITEM_BYTES), str(dtype)[:20])
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise _refused(f"Tensor {name[:80]!r} has a malformed shape or offsets.", "lists of integers >= 0")
    needed = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise _refused(
            f"Tensor {name[:80]!r} of shape {shape} needs {needed} bytes but spans {offsets[1] - offsets[0]}.",
            needed,
            offsets[1] - offsets[0],
        )
    return offsets[0], offsets[1]


def _sizes(value: Any) -> bool:
    """Return whether this is a list of sizes that fit 63 bits (booleans are no sizes)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
