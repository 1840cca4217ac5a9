"""What every pattern offers to a solver."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Pattern(Protocol):
    """A family of masks over a flat vector of ``size`` weights, each keeping exactly ``kept`` of them."""

    @property
    def size(self) -> int:
        """Number of weights, p."""

    @property
    def kept(self) -> int:
        """Number of weights that stay, k."""

    def keep(self, score: Tensor) -> Tensor:
        """Return the allowed mask with the largest sum of scores: (p,) real -> (p,) bool. Ties: lower index."""

    def accepts(self, mask: Tensor) -> bool:
        """Return whether this mask is one of the family."""

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the largest score among the pruned ones it competes with; 0 if there is none."""
