"""A small vision transformer, trained here on MNIST with a fixed seed in about half a minute, for the benchmarks."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from benchmarks.problems import ASSETS
from pruning_core.calibration import Dataset
from pruning_core.formats import read_model
from pruning_core.network import Network

#: How it is trained: images, passes over them, batch.
IMAGES, EPOCHS, BATCH = 20_000, 3, 100


class Encoder(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) -> the same."""
        n, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """28×28 digits as 16 patches and a class token; three blocks of width 64; about 0.15 million weights."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Encoder(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, 28, 28)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def small_vit() -> tuple[Network, Dataset, Dataset]:
    """Return the trained network, exported and read as the service would, the training data and the test data."""
    train, test = _mnist("mnist_train"), _mnist("mnist_test")
    model = _trained(train)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "vit.pt2"
        program = torch.export.export(model, (train.inputs[0][:2],), dynamic_shapes=({0: Dim("batch")},))
        torch.export.save(program, path)
        return read_model(path), train, test


def _mnist(name: str) -> Dataset:
    with np.load(ASSETS / f"{name}.npz", allow_pickle=False) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()
    return Dataset(inputs=((x.float().unsqueeze(1) / 255 - 0.1307) / 0.3081,), labels=y)


def _trained(train: Dataset) -> nn.Module:
    """Return the transformer after a short training, in eval mode."""
    assert train.labels is not None
    torch.manual_seed(0)
    model = VisionTransformer()
    steps = IMAGES // BATCH * EPOCHS
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(IMAGES).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(train.inputs[0][index]), train.labels[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
