"""A Network-shaped adapter over an eager module, and small trained-looking problems for the core's tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pruning_core.algorithms import FolderCheckpoints, Saved
from pruning_core.calibration import Dataset
from pruning_core.network import Input, Layer


class Killed(Exception):  # noqa: N818 - a kill is no error
    """Stands for a kill."""


class Fragile(FolderCheckpoints):
    """Dies when so many steps have been kept."""

    def __init__(self, folder: Path, lives: int) -> None:
        super().__init__(folder)
        self.lives = lives

    def save(self, key: str, saved: Saved) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        super().save(key, saved)


class ModuleNetwork:
    """What the core asks of a Network, answered by an eager module in eval mode."""

    unprunable: Mapping[str, str] = {}

    def __init__(self, module: nn.Module, example: Tensor, *, batch: int | None = None) -> None:
        self.module, self.example, self.batch = module.eval(), example, batch
        self.weights = {name: t.detach().clone() for name, t in module.state_dict(keep_vars=True).items()}
        self.layers = tuple(
            Layer(
                name=name,
                kind="linear" if isinstance(part, nn.Linear) else "conv",
                weight=f"{name}.weight",
                shape=tuple(part.weight.shape),
            )
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear | nn.Conv2d)
        )
        self.inputs = (Input(name="x", dtype=example.dtype, shape=(batch, *example.shape[1:])),)
        self.runs = 0

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        assert self.batch is None or len(inputs[0]) == self.batch
        self.runs += 1
        return (functional_call(self.module, {**self.weights, **(weights or {})}, tuple(inputs)),)

    def with_weights(self, updates: Mapping[str, Tensor]) -> ModuleNetwork:
        twin = ModuleNetwork(self.module, self.example, batch=self.batch)
        twin.weights = {**self.weights, **updates}
        return twin

    def to(self, device: torch.device | str) -> ModuleNetwork:
        return self.with_weights({name: t.to(device) for name, t in self.weights.items()})


class SmallCNN(nn.Module):
    """Two convolutions, batch norm with a history, two linear layers: 8×8 grey images to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
        self.fc1, self.fc2 = nn.Linear(16 * 16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        x = torch.relu(self.conv2(x)).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))


def mlp(seed: int = 0, *, sizes: Sequence[int] = (12, 16, 10, 4)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_network(seed: int = 0, *, batch: int | None = None) -> ModuleNetwork:
    return ModuleNetwork(mlp(seed), torch.zeros(1, 12), batch=batch)


def cnn_network(seed: int = 0) -> ModuleNetwork:
    torch.manual_seed(seed)
    module = SmallCNN()
    module.bn.running_mean.normal_(0, 0.1)
    module.bn.running_var.uniform_(0.5, 1.5)
    return ModuleNetwork(module, torch.zeros(1, 1, 8, 8))


def samples(network: ModuleNetwork, count: int = 64, *, seed: int = 1, labels: bool = True) -> Dataset:
    """Random inputs, labelled by the network itself with some of the labels changed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *network.example.shape[1:], generator=generator)
    if not labels:
        return Dataset(inputs=(x,))
    batch = network.batch or count
    y = torch.cat([network.run((part,))[0] for part in x.split(batch) if len(part) == batch]).argmax(-1)
    x = x[: len(y)]
    noise = torch.rand(len(y), generator=generator) < 0.2
    return Dataset(inputs=(x,), labels=torch.where(noise, (y + 1) % 4, y))
