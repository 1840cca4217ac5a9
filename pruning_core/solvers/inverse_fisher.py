"""The inverse of the damped Fisher on a support: by blocks, and without blocks through the n×n dual."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pruning_core.solvers.blocks import BlockQuadratic
from pruning_core.solvers.low_rank import LowRankQuadratic
from pruning_core.solvers.refit import Refitter

#: Columns that a product with an n×n matrix takes at a time.
CHUNK = 2048


def damped_inverse(gram: Tensor, ridge: float) -> Tensor:
    """Return (H + λI)⁻¹ of each block: (m, b, b) -> (m, b, b) float64, by Cholesky in float64.

    This is what WoodFisher's recursion over samples, F₀⁻¹ = λ⁻¹I and
    Fᵢ⁻¹ = Fᵢ₋₁⁻¹ - Fᵢ₋₁⁻¹gᵢgᵢᵀFᵢ₋₁⁻¹/(n + gᵢᵀFᵢ₋₁⁻¹gᵢ), arrives at after all n rows (arXiv 2004.14340, eq. 8),
    without the cancellation that the recursion suffers in float32 where λ is small. NaN where λ is lost in rounding
    even so.
    """
    matrix = gram.double()
    matrix.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    inverse = torch.cholesky_inverse(factor)
    inverse[failed > 0] = torch.nan
    return inverse


class BlockCurvature:
    """The model with a block-diagonal Fisher.

    Args:
        quadratic: Blocks, w̄ and λ.
    """

    def __init__(self, quadratic: BlockQuadratic) -> None:
        self.quadratic = quadratic

    def value(self, weights: Tensor) -> float:
        """Return Q at weights (p,)."""
        return self.quadratic.value(weights)

    def saliency(self, mask: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """Yield each tensor's ½·w_q²/[(H_SS + λI)⁻¹]_qq, 0 off S; one factorisation of what each block has left."""
        sizes = list(self.quadratic.sizes)
        parts = zip(self.quadratic.grams, torch.split(mask, sizes), torch.split(weights, sizes), strict=True)
        for gram, kept, part in parts:
            score, length = torch.zeros_like(part), gram.shape[1]
            for number, h in enumerate(gram):
                support = kept[number * length : (number + 1) * length].nonzero().squeeze(1)
                if len(support):
                    inverse = damped_inverse(h[support][:, support].unsqueeze(0), self.quadratic.ridge)[0]
                    where = support + number * length
                    score[where] = (0.5 * part[where].double().square() / inverse.diagonal()).to(score.dtype)
            yield score

    def refit(self, mask: Tensor) -> Iterator[Tensor]:
        """Yield each tensor's weights."""
        return self.quadratic.refit(mask)

    def solve(self, vector: Tensor) -> Iterator[Tensor]:
        """Yield each tensor's part of (H + λI)⁻¹v, (p,) -> (p,)."""
        for gram, part in zip(self.quadratic.grams, torch.split(vector, list(self.quadratic.sizes)), strict=True):
            m, b, _ = gram.shape
            right = part.new_zeros(m * b, dtype=torch.float64)
            right[: len(part)] = part
            for h, block in zip(gram, right.view(m, b), strict=True):
                matrix = h.double()
                matrix.diagonal().add_(self.quadratic.ridge)
                factor, failed = torch.linalg.cholesky_ex(matrix)
                block[:] = torch.nan if int(failed) else torch.cholesky_solve(block.unsqueeze(1), factor).squeeze(1)
            yield right[: len(part)].to(vector.dtype)


def kernel(columns: Tensor, index: Tensor | None = None) -> Tensor:
    """Return Σ x_i·x_iᵀ over the columns in ``index`` (None: all): (p, n) -> (n, n), products and sums in float64."""
    total = columns.new_zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    count = len(columns) if index is None else len(index)
    for start in range(0, count, CHUNK):
        part = columns[start : start + CHUNK] if index is None else columns[index[start : start + CHUNK]]
        exact = part.double()
        total.addmm_(exact.T, exact)
    return total


class DualInverse:
    """(H_SS + λI)⁻¹ with H = XXᵀ/n of rank n, never formed: x_i, row i of X = Gᵀ, holds the n gradients of weight i.

    With K = nλI + Σ_{i∈S} x_i·x_iᵀ = LLᵀ and y_i = L⁻¹x_i for any weight i, in S or not,

        (H_SS + λI)⁻¹ = (I - Y_S·Y_Sᵀ)/λ,    (H_SS + λI)⁻¹·H_Sj = Y_S·y_j,
        H_jj + λ - H_jS·(H_SS + λI)⁻¹·H_Sj = λ(1 + ‖y_j‖²).

    For S = all of them the factors are those of M-FAC's recursion v_j = Fⱼ₋₁⁻¹g_j (arXiv 2107.03356, section 3.1):
    K/λ = LDLᵀ has D_jj = n + g_jᵀv_j, and λ·v_j is the combination of gradients in row j of the unit triangular
    L⁻¹. One pass over G makes a product; memory is G and n×n.

    Args:
        columns: X, (p, n) float32.
        ridge: λ > 0.
        gram: Σ_{i∈S} x_i·x_iᵀ, (n, n) float64 (see `kernel`).
    """

    def __init__(self, columns: Tensor, ridge: float, gram: Tensor) -> None:
        self.columns, self.ridge = columns, ridge
        matrix = gram.clone()
        matrix.diagonal().add_(columns.shape[1] * ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        self.factor = torch.full_like(factor, torch.nan) if int(failed) else factor
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        self._whitener = inverse.T.to(columns.dtype).contiguous()

    def whiten(self, index: Tensor) -> Tensor:
        """Return y_i for the weights in ``index``, (c, n)."""
        whitened: Tensor = self.columns[index] @ self._whitener
        return whitened

    def leverage(self, index: Tensor) -> Tensor:
        """Return ‖y_i‖² for the weights in ``index``, (c,) float64; below 1 on the support."""
        parts = [
            self.whiten(index[start : start + CHUNK]).double().square().sum(1) for start in range(0, len(index), CHUNK)
        ]
        return torch.cat(parts) if parts else self.factor.new_zeros(0)

    def diagonal(self, index: Tensor) -> Tensor:
        """Return [(H_SS + λI)⁻¹]_ii for weights i of S, (c,) float64."""
        # 1 - ‖y‖² is λ times something no smaller than 1/(λ + F_ii): rounding may not carry it to zero or below.
        floor = torch.finfo(torch.float32).eps
        return (1 - self.leverage(index)).clamp_min(floor) / self.ridge

    def solve_dual(self, right: Tensor) -> Tensor:
        """Return K⁻¹b, (n,) float64."""
        return torch.cholesky_solve(right.double().unsqueeze(1), self.factor).squeeze(1)

    def solve(self, vector: Tensor) -> Tensor:
        """Return (H + λI)⁻¹v for S = all weights: (p,) -> (p,); two passes over G, O(np)."""
        inner = self.solve_dual(torch.mv(self.columns.T, vector))
        return (vector - torch.mv(self.columns, inner.to(vector.dtype))) / self.ridge


class DualCurvature:
    """The model with a Fisher of rank n, without blocks.

    Args:
        quadratic: G, w̄ and λ.
        whole: GGᵀ, (n, n) float64 (see `kernel`).
        seed: Of the refit's sample of columns.
    """

    def __init__(self, quadratic: LowRankQuadratic, whole: Tensor, seed: int = 0) -> None:
        self.quadratic, self.whole, self.seed = quadratic, whole, seed

    def value(self, weights: Tensor) -> float:
        """Return Q at weights (p,)."""
        return self.quadratic.value(weights, self.quadratic.residual(weights))

    def saliency(self, mask: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """Yield all of ½·w_q²/[(H_SS + λI)⁻¹]_qq, 0 off S, at once."""
        columns, index = self.quadratic.columns, mask.nonzero().squeeze(1)
        gram = self.whole if len(index) == len(mask) else kernel(columns, index)
        diagonal = DualInverse(columns, self.quadratic.ridge, gram).diagonal(index)
        score = torch.zeros_like(weights)
        score[index] = (0.5 * weights[index].double().square() / diagonal).to(score.dtype)
        yield score

    def refit(self, mask: Tensor) -> Iterator[Tensor]:
        """Yield all the weights at once."""
        start = torch.where(mask, self.quadratic.anchor, torch.zeros_like(self.quadratic.anchor))
        yield Refitter(self.quadratic, seed=self.seed)(mask, start, self.quadratic.residual(start)).weights

    def solve(self, vector: Tensor) -> Iterator[Tensor]:
        """Yield all of (H + λI)⁻¹v at once."""
        yield DualInverse(self.quadratic.columns, self.quadratic.ridge, self.whole).solve(vector)
