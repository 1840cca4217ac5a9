"""Whole blocks go: r consecutive outputs by c consecutive inputs, as vector instructions and cache lines like them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.patterns.topk import top_k
from pruning_core.patterns.unstructured import kept_count


@dataclass(frozen=True)
class Block:
    """Blocks of r consecutive outputs × c consecutive inputs at one kernel position stay or go whole.

    Layers have the shapes (out, in/groups, *kernel). The last out mod r outputs and in mod c inputs are left dense.
    A block's score is the sum of its members' scores.

    Args:
        shapes: Of the layers, in the order of the flat vector.
        shape: (r, c).
        counts: How many blocks stay: one number for all layers together, or one for each layer.

    >>> Block(((2, 2),), (2, 1), (1,)).keep(torch.tensor([3.0, 1.0, 0.0, 1.0]))
    tensor([ True, False,  True, False])
    """

    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, int]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or any(len(shape) < 2 for shape in self.shapes):
            raise ValueError(
                f"expected r, c >= 1 and shapes (out, in/groups, *kernel), got {self.shape}, {self.shapes}"
            )
        there = self._groups
        if len(there) != len(self.counts) or any(not 0 <= k <= b for b, k in zip(there, self.counts, strict=True)):
            raise ValueError(f"expected one count for all or for each layer, up to {self.blocks}; got {self.counts}")

    @classmethod
    def of(
        cls, shapes: Sequence[tuple[int, ...]], shape: tuple[int, int], sparsity: float, *, scope: str = "global"
    ) -> Block:
        """Return the pattern whose number of pruned weights is nearest to the sparsity's, over all or in each layer.

        Where left-over edges are so large that the blocks do not suffice, all blocks go.
        """
        layers = tuple(shapes)
        free = cls(layers, shape, (0,) if scope == "global" else (0,) * len(layers))
        sizes = [math.prod(s) for s in layers]
        groups = [sum(sizes)] if scope == "global" else sizes
        members = shape[0] * shape[1]
        pruned = [math.floor((size - kept_count(size, sparsity)) / members + 0.5) for size in groups]
        counts = tuple(b - min(b, cut) for b, cut in zip(free._groups, pruned, strict=True))
        return cls(layers, shape, counts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each layer."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Number of weights, p."""
        return sum(self.sizes)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of each layer."""
        r, c = self.shape
        return tuple((s[0] // r) * (s[1] // c) * math.prod(s[2:]) for s in self.shapes)

    @property
    def kept(self) -> int:
        """Number of weights that stay, k, the left-over ones among them."""
        return self.size - (sum(self.blocks) - sum(self.counts)) * self.shape[0] * self.shape[1]

    def keep(self, score: Tensor) -> Tensor:
        """Return the mask of the blocks with the largest sums, (p,) real -> (p,) bool. Ties: the earlier block."""
        sums = torch.cat([members.sum((1, 3)).reshape(-1) for members, _ in self._cut(score)])
        groups = zip(torch.split(sums, list(self._groups)), self.counts, strict=True)
        kept = torch.cat([top_k(part, k) for part, k in groups])
        return self._spread(kept, torch.ones_like(score, dtype=torch.bool))

    def accepts(self, mask: Tensor) -> bool:
        """Return whether every block is whole or gone, as many stay as should, and no left-over weight is gone."""
        if mask.shape != (self.size,) or mask.dtype != torch.bool:
            return False
        whole = torch.cat([members.all(3).all(1).reshape(-1) for members, _ in self._cut(mask)])
        counts = tuple(int(part.sum()) for part in torch.split(whole, list(self._groups)))
        return counts == self.counts and torch.equal(mask, self._spread(whole, torch.ones_like(mask)))

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the mean score of the best pruned block it competes with; 0 if there is none.

        A block stays ahead of that one at least as long as each of its members is ahead of that mean: so a bound
        worked out for single weights holds for blocks. Left-over weights compete with nothing.
        """
        off = torch.where(mask, torch.zeros_like(score), score)
        means = torch.cat([members.mean((1, 3)).reshape(-1) for members, _ in self._cut(off)])
        best = [part.max().expand(len(part)) if len(part) else part for part in torch.split(means, list(self._groups))]
        return self._spread(torch.cat(best), torch.zeros_like(score))

    def per_layer(self, sizes: tuple[int, ...], guide: Tensor) -> tuple[Block, ...]:
        """Return one pattern per layer; a global one gives each layer the blocks that ``keep(guide)`` keeps there.

        Raises:
            ValueError: The sizes are not those of the pattern's layers.
        """
        if tuple(sizes) != self.sizes:
            raise ValueError(f"expected the parts {self.sizes}, got {sizes}")
        counts = self.counts
        if len(counts) != len(self.shapes):
            whole = [members[:, 0, :, 0] for members, _ in self._cut(self.keep(guide))]
            counts = tuple(int(part.sum()) for part in whole)
        return tuple(Block((s,), self.shape, (k,)) for s, k in zip(self.shapes, counts, strict=True))

    @property
    def _groups(self) -> tuple[int, ...]:
        """Blocks that are ranked together."""
        return (sum(self.blocks),) if len(self.counts) == 1 else self.blocks

    def _cut(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each layer its blocks (out/r, r, in/c, c, kernel), a view, and its matrix (out, in, kernel)."""
        r, c = self.shape
        cuts = []
        for shape, part in zip(self.shapes, torch.split(flat, list(self.sizes)), strict=True):
            matrix = part.view(shape[0], shape[1], math.prod(shape[2:]))
            rows, columns = shape[0] // r, shape[1] // c
            inner = matrix[: rows * r, : columns * c]
            cuts.append((torch.unflatten(torch.unflatten(inner, 1, (columns, c)), 0, (rows, r)), matrix))
        return cuts

    def _spread(self, values: Tensor, edges: Tensor) -> Tensor:
        """Return a flat vector with each block's value at its members, and ``edges`` elsewhere."""
        result = edges.clone()
        for (members, _), part in zip(self._cut(result), torch.split(values, list(self.blocks)), strict=True):
            rows, _, columns, _, kernel = members.shape
            members.copy_(part.view(rows, 1, columns, 1, kernel).expand_as(members))
        return result
