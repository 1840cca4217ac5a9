"""Train a small CNN on scikit-learn's handwritten digits and export it, as a user of the service would.

Writes into the given folder: ``digits.pt2`` (the exported network, dynamic batch), ``calibration.npz`` (training
digits with labels), ``validation.npz`` (held-out digits with labels).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

EPOCHS, BATCH, L1 = 12, 64, 3e-4


class Digits(nn.Module):
    """8x8 grey images -> 10 classes: three convolutions with batch norm, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, 10), of images (N, 1, 8, 8)."""
        return self.classifier(self.features(x))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype(np.float32)
    x, x_test, y, y_test = train_test_split(images, digits.target, test_size=0.3, random_state=0)

    model = Digits()
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * math.ceil(len(x) / BATCH))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            # a little L1, as networks that are meant to become sparse are often trained with
            (loss + L1 * torch.stack([weight.abs().sum() for weight in weights]).sum()).backward()
            optimizer.step()
            schedule.step()

    model.eval()  # before torch.export: an exported training graph cannot be pruned
    batch_size = torch.export.Dim("batch", min=1, max=4096)
    exported = torch.export.export(model, (inputs[:2],), dynamic_shapes=({0: batch_size},))
    torch.export.save(exported, folder / "digits.pt2")
    np.savez(folder / "calibration.npz", x=x, y=y)
    np.savez(folder / "validation.npz", x=x_test, y=y_test)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
