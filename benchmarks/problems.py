"""The two networks of the papers' tables, read from the assets through our own formats, with the papers' settings."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pruning_core.calibration import Dataset
from pruning_core.formats import read_model
from pruning_core.network import Layer, Network

ASSETS = Path(os.environ.get("PRUNING_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))
ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network, how its gradients are drawn, and what it is tested on.

    ``calibration(seed)`` has exactly ``ROWS`` x ``batch_size`` samples. ``parts(seed, count)`` are so many samples to
    fit on, and others (of other train images) held out for choices. ``ridges`` are the tables' λ by column.
    """

    name: str
    network: Network
    layers: tuple[str, ...]
    calibration: Callable[[int], Dataset]
    parts: Callable[[int, int], tuple[Dataset, Dataset]]
    test: Dataset
    batch_size: int
    ridges: dict[str, float]
    sparsities: tuple[float, ...]


def _arrays(name: str) -> tuple[np.ndarray, Tensor]:
    with np.load(ASSETS / f"{name}.npz", allow_pickle=False) as arrays:
        return arrays["x"], torch.from_numpy(arrays["y"]).long()


def _network(asset: str, architecture: str) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(ASSETS / f"{asset}.safetensors", Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"architecture": architecture}), "utf-8")
        return read_model(folder)


def mlpnet() -> Problem:
    """MLPNet on MNIST: all weights, B = 1, (x/255 - 0.1307)/0.3081."""

    def data(name: str) -> Dataset:
        x, y = _arrays(name)
        x = (torch.from_numpy(x).float() / 255 - 0.1307) / 0.3081
        return Dataset(inputs=(x.reshape(len(x), 784),), labels=y)

    train, network = data("mnist_train"), _network("mlpnet_mnist", "mlpnet-mnist")

    def calibration(seed: int) -> Dataset:
        return train.subset(torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:ROWS])

    def parts(seed: int, count: int) -> tuple[Dataset, Dataset]:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        held_out = min(2000, max(250, count // 4))
        return train.subset(order[held_out : held_out + count]), train.subset(order[:held_out])

    return Problem(
        name="MLPNet",
        network=network,
        layers=tuple(layer.name for layer in network.layers),
        calibration=calibration,
        parts=parts,
        test=data("mnist_test"),
        batch_size=1,
        ridges={"BSO": 1e-4, "LS": 1e-3, "CHITA": 1e-2},
        sparsities=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    )


def resnet20() -> Problem:
    """ResNet20 on CIFAR-10: 3×3 convolutions and fc, B = 16, (x/255 - 0.5)/0.5, random crop and flip."""

    def data(name: str) -> Dataset:
        x, y = _arrays(name)
        x = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        return Dataset(inputs=(x.contiguous(),), labels=y)

    train, network, batch = data("cifar10_train"), _network("resnet20_cifar10", "resnet20-cifar10"), 16

    def calibration(seed: int) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(len(train), (ROWS * batch,), generator=generator)
        part = train.subset(index)
        return Dataset(inputs=(_crop_and_flip(part.inputs[0], generator),), labels=part.labels)

    def parts(seed: int, count: int) -> tuple[Dataset, Dataset]:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(train), generator=generator)
        held_out = len(train) // 5
        index = order[held_out:][torch.randint(len(train) - held_out, (count,), generator=generator)]
        part = train.subset(index)
        fit = Dataset(inputs=(_crop_and_flip(part.inputs[0], generator),), labels=part.labels)
        return fit, train.subset(order[:held_out])

    return Problem(
        name="ResNet20",
        network=network,
        layers=tuple(layer.name for layer in network.layers if "downsample" not in layer.name),
        calibration=calibration,
        parts=parts,
        test=data("cifar10_test"),
        batch_size=batch,
        ridges={"BSO": 3e-4, "LS": 3e-4, "CHITA": 3e-4},
        sparsities=(0.5, 0.6, 0.7, 0.8, 0.9),
    )


def inner_convolutions(network: Network) -> tuple[Layer, ...]:
    """Return what SNOWS' tables prune of ResNet20: the 3×3 convolutions but the stem."""
    return tuple(layer for layer in network.layers if layer.shape[2:] == (3, 3) and layer.name != "conv1")


def _crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pad black by 4, crop at random, mirror half of them."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (4, 4, 4, 4), value=-1.0)
    top = torch.randint(0, 9, (n, 1), generator=generator) + torch.arange(height)
    left = torch.randint(0, 9, (n, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    left = torch.where(mirrored, left.flip(1), left)
    rows = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[rows, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2).contiguous()
