"""The samples a network is calibrated or validated on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.errors import DatasetError


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """N samples in a fixed order: what the network takes, and what it should answer.

    Args:
        inputs: One tensor per network input, in the network's order, each of shape (N, …).
        labels: Class indices, int64, of shape (N,) or (N, …); None where there are none.

    Raises:
        DatasetError: There is no sample, or the tensors disagree on N.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        tensors = (*self.inputs, *(() if self.labels is None else (self.labels,)))
        sizes = [len(t) if t.ndim else None for t in tensors]
        if not self.inputs or None in sizes or 0 in sizes or len(set(sizes)) > 1:
            raise DatasetError(
                "A dataset needs at least one input, and the same number of samples (at least one) in every tensor.",
                expected="the same first dimension N >= 1 everywhere",
                received=[list(t.shape) for t in tensors],
            )

    def __len__(self) -> int:
        """Return N.

        >>> len(Dataset(inputs=(torch.zeros(3, 2),)))
        3
        """
        return len(self.inputs[0])

    def subset(self, index: Tensor | slice) -> Dataset:
        """Return the samples that ``index`` picks: a slice (a view), or a tensor of indices or booleans (a copy)."""
        labels = None if self.labels is None else self.labels[index]
        return Dataset(inputs=tuple(x[index] for x in self.inputs), labels=labels)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the dataset on this device; tensors that are there already are shared."""
        labels = None if self.labels is None else self.labels.to(device)
        return Dataset(inputs=tuple(x.to(device) for x in self.inputs), labels=labels)
