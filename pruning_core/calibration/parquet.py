"""The Parquet format: pictures as Hugging Face datasets writes them, or columns of numbers and lists of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning_core.calibration.parquet_file import batches, flat, footer, no_nulls, opened, refused, told
from pruning_core.calibration.parquet_footer import RowGroup
from pruning_core.calibration.pictures import MAX_ENCODED_BYTES, Pictures

MAX_CLASSES = 10_000
_LABELS = ("label", "labels", "y")
_PICTURES = ("image", "img", "picture")


def read(path: Path, *, max_bytes: int) -> Pictures | dict[str, Tensor]:
    """Read a Parquet file: the labels and where the pictures are, or every column of numbers.

    Raises:
        DatasetError: The file is broken or hostile, or has no column of pictures or numbers.
    """
    with told():
        groups = footer(path)
        file = opened(path)
        schema = file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise refused("Two columns have the same name.", "every name once", schema.names[:50])
        picture = _picture_column(schema)
        if picture is None:
            return _numbers(file, groups, max_bytes)
        label = next((name for name in _LABELS if name in schema.names), None)
        classes = None if label is None else _class_names(schema, label)
        labels = None
        if label is not None:
            labels, classes = _labels(file, groups, label, classes)

    def data(chosen: Sequence[int]) -> Iterator[bytes]:
        with told():
            yield from _pictures(path, groups, picture, chosen)

    return Pictures(
        format="parquet", samples=sum(group.rows for group in groups), labels=labels, classes=classes or (), read=data
    )


def _picture_column(schema: Any) -> str | None:
    """Return the path of the one column of encoded pictures, or None."""
    import pyarrow.types as kinds

    found = {}
    for field in schema:
        if kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            if _is_bytes(field.type.field("bytes").type):
                found[field.name] = f"{field.name}.bytes"
        elif _is_bytes(field.type):
            found[field.name] = field.name
    if len(found) > 1:
        named = [name for name in _PICTURES if name in found]
        if len(named) != 1:
            raise refused("More than one column could be the pictures.", "one column 'image'", sorted(found))
        return found[named[0]]
    return next(iter(found.values()), None)


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))


def _pictures(path: Path, groups: Sequence[RowGroup], column: str, chosen: Sequence[int]) -> Iterator[bytes]:
    """Yield the bytes of the chosen rows, which rise; row groups without any are not read."""

    def wanted(rows: range) -> bool:
        return any(index in rows for index in chosen)

    left = iter(chosen)
    index = next(left, None)
    for start, array in batches(opened(path), groups, column, wanted):
        values = array.field("bytes") if column.endswith(".bytes") else array
        while index is not None and index < start + len(values):
            value = values[index - start].as_buffer()
            if value is None:
                raise refused(f"Row {index} has no bytes.", "the picture itself in every row, not only a path")
            if value.size > MAX_ENCODED_BYTES:
                raise refused(f"The picture in row {index} has {value.size} bytes.", f"at most {MAX_ENCODED_BYTES}")
            yield value.to_pybytes()
            index = next(left, None)
        if index is None:
            return


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face datasets keeps of a ClassLabel, or None."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(text)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = isinstance(names, list) and len(names) <= MAX_CLASSES
    return tuple(names) if sound and all(isinstance(n, str) and len(n) <= 512 for n in names) else None


def _labels(
    file: Any, groups: Sequence[RowGroup], label: str, names: tuple[str, ...] | None
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return class indices; of a column of texts these follow the sorted texts."""
    import pyarrow.types as kinds

    kind = file.schema_arrow.field(label).type
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        texts: list[str] = []
        known: dict[str, str] = {}
        for _, array in batches(file, groups, label):
            no_nulls(array, label)
            texts += [known.setdefault(text, text) for text in array.to_pylist()]
            if len(known) > MAX_CLASSES or any(len(text) > 512 for text in known):
                raise refused(f"Column {label!r} has too many different texts.", f"at most {MAX_CLASSES} class names")
        classes = tuple(sorted(known))
        index = {text: i for i, text in enumerate(classes)}
        return torch.tensor([index[text] for text in texts]), classes
    if not kinds.is_integer(kind):
        raise refused(f"Column {label!r} is {kind}.", "class indices from 0, or class names", str(kind))
    parts = [flat(array, label) for _, array in batches(file, groups, label)]
    values = np.concatenate(parts).astype(np.int64)
    if int(values.min()) < 0 or (names is not None and int(values.max()) >= len(names)):
        received = int(values.min()) if int(values.min()) < 0 else int(values.max())
        raise refused(
            f"Column {label!r} holds {received}.", f"class indices from 0 below {len(names or ()) or '2**63'}"
        )
    return torch.from_numpy(values), names


def _numbers(file: Any, groups: Sequence[RowGroup], max_bytes: int) -> dict[str, Tensor]:
    """Return every column of numbers, or of equally long lists of numbers (of lists), by its name."""
    import pyarrow.types as kinds

    found: dict[str, Tensor] = {}
    schema, left = file.schema_arrow, max_bytes
    for field in schema:
        kind, depth = field.type, 0
        while kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
            kind, depth = kind.value_type, depth + 1
        if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)) or depth > 8:
            continue
        name = "labels" if field.name == "label" else field.name
        if name in found:
            raise refused("Two columns hold labels.", "'label' or 'labels', not both", schema.names[:50])
        found[name] = _column(file, groups, field.name, left)
        left -= found[name].nbytes
    if not found:
        kinds_found = {field.name: str(field.type)[:100] for field in list(schema)[:50]}
        raise refused("The file has no column of pictures or numbers.", "pictures or numbers", kinds_found)
    return found


def _column(file: Any, groups: Sequence[RowGroup], name: str, max_bytes: int) -> Tensor:
    parts, shape, size = [], None, 0
    least = sum(chunk.values for g in groups for path, chunk in g.chunks.items() if path.split(".")[0] == name)
    if least > max_bytes:
        raise refused(f"Column {name!r} has {least} values.", f"at most {max_bytes} bytes")
    for _, array in batches(file, groups, name):
        values, lengths = array, []
        while hasattr(values.type, "value_type"):
            no_nulls(values, name)
            lengths.append(_length(values, name))
            values = values.flatten()
        if shape not in (None, lengths):
            raise refused(f"Column {name!r} has lists of different lengths.", shape, lengths)
        shape = lengths
        numbers = flat(values, name)
        size += numbers.nbytes
        if size > max_bytes:
            raise refused(f"The columns take more than {max_bytes} bytes.", max_bytes)
        parts.append(numbers)
    if shape is None or math.prod(shape) == 0:
        raise refused(f"Column {name!r} holds no numbers.", "at least one number in each row")
    return torch.from_numpy(np.concatenate(parts)).reshape(-1, *shape)


def _length(array: Any, name: str) -> int:
    """Return the length that every list of an array has."""
    import pyarrow.compute as compute

    lengths = compute.min_max(compute.list_value_length(array)).as_py()
    if lengths["min"] is None or lengths["min"] != lengths["max"]:
        raise refused(f"Column {name!r} has lists of different lengths.", "equally long lists", list(lengths.values()))
    return int(lengths["min"])
