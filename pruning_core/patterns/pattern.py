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
        """Return the allowed mask with the largest sum of scores: (p,) real -> (p,) bool. Ties: lower index.

        Infinite scores force a weight to stay, as far as the pattern allows.
        """

    def accepts(self, mask: Tensor) -> bool:
        """Return whether this mask is one of the family."""

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the largest score among the pruned ones it competes with; 0 if there is none.

        Args:
            score: (p,), not negative.
            mask: (p,) bool, one of the family.
        """

    def per_layer(self, sizes: tuple[int, ...], guide: Tensor) -> tuple[Pattern, ...]:
        """Return one pattern for each consecutive part of the vector, for solvers that take a layer at a time.

        Masks of the parts side by side are a mask of this pattern. Where the pattern couples the parts (one ranking
        over all), each gets the count that ``keep(guide)`` gives it.

        Args:
            sizes: Weights of each layer, in the order of the vector.
            guide: Scores (p,), usually |w̄|.

        Raises:
            ValueError: The parts are not those the pattern is made of.
        """
