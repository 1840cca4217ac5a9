"""Writes changed weights back into an ONNX file: every other byte stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pruning_core.errors import ModelError
from pruning_core.formats.files import changed, copied
from pruning_core.formats.onnx_read import read


def write_onnx(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a file, with the numbers of changed initialisers replaced.

    Args:
        weights: Every weight of the source, some of them with new values.
        source: The file that the weights come from.
        target: What to write; replaced in one step when it is complete. It may be the source itself.

    Raises:
        ModelError: The source is not sound, the weights are not its own, or a changed one does not lie in the file as
            plain numbers.
    """
    found = read(source)
    new = changed(weights, found.network.weights)
    with copied(source, target) as file:
        for name, tensor in new.items():
            if name not in found.wire.stored:
                raise ModelError(f"{name!r} cannot be replaced in place.", received=name)
            stored = tensor.t() if name in found.swapped else tensor
            file.seek(found.wire.stored[name].offset)
            file.write(stored.contiguous().reshape(-1).view(torch.uint8).numpy().data)
