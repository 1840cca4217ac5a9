"""Any weight may go: one ranking over the whole network, or one in each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.patterns.topk import top_k


def kept_count(size: int, sparsity: float) -> int:
    """Return k = round((1 - s)·p), halves up.

    >>> kept_count(1000, 0.9), kept_count(5, 0.5), kept_count(7, 0.0)
    (100, 3, 7)
    """
    # (1 - 0.9)·p is a hair below the exact product in floating point; p - s·p is no better, so round first.
    return min(size, math.floor(round((1.0 - sparsity) * size, 6) + 0.5))


@dataclass(frozen=True)
class Unstructured:
    """Consecutive groups of a flat vector; in group i the ``counts[i]`` largest scores stay.

    One group over everything is the global pattern, one group per layer the layer-wise one.

    >>> Unstructured.of([2, 2], 0.5, scope="layer").keep(torch.tensor([4.0, 3.0, 1.0, 2.0]))
    tensor([ True, False, False,  True])
    >>> Unstructured.of([2, 2], 0.5, scope="global").keep(torch.tensor([4.0, 3.0, 1.0, 2.0]))
    tensor([ True,  True, False, False])
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.counts) or any(
            not 0 <= k <= p for p, k in zip(self.sizes, self.counts, strict=True)
        ):
            raise ValueError(f"expected one count per group, none above its size; got {self.sizes} and {self.counts}")

    @classmethod
    def of(cls, sizes: Sequence[int], sparsity: float, *, scope: str = "global") -> Unstructured:
        """Return the pattern of this sparsity over layers of these sizes.

        Args:
            sizes: Weights of each layer, in the order of the flat vector.
            sparsity: Fraction to prune, 0 <= s < 1.
            scope: ``'global'`` or ``'layer'``.
        """
        groups = (sum(sizes),) if scope == "global" else tuple(sizes)
        return cls(groups, tuple(kept_count(size, sparsity) for size in groups))

    @property
    def size(self) -> int:
        """Number of weights, p."""
        return sum(self.sizes)

    @property
    def kept(self) -> int:
        """Number of weights that stay, k."""
        return sum(self.counts)

    def keep(self, score: Tensor) -> Tensor:
        """Return the mask of the largest scores in each group: (p,) real -> (p,) bool. Ties: lower index."""
        parts = zip(torch.split(score, list(self.sizes)), self.counts, strict=True)
        return torch.cat([top_k(part, k) for part, k in parts])

    def accepts(self, mask: Tensor) -> bool:
        """Return whether each group of this mask keeps exactly its count."""
        if mask.shape != (self.size,) or mask.dtype != torch.bool:
            return False
        return all(
            int(part.sum()) == k for part, k in zip(torch.split(mask, list(self.sizes)), self.counts, strict=True)
        )

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the largest score among the pruned ones of its group; 0 if there is none."""
        off = torch.where(mask, torch.zeros_like(score), score)
        return torch.cat(
            [part.max().expand(len(part)) if len(part) else part for part in torch.split(off, list(self.sizes))]
        )
