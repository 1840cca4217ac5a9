"""Multi-stage CHITA (CHITA++): rising sparsity, each stage with new gradients around the weights of the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pruning_core.patterns import Pattern, top_k

Schedule = Literal["exponential", "polynomial", "linear"]


def sparsities(target: float, stages: int, schedule: Schedule, initial: float) -> tuple[float, ...]:
    """Return the sparsity of each of T stages; the last is the target s, the first s₀ (unless T = 1).

    With t = 0 ... T-1, and s₀ no more than s:

    * exponential: s₀ + (s-s₀)·2^(T-1)/(2^(T-1)-1)·(1-2^(-t))  (CHITA, arXiv 2302.14623, section 3.3)
    * polynomial: s + (s₀-s)·(1-t/(T-1))³  (Zhu & Gupta, arXiv 1710.01878)
    * linear: s₀ + (s-s₀)·t/(T-1)

    >>> [round(s, 4) for s in sparsities(0.9, 4, "exponential", 0.1)]
    [0.1, 0.5571, 0.7857, 0.9]
    >>> [round(s, 4) for s in sparsities(0.9, 3, "polynomial", 0.1)]
    [0.1, 0.8, 0.9]
    >>> sparsities(0.75, 4, "linear", 0.0)
    (0.0, 0.25, 0.5, 0.75)
    >>> sparsities(0.05, 2, "linear", 0.1)
    (0.05, 0.05)
    """
    first, last = min(initial, target), stages - 1
    if last == 0:
        return (target,)
    if schedule == "exponential":
        parts = [2.0**last / (2.0**last - 1) * (1 - 2.0**-t) for t in range(stages)]
    elif schedule == "polynomial":
        parts = [1 - (1 - t / last) ** 3 for t in range(stages)]
    else:
        parts = [t / last for t in range(stages)]
    return (*(first + (target - first) * part for part in parts[:-1]), target)


@dataclass(frozen=True)
class Relaxed:
    """A pattern on its way: a mask of the pattern, and the best of the other weights, up to ``kept`` in all.

    Whatever the pattern, a stage's mask contains one of the pattern's, so that later stages only take away.

    >>> from pruning_core.patterns import Unstructured
    >>> layers = Unstructured((2, 3), (1, 1))
    >>> Relaxed(layers, 3).keep(torch.tensor([1.0, 2.0, 9.0, 8.0, 7.0]))
    tensor([False,  True,  True,  True, False])
    """

    pattern: Pattern
    kept: int

    @property
    def size(self) -> int:
        """Number of weights, p."""
        return self.pattern.size

    def keep(self, score: Tensor) -> Tensor:
        """Return the pattern's best mask with the best of the other weights."""
        mask = self.pattern.keep(score)
        rest = torch.where(mask, torch.full_like(score, -torch.inf), score)
        return mask | top_k(rest, self.kept - self.pattern.kept)

    def accepts(self, mask: Tensor) -> bool:
        """Return whether a mask of this size contains one of the pattern's."""
        if mask.shape != (self.size,) or mask.dtype != torch.bool or int(mask.sum()) != self.kept:
            return False
        return not bool((self.pattern.keep(mask.float()) & ~mask).any())

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return the largest score among all pruned weights: any of them may come back."""
        return torch.where(mask, torch.zeros_like(score), score).max().expand(self.size)

    def per_layer(self, sizes: tuple[int, ...], guide: Tensor) -> tuple[Pattern, ...]:
        """Return the pattern's parts, each relaxed to the count that ``keep(guide)`` gives it."""
        counts = [int(part.sum()) for part in torch.split(self.keep(guide), list(sizes))]
        return tuple(
            Relaxed(part, kept) for part, kept in zip(self.pattern.per_layer(sizes, guide), counts, strict=True)
        )


def stage_pattern(pattern: Pattern, sparsity: float) -> Pattern:
    """Return the pattern at a lower sparsity; itself where that is not lower."""
    kept = round((1 - sparsity) * pattern.size)
    return Relaxed(pattern, kept) if kept > pattern.kept else pattern
