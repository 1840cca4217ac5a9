"""Ridge regression on a fixed support: the best weights for a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.solvers.low_rank import LowRankQuadratic
from pruning_core.solvers.solution import Status

#: With more rows than this, an n×n factorisation costs more than the conjugate-gradient steps it saves.
LARGEST_FACTOR = 4096


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Weights (p,), zero off the support, their residual G(w-w̄) (n,), how it ended, and CG steps done."""

    weights: Tensor
    residual: Tensor
    status: Status
    steps: int


class Refitter:
    """Minimises a `LowRankQuadratic` over weights that vanish off a support S.

    With m = (w-w̄)_S and r₀ = -G_{Sᶜ}w̄_{Sᶜ} the minimiser is m = -(G_Sᵀu + s_S/λ), where u, one number per row,
    solves the n×n system

        (G_S G_Sᵀ + nλI)·u = r₀ - G_S s_S/λ.

    It is solved by conjugate gradients on u. One step reads G_S once: each small block of columns is used for both
    products while it is in the cache. The preconditioner is the same matrix with G_S G_Sᵀ estimated from a random
    sample of S: with more columns than rows a few thousand of them are enough to make about five steps do. It is
    kept for later supports. When |S| <= n the |S|×|S| system is factorised instead.

    Args:
        quadratic: What to minimise.
        seed: Of the sample of columns.
        tolerance: CG ends when its residual has fallen by this factor.
        max_steps: CG steps at most.
    """

    def __init__(
        self, quadratic: LowRankQuadratic, *, seed: int = 0, tolerance: float = 5e-3, max_steps: int = 200
    ) -> None:
        self.quadratic, self.seed, self.tolerance, self.max_steps = quadratic, seed, tolerance, max_steps
        self._factor: Tensor | None = None

    def __call__(self, mask: Tensor, weights: Tensor, residual: Tensor) -> Refit:
        """Refit on a mask.

        Args:
            mask: S as (p,) bool.
            weights: Any weights that vanish off S, (p,).
            residual: Theirs, G(w-w̄), (n,) float64.
        """
        q = self.quadratic
        index = mask.nonzero().squeeze(1)
        move = (weights - q.anchor)[index]
        outside = residual - q.combine(index, move) if bool(move.any()) else residual
        if len(index) <= q.samples:
            return self._direct(index, outside)
        return self._conjugate_gradients(index, outside)

    def _direct(self, index: Tensor, outside: Tensor) -> Refit:
        """Solve (G_SᵀG_S/n + λI)·m = -(G_Sᵀr₀/n + s_S) by Cholesky."""
        q = self.quadratic
        chosen = q.columns.index_select(0, index)
        right = torch.mv(chosen, (outside / -q.samples).to(chosen.dtype))
        if q.slope is not None:
            right -= q.slope[index]
        gram = chosen @ chosen.T / q.samples
        move, status = _solve(gram, q.ridge, right)
        return self._result(index, move, outside + torch.mv(chosen.T, move).double(), status, 1)

    def _conjugate_gradients(self, index: Tensor, outside: Tensor) -> Refit:
        q = self.quadratic
        shift = None if q.slope is None else q.slope[index] / q.ridge
        remaining = outside.clone() if shift is None else outside - q.combine(index, shift)
        target = self.tolerance * float(remaining.norm())
        u = torch.zeros_like(remaining)
        steps, status = 0, Status.CONVERGED
        direction, slope = u, 0.0
        while float(remaining.norm()) > target:
            if steps == self.max_steps:
                status = Status.STEP_LIMIT
                break
            preconditioned = self._precondition(index, remaining)
            next_slope = float(remaining @ preconditioned)
            direction = preconditioned + (next_slope / slope) * direction if steps else preconditioned
            slope = next_slope
            image = self._gram_product(index, direction) + q.samples * q.ridge * direction
            curvature = float(direction @ image)
            if not 0 < curvature < float("inf"):
                status = Status.DIVERGED
                break
            u += (slope / curvature) * direction
            remaining -= (slope / curvature) * image
            steps += 1
        move, inside = self._primal(index, u, shift)
        return self._result(index, move, outside + inside, status, steps)

    def _gram_product(self, index: Tensor, vector: Tensor) -> Tensor:
        """Return G_S G_Sᵀ·v, (n,)."""
        v = vector.to(self.quadratic.columns.dtype)
        total = torch.zeros_like(v)
        for _, block in self.quadratic.blocks(index):
            total.addmv_(block.T, torch.mv(block, v))
        return total.double()

    def _primal(self, index: Tensor, u: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return m = -(G_Sᵀu + s_S/λ) and G_S·m as it comes out in this arithmetic."""
        q = self.quadratic
        dual = u.to(q.columns.dtype)
        move = q.anchor.new_empty(len(index))
        inside = torch.zeros_like(u)
        for part, block in q.blocks(index):
            torch.mv(block, dual, out=move[part]).neg_()
            if shift is not None:
                move[part] -= shift[part]
            inside += torch.mv(block.T, move[part]).double()
        return move, inside

    def _precondition(self, index: Tensor, vector: Tensor) -> Tensor:
        n = self.quadratic.samples
        if n > LARGEST_FACTOR:
            return vector
        if self._factor is None:
            self._factor = self._factorise(index)
        solved = torch.cholesky_solve(vector.to(self._factor.dtype).unsqueeze(1), self._factor)
        return solved.squeeze(1).double()

    def _factorise(self, index: Tensor) -> Tensor:
        """Return the Cholesky factor of the preconditioner, from 2n to 8n columns of S."""
        q = self.quadratic
        wanted = min(len(index), max(2 * q.samples, min(8 * q.samples, len(index) // 16)))
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(index), generator=generator)[:wanted].to(index.device)
        sample = q.columns.index_select(0, index[order].sort().values)
        gram = sample.T @ sample
        gram *= len(index) / wanted
        gram.diagonal().add_(q.samples * q.ridge)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            # Rounding beats the ridge: a little more of it on the diagonal makes a preconditioner as good.
            gram.diagonal().add_(1e-5 * gram.diagonal().mean())
            factor = torch.linalg.cholesky(gram.double())
        return factor

    def _result(self, index: Tensor, move: Tensor, residual: Tensor, status: Status, steps: int) -> Refit:
        q = self.quadratic
        weights = torch.zeros_like(q.anchor)
        weights[index] = q.anchor[index] + move
        if not (bool(torch.isfinite(move).all()) and bool(torch.isfinite(residual).all())):
            status = Status.DIVERGED
        return Refit(weights=weights, residual=residual, status=status, steps=steps)


def _solve(gram: Tensor, ridge: float, right: Tensor) -> tuple[Tensor, Status]:
    """Solve (H + λI)·x = b for symmetric positive semi-definite H; in float64 where float32 does not do."""
    for dtype in (torch.float32, torch.float64):
        matrix = gram.to(dtype, copy=True)
        matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            x = torch.cholesky_solve(right.to(dtype).unsqueeze(1), factor).squeeze(1)
            return x.to(right.dtype), Status.CONVERGED
    return torch.full_like(right, torch.nan), Status.DIVERGED
