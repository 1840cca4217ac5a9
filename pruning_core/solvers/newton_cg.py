"""Preconditioned conjugate gradients for a Newton step: few products, and never a step along negative curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.solvers.solution import Status


@dataclass(frozen=True, kw_only=True)
class NewtonDirection:
    """The solution of H·x = b as far as it was found.

    Args:
        value: x, in the shape of b.
        residual: ‖b - H·x‖ / ‖b‖ by CG's own recursion.
        decrease: bᵀx - ½·xᵀHx: by how much the quadratic model falls.
        steps: Products with H.
        status: How it ended.
    """

    value: Tensor
    residual: float
    decrease: float
    steps: int
    status: Status


def newton_cg(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    steps: int,
    tolerance: float,
) -> NewtonDirection:
    """Solve H·x = b from x = 0 by preconditioned conjugate gradients.

    Args:
        product: H·v, H symmetric and positive semi-definite on the space that ``precondition`` maps to.
        right: b.
        precondition: An approximation of H⁻¹·r, symmetric and positive definite on that space; what is to stay zero
            stays zero because this returns zero there, and ``right`` and ``product`` have to be zero there, too.
        steps: Products at most.
        tolerance: Relative residual at which CG ends.
    """
    x, residual = torch.zeros_like(right), right.clone()
    scale = float(right.norm())
    decrease, done, slope = 0.0, 0, 0.0
    direction = x
    status = Status.CONVERGED
    while float(residual.norm()) > tolerance * scale:
        if done == steps:
            status = Status.STEP_LIMIT
            break
        preconditioned = precondition(residual)
        next_slope = float((residual * preconditioned).sum())
        direction = preconditioned + (next_slope / slope) * direction if done else preconditioned
        slope = next_slope
        image = product(direction)
        curvature = float((direction * image).sum())
        if not 0 < curvature < float("inf") or not 0 < slope < float("inf"):
            status = Status.STALLED if curvature < float("inf") else Status.DIVERGED
            break
        length = slope / curvature
        x = x + length * direction
        residual = residual - length * image
        decrease += length * slope / 2
        done += 1
    return NewtonDirection(
        value=x,
        residual=float(residual.norm()) / scale if scale > 0 else 0.0,
        decrease=decrease,
        steps=done,
        status=status,
    )
