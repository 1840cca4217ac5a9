"""``.pth`` files (torch.save of a state dict) as carriers of the built-in architectures.

Which architecture it is, the names and shapes of the weights say: nothing needs to be configured. Nothing is unpickled
that could run code (`torch_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pruning_core.errors import UnsupportedModel
from pruning_core.formats.archive import Archive
from pruning_core.formats.builtin import recognise
from pruning_core.formats.pt2_weights import Payload, read_tensor
from pruning_core.formats.pt2_write import write_records
from pruning_core.formats.torch_file import read_tensors
from pruning_core.network.network import Network

#: What nn.DataParallel puts before every name.
_PARALLEL = "module."


def read_pth(path: Path) -> Network:
    """Return the network of a state dict; its weights are read lazily through a memory map.

    Raises:
        ModelError: The file is broken or hostile.
        UnsupportedModel: It holds more than tensors, or the weights are not those of a built-in architecture.
    """
    archive = Archive(path)
    return recognise({name: read_tensor(archive, payload) for name, payload in _state(archive).items()})


def write_pth(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a file of torch.save, with the records of changed tensors and their checksums replaced.

    Args:
        weights: Every tensor of the source by name, some of them with new values.
        source: The file that the tensors come from.
        target: What to write; it appears whole or not at all.

    Raises:
        ModelError: The weights are not the source's.
    """
    archive = Archive(source)
    write_records(archive, _state(archive), weights, source, target)


def _state(archive: Archive) -> dict[str, Payload]:
    found = read_tensors(archive, "The file")
    if found and all(name.startswith(_PARALLEL) for name in found):
        bare = {name.removeprefix(_PARALLEL): payload for name, payload in found.items()}
        found = {name: replace(payload, name=name) for name, payload in bare.items()}
    seen: dict[str, str] = {}
    for name, payload in found.items():
        if (other := seen.setdefault(payload.record, name)) != name:
            raise UnsupportedModel(
                f"The tensors {other!r} and {name!r} share memory.",
                expected="a storage for each tensor",
                received=payload.record,
                advice="Clone them before torch.save, or send the model as a .pt2 archive.",
            )
    return found
