"""The local quadratic model with a Fisher of rank n, held as its gradient columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Columns that are worked on at a time: 128 × n float32 stay in the cache between the two products of a pass.
BLOCK = 128


class LowRankQuadratic:
    """Q(w) = ‖G(w-w̄)‖²/(2n) + λ/2·‖w-w̄‖² + sᵀ(w-w̄)  (CHITA, arXiv 2302.14623, eq. 5, divided by n).

    The p×p Hessian GᵀG/n + λI is never formed. Products are float32; sums over samples and weights are float64.

    Args:
        columns: Gᵀ, (p, n) float32: the gradients of one weight lie side by side.
        anchor: w̄, (p,) float32.
        ridge: λ > 0.
        slope: s, (p,), the first-order term α·ḡ; None: zero.
    """

    def __init__(self, columns: Tensor, anchor: Tensor, ridge: float, slope: Tensor | None = None) -> None:
        self.columns, self.anchor, self.ridge, self.slope = columns, anchor, ridge, slope
        self.size, self.samples = columns.shape

    def residual(self, weights: Tensor) -> Tensor:
        """Return r = G(w-w̄), (n,) float64; one pass over G."""
        return torch.mv(self.columns.T, weights - self.anchor).double()

    def value(self, weights: Tensor, residual: Tensor) -> float:
        """Return Q at (p,) weights whose residual is known."""
        move = weights - self.anchor
        total = residual.square().sum() / (2 * self.samples) + 0.5 * self.ridge * _dot(move, move)
        return float(total if self.slope is None else total + _dot(self.slope, move))

    def gradient(self, weights: Tensor, residual: Tensor) -> Tensor:
        """Return ∇Q = Gᵀr/n + λ(w-w̄) + s, (p,); one pass over G."""
        gradient = torch.mv(self.columns, (residual / self.samples).to(self.columns.dtype))
        gradient.add_(weights - self.anchor, alpha=self.ridge)
        return gradient if self.slope is None else gradient.add_(self.slope)

    def combine(self, index: Tensor, coefficients: Tensor) -> Tensor:
        """Return Σ_j c_j·G_j over the columns in ``index``: (m,), (m,) -> (n,) float64."""
        total = self.anchor.new_zeros(self.samples, dtype=torch.float64)
        for part, block in self.blocks(index):
            total += torch.mv(block.T, coefficients[part]).double()
        return total

    def blocks(self, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (slice of index, its columns (b, n)) in small blocks; a block is valid until the next."""
        buffer = self.columns.new_empty(min(BLOCK, max(1, len(index))), self.samples)
        for start in range(0, len(index), BLOCK):
            part = slice(start, min(start + BLOCK, len(index)))
            yield part, torch.index_select(self.columns, 0, index[part], out=buffer[: part.stop - start])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()
