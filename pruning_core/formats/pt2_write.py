"""Writes changed weights back into a ``.pt2`` archive: same layout, same sizes, every other byte as it was."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pruning_core.formats.files import copied
from pruning_core.formats.pt2 import Layout, read_layout
from pruning_core.formats.pt2_weights import Payload


def write_pt2(changed: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy an archive, with the raw records of changed weights replaced.

    Tied names need no care of their own: they see the same record. Only the bytes of changed weights and their
    checksums differ from the source.

    Args:
        changed: Weight name -> new values, of the shape and dtype that the source has.
        source: The archive that the weights come from.
        target: What to write; replaced in one step when it is complete. It may be the source itself.

    Raises:
        ModelError: The source is not sound.
    """
    layout = read_layout(source)
    by_record: dict[str, list[Payload]] = defaultdict(list)
    for name in changed:
        by_record[layout.payloads[name].record].append(layout.payloads[name])
    with copied(source, target) as file:
        for record, payloads in by_record.items():
            member = layout.archive.members[record]
            data = _patched(layout, record, payloads, changed)
            file.seek(member.offset)
            file.write(data)
            crc = zlib.crc32(data).to_bytes(4, "little")
            for field in member.crc_fields:
                file.seek(field)
                file.write(crc)


def _patched(layout: Layout, record: str, payloads: list[Payload], changed: Mapping[str, Tensor]) -> bytearray:
    """Return a record's bytes with new values where the payloads see it."""
    member = layout.archive.members[record]
    data = bytearray(layout.archive.map[member.offset : member.offset + member.size])
    for payload in payloads:
        count = member.size // payload.dtype.itemsize
        flat = torch.frombuffer(data, dtype=payload.dtype, count=count)
        flat.as_strided(payload.sizes, payload.strides, payload.offset).copy_(changed[payload.name])
    return data
