"""Least squares with a block-diagonal Hessian: one Cholesky factorisation per block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class BlockQuadratic:
    """Q(w) = ½·(w-w̄)ᵀ(H + λI)(w-w̄) + sᵀ(w-w̄) with H block-diagonal (CHITA-BSO, arXiv 2302.14623, section 3).

    The blocks are kept and shared by any number of supports and ridges.

    Args:
        grams: For each tensor (m, b, b): its diagonal blocks of H, the last padded with zeros.
        sizes: Weights of each tensor, Σ = p; m·b >= size.
        anchor: w̄, (p,).
        ridge: λ > 0.
        slope: s, (p,), the first-order term; None: zero.
    """

    def __init__(
        self,
        grams: Sequence[Tensor],
        sizes: tuple[int, ...],
        anchor: Tensor,
        ridge: float,
        slope: Tensor | None = None,
    ) -> None:
        self.grams, self.sizes, self.anchor, self.ridge, self.slope = tuple(grams), sizes, anchor, ridge, slope

    @property
    def count(self) -> int:
        """Number of blocks."""
        return sum(len(gram) for gram in self.grams)

    def value(self, weights: Tensor) -> float:
        """Return Q at weights (p,)."""
        move = weights - self.anchor
        total = 0.5 * _dot(move, self._product(move)) + 0.5 * self.ridge * _dot(move, move)
        return total if self.slope is None else total + _dot(self.slope, move)

    def value_and_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return Q and ∇Q = (H + λI)(w-w̄) + s, (p,), from one product with H."""
        move = weights - self.anchor
        gradient = self._product(move).add_(move, alpha=self.ridge)
        value = 0.5 * _dot(move, gradient)
        if self.slope is None:
            return value, gradient
        return value + _dot(self.slope, move), gradient.add_(self.slope)

    def _product(self, vector: Tensor) -> Tensor:
        """Return H·v, (p,)."""
        parts = zip(self.grams, torch.split(vector, list(self.sizes)), strict=True)
        return torch.cat(
            [torch.bmm(gram, _pad(part, gram).unsqueeze(2)).reshape(-1)[: len(part)] for gram, part in parts]
        )

    def refit(self, mask: Tensor) -> Iterator[Tensor]:
        """Minimise Q over weights that vanish off the mask; yield each tensor's part when its blocks are solved.

        On the support S of a block, with δ = w - w̄ and δ = -w̄ off S:
        (H_SS + λI)·δ_S = H_{S,Sᶜ}·w̄_{Sᶜ} - s_S. A block that float32 cannot factorise is solved in float64.

        Args:
            mask: (p,) bool.

        Yields:
            The weights of one tensor, (size,), exact zeros off its mask.
        """
        slopes = [None] * len(self.sizes) if self.slope is None else torch.split(self.slope, list(self.sizes))
        anchors, masks = (torch.split(vector, list(self.sizes)) for vector in (self.anchor, mask))
        for gram, anchor, kept, slope in zip(self.grams, anchors, masks, slopes, strict=True):
            solved = torch.zeros_like(_pad(anchor, gram))
            slope_of = None if slope is None else _pad(slope, gram)
            for i, (h, w, keep) in enumerate(zip(gram, _pad(anchor, gram), _pad(kept, gram), strict=True)):
                support = keep.nonzero().squeeze(1)
                if len(support):
                    solved[i, support] = self._solve(h, w, keep, support, None if slope_of is None else slope_of[i])
            yield solved.view(-1)[: len(anchor)]

    def _solve(self, h: Tensor, w: Tensor, keep: Tensor, support: Tensor, slope: Tensor | None) -> Tensor:
        rows = h.index_select(0, support)
        right = rows @ torch.where(keep, torch.zeros_like(w), w)
        if slope is not None:
            right -= slope[support]
        system = rows.index_select(1, support)
        for dtype in (torch.float32, torch.float64):
            matrix = system.to(dtype, copy=True)
            matrix.diagonal().add_(self.ridge)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not int(failed):
                break
        else:
            return torch.full_like(right, torch.nan)
        step = torch.cholesky_solve(right.to(dtype).unsqueeze(1), factor).squeeze(1)
        return w[support] + step.to(w.dtype)


def _pad(part: Tensor, gram: Tensor) -> Tensor:
    """Return a tensor's flat part (size,) as its blocks (m, b), filled up with zeros (or False)."""
    blocks = part.new_zeros(gram.shape[0] * gram.shape[1])
    blocks[: len(part)] = part
    return blocks.view(gram.shape[0], gram.shape[1])


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
