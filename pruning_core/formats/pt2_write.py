"""Writes changed weights back into a ``.pt2`` archive: same layout, same sizes, every other byte as it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pruning_core.formats.archive import Archive
from pruning_core.formats.files import changed, copied, rechecked
from pruning_core.formats.pt2_layout import read_layout
from pruning_core.formats.pt2_weights import Payload, read_tensor


def write_pt2(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy an archive, with the raw records of changed weights replaced.

    Tied names need no care of their own: they see the same record. Only the bytes of changed weights and the checksums
    over them differ from the source.

    Args:
        weights: Every weight of the source by canonical name, some of them with new values.
        source: The archive that the weights come from.
        target: What to write; replaced in one step when it is complete. It may be the source itself.

    Raises:
        ModelError: The source is not sound, or the weights are not its own.
    """
    layout = read_layout(source)
    write_records(layout.archive, layout.payloads, weights, source, target)


def write_records(
    archive: Archive, payloads: Mapping[str, Payload], weights: Mapping[str, Tensor], source: Path, target: Path
) -> None:
    """Copy an archive whose members are raw records of tensors, with those of changed weights replaced.

    Args:
        archive: Of the source, or within it.
        payloads: Its tensors by name.
        weights: Some of these names, one for each tensor that is seen, perhaps with new values.
        source: The file.
        target: What to write; it appears whole or not at all.

    Raises:
        ModelError: The weights are not the source's own.
    """
    names = {payload.view: name for name, payload in payloads.items()}
    names.update((payloads[name].view, name) for name in weights if name in payloads)
    new = changed(weights, {name: read_tensor(archive, payloads[name]) for name in names.values()})
    by_record: dict[str, list[Payload]] = defaultdict(list)
    for name in new:
        by_record[payloads[name].record].append(payloads[name])
    with copied(source, target) as file:
        for record, seen in by_record.items():
            member = archive.members[record]
            data = _patched(archive, record, seen, new)
            file.seek(member.offset)
            file.write(data)
            rechecked(file, member)
        for holder in {archive.members[record].holder for record in by_record}:
            if holder is not None:
                rechecked(file, archive.members[holder])


def _patched(archive: Archive, record: str, payloads: list[Payload], new: Mapping[str, Tensor]) -> bytearray:
    """Return a record's bytes with new values where the payloads see it."""
    member = archive.members[record]
    data = bytearray(archive.map[member.offset : member.offset + member.size])
    for payload in payloads:
        count = member.size // payload.dtype.itemsize
        flat = torch.frombuffer(data, dtype=payload.dtype, count=count)
        flat.as_strided(payload.sizes, payload.strides, payload.offset).copy_(new[payload.name])
    return data
