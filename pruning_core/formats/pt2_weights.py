"""The weights of a ``.pt2`` archive: a JSON table of names over raw records. Nothing here unpickles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.archive import Archive, Member
from pruning_core.formats.document import boolean, integer, mapping, member, parse_json, sequence, text, union
from pruning_core.formats.files import impossible
from pruning_core.formats.pt2_types import dtype, strided

MAX_CONFIG_BYTES = 64 * 2**20
MAX_DIMENSIONS = 64
MAX_WEIGHTS = 100_000
#: Names are shown with every look at the model.
MAX_NAME_LENGTH = 500
RESERVED_NAME = "__metadata__"
#: A tensor whose elements overlap in memory (stride 0) may claim this many elements more than its record holds.
_MAX_OVERLAP = 2**20


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One named tensor as a view of a record.

    Attributes:
        name: Its name in the exported model.
        record: Full name of the archive member that holds its storage.
        dtype: Of its elements.
        sizes: Its shape.
        strides: In elements.
        offset: In elements, from the start of the record.
        is_parameter: Whether it is a parameter.
    """

    name: str
    record: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    is_parameter: bool

    @property
    def view(self) -> tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...], int]:
        """What it sees of which record: names with the same view are tied."""
        return self.record, self.dtype, self.sizes, self.strides, self.offset

    @property
    def span(self) -> tuple[int, int]:
        """First and last + 1 byte of the record that it sees."""
        size = self.dtype.itemsize
        reach = sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True)) + 1
        return self.offset * size, (self.offset + (0 if 0 in self.sizes else reach)) * size


def read_table(archive: Archive, table: str, folder: str, prefix: str) -> dict[str, Payload]:
    """Return the tensors of a weights or constants table, by name.

    Args:
        archive: Where it is.
        table: The member that holds the JSON table.
        folder: Where the records are, with a slash at the end.
        prefix: How the name of every record begins: ``"weight_"`` or ``"tensor_"``.

    Raises:
        ModelError: The table is malformed, or claims more than a record holds.
        UnsupportedModel: A tensor is pickled, a custom object, sparse, or of an uncommon dtype.
    """
    document = parse_json(archive.view(table, MAX_CONFIG_BYTES), table)
    entries = mapping(member(document, "config", table), f"{table}: config")
    if len(entries) > MAX_WEIGHTS:
        raise ModelError("The model has too many weights.", expected=f"at most {MAX_WEIGHTS}", received=len(entries))
    if long := next((name for name in entries if len(name) > MAX_NAME_LENGTH), None):
        raise ModelError(
            "The name of a weight is too long.", expected=f"at most {MAX_NAME_LENGTH} characters", received=len(long)
        )
    if RESERVED_NAME in entries:
        raise ModelError(
            f"A weight may not be called {RESERVED_NAME!r}: no safetensors file of masks could hold it.",
            received=RESERVED_NAME,
        )
    return {name: _payload(name, entry, archive, folder, prefix) for name, entry in entries.items()}


def _payload(name: str, entry: Any, archive: Archive, folder: str, prefix: str) -> Payload:
    where = f"The entry of weight {name!r}"
    path = text(member(entry, "path_name", where), f"{where}: path_name")
    if boolean(member(entry, "use_pickle", where), f"{where}: use_pickle"):
        raise UnsupportedModel(
            f"The weight {name!r} is stored as a pickle, which can run code when it is read.",
            expected="raw tensor bytes",
            received=path,
            advice="Convert tensor subclasses and custom objects to plain tensors before torch.export.save.",
        )
    record = archive.members.get(folder + path)
    if not path.startswith(prefix) or not path.removeprefix(prefix).isdecimal() or record is None:
        raise ModelError(
            f"{where} names a record that is not there.", expected=f"{folder}{prefix}<number>", received=path[:200]
        )
    meta = mapping(member(entry, "tensor_meta", where), f"{where}: tensor_meta")
    strided(member(meta, "layout", where), where)
    payload = Payload(
        name=name,
        record=folder + path,
        dtype=dtype(member(meta, "dtype", where), where),
        sizes=_integers(member(meta, "sizes", where), f"{where}: sizes"),
        strides=_integers(member(meta, "strides", where), f"{where}: strides"),
        offset=_integers([member(meta, "storage_offset", where)], f"{where}: storage_offset")[0],
        is_parameter=boolean(member(entry, "is_param", where), f"{where}: is_param"),
    )
    check_fits(payload, record, where)
    return payload


def _integers(value: Any, where: str) -> tuple[int, ...]:
    found = []
    for item in sequence(value, where, MAX_DIMENSIONS):
        kind, number = union(item, where)
        if kind != "as_int" or integer(number, where) < 0:
            raise ModelError(f"{where} should be non-negative integers.", expected="as_int", received=str(item)[:100])
        found.append(number)
    return tuple(found)


def check_fits(payload: Payload, record: Member, where: str) -> None:
    """Raise ModelError for a tensor that sees more than its record holds."""
    if len(payload.sizes) != len(payload.strides):
        raise ModelError(
            f"{where} has another number of strides than of sizes.",
            expected=len(payload.sizes),
            received=len(payload.strides),
        )
    held = record.size // payload.dtype.itemsize
    count = 1
    for n in payload.sizes:
        count *= n
    numbers = (*payload.sizes, *payload.strides, payload.offset)
    far = min(numbers) < 0 or impossible(payload.sizes) or impossible((max(numbers),))
    if far or payload.span[1] > record.size or count > max(held, _MAX_OVERLAP):
        raise ModelError(
            f"{where} claims more than its record holds.",
            expected=f"at most {held} elements ({record.size} bytes)",
            received={"sizes": payload.sizes, "strides": payload.strides, "offset": payload.offset},
        )


def read_tensor(archive: Archive, payload: Payload) -> Tensor:
    """Return a tensor that reads the archive's memory map lazily. Its record's checksum must have been compared."""
    record = archive.members[payload.record]
    itemsize = payload.dtype.itemsize
    held = record.size // itemsize
    if held == 0:
        return torch.empty(payload.sizes, dtype=payload.dtype)
    if record.offset % itemsize:
        raw = bytearray(archive.map[record.offset : record.offset + held * itemsize])
        flat = torch.frombuffer(raw, dtype=payload.dtype)
    else:
        flat = torch.frombuffer(archive.map, dtype=payload.dtype, count=held, offset=record.offset)
    if payload.dtype == torch.bool and bool((flat.view(torch.uint8) > 1).any()):
        raise ModelError(f"The weight {payload.name!r} is of dtype bool, but has bytes other than 0 and 1.")
    return flat.as_strided(payload.sizes, payload.strides, flat.storage_offset() + payload.offset)
