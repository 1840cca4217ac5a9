"""Keep some calibration samples aside: choices are made on them, never fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.curvature.predict import Samples

#: The part that is kept aside, and the samples it is to have at least where half of the data has them.
SHARE, ENOUGH = 0.2, 32


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some samples of a dataset: inputs (N, ...) each, labels (N, ...) or None."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    def __len__(self) -> int:
        """Return N."""
        return len(self.inputs[0])


def split(data: Samples, seed: int) -> tuple[Samples, Samples]:
    """Return the samples to fit on, and those kept aside: a random fifth, at least 32 or half of the data.

    Both keep the dataset's order. A single sample serves as both.

    Args:
        data: N samples.
        seed: Of the draw.
    """
    count = len(data)
    aside = min(max(round(SHARE * count), ENOUGH), count // 2)
    if aside == 0:
        return data, data
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return _part(data, order[aside:].sort().values), _part(data, order[:aside].sort().values)


def drawn(data: Samples, count: int, seed: int) -> Samples:
    """Return this many samples at random (datasets may be sorted by class), in their order, without labels.

    All of them, as they are, if there are no more.
    """
    if len(data) <= count:
        return data
    index = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return Part(inputs=tuple(x[index.to(x.device)] for x in data.inputs), labels=None)


def _part(data: Samples, index: Tensor) -> Part:
    return Part(
        inputs=tuple(x[index.to(x.device)] for x in data.inputs),
        labels=None if data.labels is None else data.labels[index.to(data.labels.device)],
    )
