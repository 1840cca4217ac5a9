"""Any weight may go: one ranking over the whole network, or one in each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.errors import RecipeError
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

    One group over everything is the global pattern, one group per layer the layer-wise one. The global pattern can
    have floors: of its consecutive ``parts`` (layers), part i keeps at least ``floors[i]`` weights.

    >>> Unstructured.of([2, 2], 0.5, scope="layer").keep(torch.tensor([4.0, 3.0, 1.0, 2.0]))
    tensor([ True, False, False,  True])
    >>> Unstructured.of([2, 2], 0.5, scope="global").keep(torch.tensor([4.0, 3.0, 1.0, 2.0]))
    tensor([ True,  True, False, False])
    >>> Unstructured.of([2, 2], 0.5, max_layer_sparsity=0.5).keep(torch.tensor([4.0, 3.0, 1.0, 2.0]))
    tensor([ True, False, False,  True])
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    parts: tuple[int, ...] = ()
    floors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not _fits(self.sizes, self.counts):
            raise ValueError(f"expected one count per group, none above its size; got {self.sizes} and {self.counts}")
        if self.floors and not (
            len(self.sizes) == 1
            and _fits(self.parts, self.floors)
            and sum(self.parts) == self.size
            and sum(self.floors) <= self.kept
        ):
            raise ValueError(
                f"expected one group, parts that make it up, floors within parts and count; got {self.sizes}, "
                f"{self.counts}, {self.parts} and {self.floors}"
            )

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        sparsity: float,
        *,
        scope: str = "global",
        max_layer_sparsity: float | None = None,
    ) -> Unstructured:
        """Return the pattern of this sparsity over layers of these sizes.

        Args:
            sizes: Weights of each layer, in the order of the flat vector.
            sparsity: Fraction to prune, 0 <= s < 1.
            scope: ``'global'`` or ``'layer'``.
            max_layer_sparsity: With scope ``'global'``: no layer loses more than this part of its weights.

        Raises:
            RecipeError: The cap leaves more weights than the sparsity.
        """
        if max_layer_sparsity is not None and sparsity > max_layer_sparsity:
            raise RecipeError(
                "The sparsity is above the cap of every layer.",
                expected=f"sparsity <= max_layer_sparsity = {max_layer_sparsity}",
                received=sparsity,
                advice="Raise max_layer_sparsity or lower the sparsity.",
            )
        groups = (sum(sizes),) if scope == "global" else tuple(sizes)
        counts = tuple(kept_count(size, sparsity) for size in groups)
        if max_layer_sparsity is None or scope != "global":
            return cls(groups, counts)
        least = [round((1.0 - max_layer_sparsity) * size, 6) for size in sizes]
        floors = [math.ceil(f) for f in least]
        if sum(floors) > sum(counts):  # sparsity and cap are (almost) the same: rounding up would keep too many
            floors = [math.floor(f) for f in least]
        return cls(groups, counts, tuple(sizes), tuple(floors))

    @property
    def size(self) -> int:
        """Number of weights, p."""
        return sum(self.sizes)

    @property
    def kept(self) -> int:
        """Number of weights that stay, k."""
        return sum(self.counts)

    def keep(self, score: Tensor) -> Tensor:
        """Return the mask of the largest scores in each group: (p,) real -> (p,) bool. Ties: lower index.

        With floors each part first gets the best of its own; the rest of the count goes to the best of all others.
        Greedy is optimal here, because the sets that meet the floors are the bases of a matroid.
        """
        if not self.floors:
            return _top(score, self.sizes, self.counts)
        mask = top_k(score, self.kept)
        if all(n >= floor for n, floor in zip(_sums(mask, self.parts), self.floors, strict=True)):
            return mask
        mask = _top(score, self.parts, self.floors)
        others = (~mask).nonzero().squeeze(1)
        mask[others] = top_k(score[others], self.kept - sum(self.floors))
        return mask

    def accepts(self, mask: Tensor) -> bool:
        """Return whether each group of this mask keeps exactly its count, and each part at least its floor."""
        if mask.shape != (self.size,) or mask.dtype != torch.bool:
            return False
        return _sums(mask, self.sizes) == list(self.counts) and all(
            n >= floor for n, floor in zip(_sums(mask, self.parts), self.floors, strict=True)
        )

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the largest score among the pruned ones of its group; 0 if there is none.

        Floors only keep weights from leaving, so with them this is an upper bound for weights of a part at its floor.
        """
        off = torch.where(mask, torch.zeros_like(score), score)
        return torch.cat(
            [part.max().expand(len(part)) if len(part) else part for part in torch.split(off, list(self.sizes))]
        )

    def per_layer(self, sizes: tuple[int, ...], guide: Tensor) -> tuple[Unstructured, ...]:
        """Return one pattern per layer; a global one gives each layer what ``keep(guide)`` keeps there.

        Raises:
            ValueError: ``sizes`` do not make up the vector, or cut groups in pieces.
        """
        if sum(sizes) != self.size or (len(self.sizes) > 1 and tuple(sizes) != self.sizes):
            raise ValueError(f"expected the parts {self.sizes}, got {sizes}")
        return tuple(
            Unstructured((size,), (count,)) for size, count in zip(sizes, self._counts(sizes, guide), strict=True)
        )

    def _counts(self, sizes: tuple[int, ...], guide: Tensor) -> list[int]:
        return list(self.counts) if tuple(sizes) == self.sizes else _sums(self.keep(guide), sizes)


def _fits(sizes: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    return len(sizes) == len(counts) and all(0 <= k <= p for p, k in zip(sizes, counts, strict=True))


def _top(score: Tensor, sizes: tuple[int, ...], counts: tuple[int, ...]) -> Tensor:
    return torch.cat([top_k(part, k) for part, k in zip(torch.split(score, list(sizes)), counts, strict=True)])


def _sums(mask: Tensor, sizes: tuple[int, ...]) -> list[int]:
    return [int(part.sum()) for part in torch.split(mask, list(sizes))] if sizes else []
