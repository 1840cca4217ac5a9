"""Real exported networks for the core's tests, each exported once in a session, with inputs like the example's."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from pruning_core.calibration import Dataset
from pruning_core.formats import read_model
from pruning_core.network import Network
from tests.formats import zoo


@cache
def exported(name: str) -> tuple[Network, Dataset, bytes]:
    """Return a network of the zoo, read from its archive, 48 samples with the model's own labels, and the archive."""
    torch.manual_seed(0)
    model = zoo.make(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        zoo.export(model, path)
        return read_model(path), calibration(model), path.read_bytes()


def calibration(model: zoo.Model, count: int = 48) -> Dataset:
    """Inputs like the example's, labels from the model itself with some of them changed."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for example in model.inputs:
        shape = (count, *example.shape[1:])
        if example.is_floating_point():
            inputs.append(torch.randn(shape, generator=generator, dtype=example.dtype))
        elif example.unique().numel() <= 2 and example.dtype != torch.bool and int(example.max()) <= 1:
            inputs.append(torch.ones(shape, dtype=example.dtype))
        else:
            inputs.append(torch.randint(0, int(example.max()) + 1, shape, generator=generator).to(example.dtype))
    with torch.no_grad():
        output = zoo.eager(model, tuple(inputs))[0]
    labels = output.argmax(-1)
    noise = torch.rand(labels.shape, generator=generator) < 0.1
    return Dataset(inputs=tuple(inputs), labels=torch.where(noise, (labels + 1) % output.shape[-1], labels))
