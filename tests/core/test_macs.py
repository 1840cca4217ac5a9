"""Multiply-adds against a count by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pruning_core.formats import read_model
from pruning_core.macs import Macs, macs


class Mixed(nn.Module):
    """A strided and a grouped convolution, a linear layer used twice, and one after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.rows = nn.Linear(16, 16)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)).flatten(2)  # (N, 8, 16)
        x = self.rows(self.rows(x).relu())
        return self.head(x.mean(2))  # type: ignore[no-any-return]


def test_counts_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(6, 3, 8, 8)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(Mixed().eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "model.pt2")
    network = read_model(tmp_path / "model.pt2")
    # 4x4 positions of 8 channels; 8 rows of 16, twice; one row
    weights = {"first": 8 * 3 * 9, "second": 8 * 2 * 9, "rows": 16 * 16, "head": 5 * 8}
    uses = {"first": 16, "second": 16, "rows": 2 * 8, "head": 1}
    dense = sum(weights[name] * uses[name] for name in weights)
    assert macs(network, [example]) == Macs(dense=dense, needed=dense)

    sparse = network.weights["rows.weight"].clone()
    sparse[:4] = 0
    pruned = network.with_weights({"rows.weight": sparse})
    assert macs(pruned, [example]) == Macs(dense=dense, needed=dense - 4 * 16 * uses["rows"])
