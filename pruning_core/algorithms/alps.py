"""ALPS: the layer-wise problem by operator splitting (ADMM), then a refit on the support it finds."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.layerwise import LayerProblem, LayerSolution, LayerwiseOptions, solve_layers
from pruning_core.algorithms.task import PruningTask, Selector, Step
from pruning_core.patterns import Fixed, Pattern

SUMMARY = (
    "Layer-wise: mask and weights together by ADMM, with a penalty that grows until the mask settles; then the best "
    "weights on that mask. No labels; one eigendecomposition of a layer's Gram, then matrix products."
)
SOURCE = "Meng et al., ALPS: Improved Optimization for Highly Sparse One-Shot Pruning, NeurIPS 2024 (arXiv 2406.07831)"

#: The penalty follows the mask: every so many iterations it grows by the factor whose share of the kept weights
#: changed place since; where none did, the mask has settled.
CHECK_EVERY = 3
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


class Options(LayerwiseOptions):
    """Options of ALPS."""

    damping: float = Field(
        default=0.01, gt=0, le=10, description="Added to the Gram's diagonal, as a multiple of its mean."
    )
    penalty: float = Field(
        default=0.1, gt=0, le=1e6, description="ρ to begin with; the Gram is scaled to have ones on its diagonal."
    )
    max_iterations: int = Field(default=300, ge=1, le=100_000, description="Iterations of ADMM per layer at most.")


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Measure the layers' Grams, then solve layer by layer."""

    def solve(problem: LayerProblem) -> LayerSolution:
        H = problem.damped(options.damping)
        if isinstance(problem.pattern, Fixed):
            mask = problem.pattern.mask.view(problem.weights.shape).to(H.device)
        else:
            mask = admm(problem, H, penalty=options.penalty, max_iterations=options.max_iterations)
        return LayerSolution(mask=mask, weights=problem.refit(H, mask))

    return (yield from solve_layers(task, options, "alps", solve))


def admm(problem: LayerProblem, H: Tensor, *, penalty: float, max_iterations: int) -> Tensor:
    """Return the mask (out, d) at which ADMM settles.

    With every input scaled so that H has a unit diagonal, the iteration is

        W ← (H + ρI)⁻¹(HW̄ - V + ρD),   D ← P(W + V/ρ),   V ← V + ρ(W - D),

    P the projection onto the pattern: the largest squares stay. One eigendecomposition serves every ρ.

    Args:
        problem: The layer.
        H: Its damped Gram, (groups, d, d) float64.
        penalty: ρ to begin with.
        max_iterations: At most; the mask of the last D is returned.
    """
    dtype, pattern = problem.weights.dtype, problem.pattern
    scale = H.diagonal(dim1=1, dim2=2).sqrt()
    eigenvalues, Q = torch.linalg.eigh(H / (scale.unsqueeze(2) * scale.unsqueeze(1)))
    eigenvalues, Q = eigenvalues.clamp_min(0).to(dtype).unsqueeze(1), Q.to(dtype)
    target = problem.by_group(problem.weights) * scale.to(dtype).unsqueeze(1)
    pulled = (target @ Q) * eigenvalues
    rho = penalty
    mask = _project(pattern, target)
    D, V, before = target * mask, torch.zeros_like(target), mask
    for iteration in range(1, max_iterations + 1):
        W = ((pulled + (rho * D - V) @ Q) / (eigenvalues + rho)) @ Q.mT
        mask = _project(pattern, W + V / rho)
        D = (W + V / rho) * mask
        V = V + rho * (W - D)
        if iteration % CHECK_EVERY == 0:
            changed = int((mask ^ before).sum())
            if changed == 0:
                break
            rho *= next(factor for share, factor in GROWTH if changed >= share * pattern.kept)
            before = mask
    return mask.reshape(problem.weights.shape)


def _project(pattern: Pattern, values: Tensor) -> Tensor:
    """Return the mask (groups, out/groups, d) of the pattern's nearest point."""
    return pattern.keep(values.square().reshape(-1)).view_as(values)
