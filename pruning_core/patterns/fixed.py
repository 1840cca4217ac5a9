"""One given mask: pruning that was decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fixed:
    """The family of one mask, (p,) bool.

    >>> Fixed(torch.tensor([True, False])).keep(torch.tensor([1.0, 2.0]))
    tensor([ True, False])
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if self.mask.dim() != 1 or self.mask.dtype != torch.bool:
            raise ValueError(f"expected a mask (p,) bool, got {tuple(self.mask.shape)} {self.mask.dtype}")

    @property
    def size(self) -> int:
        """Number of weights, p."""
        return len(self.mask)

    @property
    def kept(self) -> int:
        """Number of weights that stay, k."""
        return int(self.mask.sum())

    def keep(self, score: Tensor) -> Tensor:
        """Return the mask, whatever the scores, on their device."""
        return self.mask.to(score.device, copy=True)

    def accepts(self, mask: Tensor) -> bool:
        """Return whether this is the mask."""
        return mask.dtype == torch.bool and torch.equal(mask, self.mask.to(mask.device))

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the protocol's signature
        """Return zeros: no weight competes."""
        return torch.zeros_like(score)

    def per_layer(self, sizes: tuple[int, ...], guide: Tensor) -> tuple[Fixed, ...]:  # noqa: ARG002
        """Return each layer's part of the mask.

        Raises:
            ValueError: The sizes do not make up the mask.
        """
        if sum(sizes) != self.size:
            raise ValueError(f"expected parts of {self.size} weights together, got {sizes}")
        return tuple(Fixed(part) for part in torch.split(self.mask, list(sizes)))
