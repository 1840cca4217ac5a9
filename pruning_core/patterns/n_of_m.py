"""n of every m consecutive input channels stay: the pattern that sparse tensor cores (2:4) and their like can use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Up to this m a rank is counted by comparing pairs, above it by sorting.
_PAIRS_UP_TO = 16


@dataclass(frozen=True)
class NofM:
    """In each layer, for each output channel and kernel position, n of every m consecutive input channels stay.

    Layers have the shapes (out, in/groups, *kernel): groups of m lie within a convolution's own in/groups dimension;
    for a linear layer they are m consecutive inputs. The last in mod m channels are left dense.

    >>> NofM(((1, 5),), 2, 4).keep(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]))
    tensor([False,  True,  True, False,  True])
    """

    shapes: tuple[tuple[int, ...], ...]
    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise ValueError(f"expected 0 <= n <= m and m >= 1, got {self.n}:{self.m}")
        if any(len(shape) < 2 for shape in self.shapes):
            raise ValueError(f"expected shapes (out, in/groups, *kernel), got {self.shapes}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each layer."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Number of weights, p."""
        return sum(self.sizes)

    @property
    def kept(self) -> int:
        """Number of weights that stay, k."""
        grouped = sum(shape[0] * (shape[1] // self.m) * math.prod(shape[2:]) for shape in self.shapes)
        return self.size - grouped * (self.m - self.n)

    def keep(self, score: Tensor) -> Tensor:
        """Return the mask of the n largest scores of each group: (p,) real -> (p,) bool. Ties: lower index."""
        return self._each(score, lambda groups: _ranks(groups) < self.n, left_over=True)

    def accepts(self, mask: Tensor) -> bool:
        """Return whether every group keeps exactly n, and every left-over weight is there."""
        if mask.shape != (self.size,) or mask.dtype != torch.bool:
            return False
        fits = self._each(mask, lambda groups: (groups.sum(2, keepdim=True) == self.n).expand_as(groups), mask)
        return bool(fits.all())

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the largest score among the pruned ones of its group; 0 if there is none."""
        off = torch.where(mask, torch.zeros_like(score), score)
        return self._each(off, lambda groups: groups.amax(2, keepdim=True).expand_as(groups), left_over=0)

    def per_layer(self, sizes: tuple[int, ...], guide: Tensor) -> tuple[NofM, ...]:  # noqa: ARG002 - nothing is coupled
        """Return the same rule for each layer by itself.

        Raises:
            ValueError: The sizes are not those of the pattern's layers.
        """
        if tuple(sizes) != self.sizes:
            raise ValueError(f"expected the parts {self.sizes}, got {sizes}")
        return tuple(NofM((shape,), self.n, self.m) for shape in self.shapes)

    def _each(self, flat: Tensor, rule: Callable[[Tensor], Tensor], left_over: Tensor | float) -> Tensor:
        """Apply a rule to all groups of a layer at once: (out, groups of m, m, kernel) -> the same shape.

        Left-over weights get the constant, or their own value of the tensor ``left_over``.
        """
        results = []
        start = 0
        for shape, size in zip(self.shapes, self.sizes, strict=True):
            out, channels, kernel = shape[0], shape[1], math.prod(shape[2:])
            grouped = channels // self.m * self.m
            matrix = flat[start : start + size].view(out, channels, kernel)
            groups = matrix[:, :grouped].reshape(out, grouped // self.m, self.m, kernel)
            result = rule(groups) if groups.numel() else groups.to(torch.bool if left_over is True else flat.dtype)
            rest = result.new_empty(out, channels - grouped, kernel)
            if isinstance(left_over, Tensor):
                rest.copy_(left_over[start : start + size].view(out, channels, kernel)[:, grouped:])
            else:
                rest.fill_(left_over)
            results.append(torch.cat([result.reshape(out, grouped, kernel), rest], 1).reshape(-1))
            start += size
        return torch.cat(results) if results else flat


def _ranks(groups: Tensor) -> Tensor:
    """Return each score's place in its group along dimension 2, from the largest, ties by index."""
    m = groups.shape[2]
    if m > _PAIRS_UP_TO:
        order = torch.argsort(groups, dim=2, descending=True, stable=True)
        places = torch.arange(m, device=groups.device).view(1, 1, m, 1).expand_as(order)
        return torch.empty_like(order).scatter_(2, order, places)
    ranks = torch.zeros_like(groups, dtype=torch.uint8)
    for later in range(1, m):
        earlier = groups[:, :, :later] >= groups[:, :, later : later + 1]
        ranks[:, :, later] += earlier.sum(2, dtype=torch.uint8)
        ranks[:, :, :later] += ~earlier
    return ranks
