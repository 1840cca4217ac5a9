"""Iterative hard thresholding, one step: along the negative gradient, then the best mask, as far as Q falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning_core.solvers.low_rank import LowRankQuadratic

#: Doublings of the step at most, and those that may pass before Q first falls: where one exchange of the smallest
#: kind does not pay, a few more at a longer step may.
TRIALS = 30
FUTILE_TRIALS = 3


class Mask(Protocol):
    """The part of a pattern that the search needs."""

    def keep(self, score: Tensor) -> Tensor:
        """Return the allowed mask with the largest sum of scores."""

    def rival(self, score: Tensor, mask: Tensor) -> Tensor:
        """Return, for each weight, the largest score among the pruned ones it competes with."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Weights (p,) on a mask (p,), their residual G(w-w̄) (n,) and Q there."""

    weights: Tensor
    mask: Tensor
    residual: Tensor
    value: float


def largest_same_support_step(weights: Tensor, gradient: Tensor, mask: Tensor, rival: Tensor) -> float:
    """Return the largest τ up to which keeping the largest |w - τ∇Q| keeps the support.

    Weight i of S loses its place when |w_i - τg_i| < τ·g*, g* being the largest |g| it competes with off S. That is
    at τ = |w_i| / (|g_i| + g*) when w_i and g_i agree in sign, at |w_i| / (g* - |g_i|) when they differ and
    |g_i| < g*, and never otherwise.

    Args:
        weights: (p,), zero off the mask.
        gradient: (p,).
        mask: S, (p,) bool.
        rival: g* for each weight, (p,).
    """
    w, g = weights[mask].abs(), gradient[mask].abs()
    agree = weights[mask] * gradient[mask] > 0
    closing = torch.where(agree, rival[mask] + g, rival[mask] - g)
    steps = torch.where(closing > 0, w / closing, torch.full_like(w, torch.inf))
    return float(steps.min()) if steps.numel() else float("inf")


def iht_step(quadratic: LowRankQuadratic, pattern: Mask, point: Point, *, refitted: bool = False) -> Point | None:
    """Return a point with lower Q one thresholded gradient step away, or None where no such step is found.

    The minimiser of Q along -∇Q restricted to S is closed-form and is taken when it keeps the support. Otherwise the
    search begins where the support first changes, and doubles the step while Q falls. G_S∇Q is computed once; a
    trial then reads only the columns that enter or leave.

    Args:
        quadratic: Q.
        pattern: The masks allowed.
        point: Where to start.
        refitted: The weights on S are a refit: ∇Q vanishes there up to rounding, and is taken to be zero.
    """
    gradient = quadratic.gradient(point.weights, point.residual)
    image = torch.zeros_like(point.residual)
    if refitted:
        gradient.masked_fill_(point.mask, 0.0)
    else:
        support = point.mask.nonzero().squeeze(1)
        image = quadratic.combine(support, gradient[support])
    limit = largest_same_support_step(point.weights, gradient, point.mask, pattern.rival(gradient.abs(), point.mask))
    if not refitted:
        inside = torch.where(point.mask, gradient, torch.zeros_like(gradient))
        fall = float(inside.double().square().sum())
        curvature = float(image.square().sum()) / quadratic.samples + quadratic.ridge * fall
        exact = fall / curvature if curvature > 0 else 0.0
        if 0 < exact <= limit:
            weights, residual = point.weights - exact * inside, point.residual - exact * image
            value = quadratic.value(weights, residual)
            best = Point(weights=weights, mask=point.mask, residual=residual, value=value)
            return best if value < point.value else None
    return _search(quadratic, pattern, point, gradient, image, limit)


def _search(
    quadratic: LowRankQuadratic, pattern: Mask, point: Point, gradient: Tensor, image: Tensor, limit: float
) -> Point | None:
    best, step = None, limit * (1 + 1e-4)
    for number in range(TRIALS):
        if not 0 < step < float("inf"):
            break
        trial = _moved(quadratic, pattern, point, gradient, image, step)
        if trial.value < (best or point).value:
            best = trial
        elif best is not None or number + 1 >= FUTILE_TRIALS:
            break
        step *= 2
    return best


def _moved(
    quadratic: LowRankQuadratic, pattern: Mask, point: Point, gradient: Tensor, image: Tensor, step: float
) -> Point:
    """Return keep(w - τ∇Q). Its residual follows from G_S∇Q and the columns that enter or leave."""
    there = point.weights - step * gradient
    mask = pattern.keep(there.abs())
    weights = torch.where(mask, there, torch.zeros_like(there))
    changed = (mask != point.mask).nonzero().squeeze(1)
    # r - τ·G_S∇Q moves all of S; correct it where a weight left S (it is at 0 instead) or entered.
    followed = torch.where(point.mask, there, torch.zeros_like(there))
    residual = point.residual - step * image + quadratic.combine(changed, (weights - followed)[changed])
    return Point(weights=weights, mask=mask, residual=residual, value=quadratic.value(weights, residual))
