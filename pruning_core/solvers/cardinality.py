"""Ridge regression with a cardinality constraint: refits and thresholded gradient steps by turns."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from pruning_core.solvers.line_search import Mask, Point, iht_step
from pruning_core.solvers.low_rank import LowRankQuadratic
from pruning_core.solvers.refit import Refitter
from pruning_core.solvers.solution import Solution, Status


def solve_cardinality(
    quadratic: LowRankQuadratic,
    pattern: Mask,
    mask: Tensor,
    *,
    tolerance: float = 1e-3,
    max_rounds: int = 20,
    seed: int = 0,
) -> Generator[float, None, Solution]:
    """Minimise Q over the pattern's masks and the weights on them; Q never rises.

    CHITA's iterative hard thresholding with line search and back-solve, in the order that costs least: the many
    steps that would keep the support are replaced by one refit, which is their limit; the step after it, over all p
    columns, changes the support; and again while Q falls. So no weight is left out, and no active set is needed.

    Args:
        quadratic: Q.
        pattern: The masks allowed.
        mask: Where to start, (p,) bool, one of the pattern's; the weights start at w̄ on it.
        tolerance: Stop when a round lowers Q by less than this part.
        max_rounds: Rounds of a step and a refit.
        seed: Of the refit's sample of columns.

    Yields:
        Q after the first refit and after every round.

    Returns:
        The best point found; ``Status.DIVERGED`` when even the start is not finite.
    """
    weights = torch.where(mask, quadratic.anchor, torch.zeros_like(quadratic.anchor))
    residual = quadratic.residual(weights)
    start = quadratic.value(weights, residual)
    refitter = Refitter(quadratic, seed=seed)
    point, refitted = _refit(refitter, quadratic, Point(weights=weights, mask=mask, residual=residual, value=start))
    rounds, status = 0, Status.STEP_LIMIT
    yield point.value
    while rounds < max_rounds:
        moved = iht_step(quadratic, pattern, point, refitted=refitted)
        if moved is None:
            status = Status.STALLED
            break
        rounds += 1
        before, point = point.value, moved
        if before - moved.value <= tolerance * abs(before):
            status = Status.CONVERGED
            break
        point, refitted = _refit(refitter, quadratic, moved)
        yield point.value
    if not (start < float("inf") and bool(torch.isfinite(point.weights).all())):
        status = Status.DIVERGED
    return Solution(
        value=point.weights, mask=point.mask, status=status, start=start, objective=point.value, steps=rounds
    )


def _refit(refitter: Refitter, quadratic: LowRankQuadratic, point: Point) -> tuple[Point, bool]:
    """Return the refit on the point's mask and true, or the point and false where that is no better (or not finite)."""
    refit = refitter(point.mask, point.weights, point.residual)
    value = quadratic.value(refit.weights, refit.residual)
    if not value < point.value:
        return point, False
    return Point(weights=refit.weights, mask=point.mask, residual=refit.residual, value=value), True
