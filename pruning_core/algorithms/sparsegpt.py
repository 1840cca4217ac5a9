"""SparseGPT: one sweep over a layer's columns, each pruned weight made up for by the columns to come."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.layerwise import LayerProblem, LayerSolution, LayerwiseOptions, solve_layers
from pruning_core.algorithms.task import PruningTask, Selector, Step
from pruning_core.patterns import Block, NofM, Pattern, sweep_order

SUMMARY = (
    "Layer-wise: sweep over the columns once, prune by the exact cost given the columns before, and let the columns "
    "after make up for it. No labels; the cost is one factorisation of a layer's Gram."
)
SOURCE = "Frantar & Alistarh, SparseGPT, ICML 2023 (arXiv 2301.00774), algorithm 1"


class Options(LayerwiseOptions):
    """Options of SparseGPT."""

    block_size: int = Field(
        default=128, ge=1, le=65536, description="Columns whose mask is chosen together, and whose updates are batched."
    )
    damping: float = Field(
        default=0.01, gt=0, le=10, description="Added to the Gram's diagonal, as a multiple of its mean."
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Measure the layers' Grams, then sweep layer by layer."""

    def solve(problem: LayerProblem) -> LayerSolution:
        return sweep(problem, block_size=options.block_size, damping=options.damping)

    return (yield from solve_layers(task, options, "sparsegpt", solve))


def sweep(problem: LayerProblem, *, block_size: int, damping: float) -> LayerSolution:
    """Prune a layer column by column.

    Let H⁻¹ = UᵀU with U upper triangular. Removing w_ij when the columns before j are fixed costs w_ij²/U_jj², and
    is best made up for by w_i,l -= w_ij·U_jl/U_jj for l > j. The mask of ``block_size`` columns is chosen when the
    sweep gets to them: as that of the pattern over all weights, with what came before as it is decided and what
    comes later by its score so far. So whatever couples columns (the layer's count) is met exactly. An n:m group is
    decided when the sweep gets to its first column, as in the paper.

    Args:
        problem: The layer.
        block_size: Columns whose mask is chosen together.
        damping: Relative ridge on H.
    """
    pattern, width = problem.pattern, _width(problem.pattern)
    order = sweep_order(problem.layer.shape, width).to(problem.weights.device)
    U = inverse_factor(problem.damped(damping)[:, order][:, :, order]).to(problem.weights.dtype)
    pivots = U.diagonal(dim1=1, dim2=2).unsqueeze(1)
    W = problem.by_group(problem.weights)[:, :, order].clone()
    groups, rows, d = W.shape
    grouped = d - problem.layer.shape[1] % width * (d // problem.layer.shape[1])
    mask = torch.ones_like(W, dtype=torch.bool)
    block = max(width, block_size // width * width)
    for start in range(0, d, block):
        end = min(start + block, d)
        errors = W.new_zeros(groups, rows, end - start)
        if not isinstance(pattern, NofM):
            mask[:, :, start:end] = _choose(problem, W / pivots, mask, start, order)[:, :, start:end]
        for j in range(start, end):
            if isinstance(pattern, NofM) and j % width == 0 and j < grouped:
                score = (W[:, :, j : j + width] / pivots[:, :, j : j + width]).square()
                group = NofM(((groups * rows, width),), pattern.n, width)
                mask[:, :, j : j + width] = group.keep(score.reshape(-1)).view_as(score)
            error = W[:, :, j].masked_fill(mask[:, :, j], 0.0) / pivots[:, :, j]
            W[:, :, j:end] -= error.unsqueeze(2) * U[:, j, None, j:end]
            errors[:, :, j - start] = error
        W[:, :, end:].baddbmm_(errors, U[:, start:end, end:], alpha=-1)
    back, shape = torch.argsort(order), problem.weights.shape
    return LayerSolution(mask=mask[:, :, back].reshape(shape), weights=W[:, :, back].reshape(shape))


def inverse_factor(H: Tensor) -> Tensor:
    """Return the upper triangular U with H⁻¹ = UᵀU, for each matrix of (groups, d, d).

    U_jj⁻² is what remains of H_jj when the columns after j are free to follow. With the order of the columns reversed
    H has the Cholesky factor L; reversed back that is an upper triangular R with H = RRᵀ, so U = R⁻¹: H⁻¹ itself, and
    the digits that forming it would cost, are not needed.
    """
    R = torch.linalg.cholesky(H.flip(1, 2)).flip(1, 2)
    eye = torch.eye(H.shape[1], dtype=H.dtype, device=H.device).expand_as(H)
    U: Tensor = torch.linalg.solve_triangular(R, eye, upper=True)
    return U


def _choose(problem: LayerProblem, root: Tensor, mask: Tensor, start: int, order: Tensor) -> Tensor:
    """Return the pattern's mask by scores root² in sweep order, as it is decided before column ``start``."""
    score = root.square()
    score[:, :, :start] = torch.where(mask[:, :, :start], torch.inf, -1.0)
    flat = score[:, :, torch.argsort(order)].reshape(-1)
    return problem.by_group(problem.pattern.keep(flat).view(problem.weights.shape))[:, :, order]


def _width(pattern: Pattern) -> int:
    """Return how many neighbours in the sweep are decided together."""
    if isinstance(pattern, NofM):
        return pattern.m
    return pattern.shape[1] if isinstance(pattern, Block) else 1
