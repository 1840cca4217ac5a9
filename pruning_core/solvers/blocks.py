"""Least squares with a block-diagonal Hessian: one Cholesky factorisation per block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class BlockQuadratic:
    """Q(w) = ½·(w-w̄)ᵀ(H + λI)(w-w̄) with H block-diagonal (CHITA-BSO, arXiv 2302.14623, section 3).

    The blocks are kept and shared by any number of supports and ridges.

    Args:
        grams: For each tensor (m, b, b): its diagonal blocks of H, the last padded with zeros.
        sizes: Weights of each tensor, Σ = p; m·b >= size.
        anchor: w̄, (p,).
        ridge: λ > 0.
    """

    def __init__(self, grams: Sequence[Tensor], sizes: tuple[int, ...], anchor: Tensor, ridge: float) -> None:
        self.grams, self.sizes, self.anchor, self.ridge = tuple(grams), sizes, anchor, ridge

    @property
    def count(self) -> int:
        """Number of blocks."""
        return sum(len(gram) for gram in self.grams)

    def value(self, weights: Tensor) -> float:
        """Return Q at weights (p,)."""
        move = weights - self.anchor
        total = 0.5 * self.ridge * float(move.square().sum(dtype=torch.float64))
        for gram, part in zip(self.grams, torch.split(move, list(self.sizes)), strict=True):
            blocks = _pad(part, gram)
            total += 0.5 * float((torch.bmm(gram, blocks.unsqueeze(2)).squeeze(2) * blocks).sum(dtype=torch.float64))
        return total

    def refit(self, mask: Tensor) -> Iterator[Tensor]:
        """Minimise Q over weights that vanish off the mask; yield each tensor's part when its blocks are solved.

        On the support S of a block, with δ = w - w̄ and δ = -w̄ off S:
        (H_SS + λI)·δ_S = H_{S,Sᶜ}·w̄_{Sᶜ}. A block that float32 cannot factorise is solved in float64.

        Args:
            mask: (p,) bool.

        Yields:
            The weights of one tensor, (size,), exact zeros off its mask.
        """
        parts = zip(
            self.grams, torch.split(self.anchor, list(self.sizes)), torch.split(mask, list(self.sizes)), strict=True
        )
        for gram, anchor, kept in parts:
            solved = torch.zeros_like(_pad(anchor, gram))
            for h, w, keep, out in zip(gram, _pad(anchor, gram), _pad(kept, gram), solved, strict=True):
                support = keep.nonzero().squeeze(1)
                if len(support):
                    out[support] = self._solve(h, w, keep, support)
            yield solved.view(-1)[: len(anchor)]

    def _solve(self, h: Tensor, w: Tensor, keep: Tensor, support: Tensor) -> Tensor:
        rows = h.index_select(0, support)
        right = rows @ torch.where(keep, torch.zeros_like(w), w)
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
