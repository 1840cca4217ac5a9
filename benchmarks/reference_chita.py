"""The named baseline: CHITA as the paper states it, written plainly from the paper, float64 and full sorts.

Iterative hard thresholding with line search on an active set of 1.5·k columns that grows while Q falls (Benbaki et
al., arXiv 2302.14623, algorithms 1-3). No refit, no sampled preconditioner: what a careful user would write first.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 100
TOLERANCE = 1e-5
SEARCH = 10


def reference_chita(G: Tensor, anchor: Tensor, k: int, ridge: float) -> Tensor:
    """Return weights (p,) with at most k non-zeros: G (n, p) float64, w̄ (p,) float64."""
    live = (G != 0).any(0).nonzero().squeeze(1)
    weights = torch.zeros_like(anchor)
    G, w_bar = G[:, live], anchor[live]
    w = _top(w_bar, k)
    active = torch.argsort(w_bar.abs(), descending=True, stable=True)[: int(1.5 * k)]
    for _ in range(SEARCH):
        # w̄ outside the active set is pruned: its effect is a constant in the residual.
        outside = w_bar.clone()
        outside[active] = 0
        w = torch.zeros_like(w_bar).index_copy(
            0, active, _iht(G[:, active], w[active], w_bar[active], -(G @ outside), k, ridge)
        )
        residual = G @ (w - w_bar)
        value, gradient = _value(residual, w - w_bar, ridge), G.T @ residual / len(G) + ridge * (w - w_bar)
        step, entered = _first_step(w, gradient), None
        for _ in range(SEARCH):
            trial = _top(w - step * gradient, k)
            if _value(G @ (trial - w_bar), trial - w_bar, ridge) >= value:
                break
            entered, step = trial, step * 2
        if entered is None:
            break
        new = entered.nonzero().squeeze(1)
        grown = torch.unique(torch.cat([active, new]))
        if len(grown) == len(active):
            break
        active, w = grown, entered
    weights[live] = w
    return weights


def _iht(G: Tensor, w: Tensor, w_bar: Tensor, constant: Tensor, k: int, ridge: float) -> Tensor:
    residual = G @ (w - w_bar) + constant
    value = _value(residual, w - w_bar, ridge)
    for _ in range(ITERATIONS):
        gradient = G.T @ residual / len(G) + ridge * (w - w_bar)
        inside = torch.where(w != 0, gradient, 0.0)
        image = G @ inside
        exact = float(inside @ inside / (image @ image / len(G) + ridge * inside @ inside))
        limit = _first_step(w, gradient)
        best = None
        if exact <= limit:
            best = w - exact * inside
        else:
            step, lowest = limit, value
            for _ in range(SEARCH):
                trial = _top(w - step * gradient, k)
                found = _value(G @ (trial - w_bar) + constant, trial - w_bar, ridge)
                if found >= lowest:
                    break
                best, lowest, step = trial, found, step * 2
        if best is None:
            break
        w, before = best, value
        residual = G @ (w - w_bar) + constant
        value = _value(residual, w - w_bar, ridge)
        if before - value <= TOLERANCE * before:
            break
    return w


def _first_step(w: Tensor, gradient: Tensor) -> float:
    """Return the step at which the support first changes."""
    support = w != 0
    rival = gradient[~support].abs().max() if bool((~support).any()) else gradient.new_zeros(())
    size, g = w[support].abs(), gradient[support].abs()
    closing = torch.where(w[support] * gradient[support] > 0, rival + g, rival - g)
    return float(torch.where(closing > 0, size / closing, torch.inf).min()) * 0.9999


def _top(w: Tensor, k: int) -> Tensor:
    kept = torch.argsort(w.abs(), descending=True, stable=True)[:k]
    return torch.zeros_like(w).index_copy(0, kept, w[kept])


def _value(residual: Tensor, move: Tensor, ridge: float) -> float:
    return float(residual @ residual / (2 * len(residual)) + ridge / 2 * move @ move)
