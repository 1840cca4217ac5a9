"""Masks as a file: safetensors of boolean arrays by weight name, true = kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pruning_core.errors import MaskError, ModelError
from pruning_core.formats.archive import open_map
from pruning_core.formats.tensors import looks_like_safetensors, read_header

MAX_MASKS = 10_000
MAX_NAME_LENGTH = 1000
_CHUNK = 2**24
_ADVICE = (
    "Save {weight name: boolean tensor of the weight's shape, True = kept} with safetensors.torch.save_file, "
    "or send the file of GET /jobs/{id}/masks."
)


def read_masks(path: str | Path) -> dict[str, Tensor]:
    """Return the masks of a file by weight name. Nothing in the file is executed; bytes are read lazily.

    Args:
        path: A safetensors file whose tensors are all boolean.

    Returns:
        Weight name -> bool tensor of any shape, True = kept; in alphabetical order.

    Raises:
        MaskError: It is broken or hostile, holds nothing, or something that is no boolean array.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(16)
    if not looks_like_safetensors(head, path.stat().st_size):
        raise _refused("This is no safetensors file, or a truncated one.", f"{path.stat().st_size} bytes")
    data = memoryview(open_map(path))
    try:
        entries, _ = read_header(data)
    except ModelError as error:
        raise MaskError(
            error.detail, expected=error.expected, received=error.received, advice=error.advice or _ADVICE
        ) from None
    if not 0 < len(entries) <= MAX_MASKS:
        raise _refused(f"The file holds {len(entries)} masks.", len(entries), f"1 to {MAX_MASKS}")
    masks = {}
    for name, entry in entries.items():
        if len(name) > MAX_NAME_LENGTH:
            raise _refused("A weight's name is too long.", f"{len(name)} characters", f"at most {MAX_NAME_LENGTH}")
        if entry.dtype != torch.bool:
            raise _refused(f"The mask of {name!r} is not boolean.", str(entry.dtype).removeprefix("torch."), "bool")
        if entry.size == 0:
            raise _refused(f"The mask of {name!r} is empty.", list(entry.shape), "at least one weight")
        flat = torch.frombuffer(data[entry.offset : entry.offset + entry.size], dtype=torch.uint8)
        # A bool of another byte than 0 and 1 counts as true here and as false there.
        if any(bool((flat[start : start + _CHUNK] > 1).any()) for start in range(0, entry.size, _CHUNK)):
            raise _refused(f"The mask of {name!r} has bytes that are neither 0 nor 1.", "other bytes", "0 and 1")
        masks[name] = flat.view(torch.bool).reshape(entry.shape)
    return masks


def write_masks(masks: Mapping[str, Tensor], path: str | Path) -> None:
    """Write masks in the form that `read_masks` reads. Deterministic bytes."""
    save_file({name: masks[name].cpu().contiguous() for name in sorted(masks)}, path)


def _refused(detail: str, received: object, expected: object = "a safetensors file of boolean arrays") -> MaskError:
    return MaskError(detail, expected=expected, received=received, advice=_ADVICE)
