"""Local search over supports: weights that would pay for themselves take the places of those that do not."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning_core.solvers.blocks import BlockQuadratic
from pruning_core.solvers.low_rank import LowRankQuadratic
from pruning_core.solvers.refit import Refitter

#: Halvings of the interval in which the margin is looked for that lets the wanted number of exchanges through.
HALVINGS = 12
#: A refused exchange is tried again with a quarter of its weights, so often at most.
RETRIES = 3
#: The part of the exchanges that promise to pay that is made at once; fewer by this factor will do.
PART = 0.25
CLOSE = 0.8


class Keep(Protocol):
    """The part of a pattern that the search needs."""

    def keep(self, score: Tensor) -> Tensor:
        """Return the allowed mask with the largest sum of scores."""


@dataclass(frozen=True, kw_only=True)
class Refitted:
    """Weights (p,) that minimise Q on a mask (p,), Q there, and ∇Q at all p weights."""

    weights: Tensor
    mask: Tensor
    value: float
    gradient: Tensor


class Model(Protocol):
    """A quadratic that can be refitted on a mask: `LowRankModel`, `BlockModel`."""

    @property
    def diagonal(self) -> Tensor:
        """D, the Hessian's diagonal with the ridge, (p,)."""

    def refit(self, mask: Tensor, near: Tensor | None = None) -> Refitted:
        """Minimise Q on the mask; ``near`` are the weights (p,) of a refit on a similar one."""


class LowRankModel:
    """A `LowRankQuadratic` as the search wants it.

    Args:
        quadratic: Q.
        fisher_diagonal: The diagonal of GᵀG/n, (p,).
        seed: Of the refit's sample of columns.
    """

    def __init__(self, quadratic: LowRankQuadratic, fisher_diagonal: Tensor, *, seed: int = 0) -> None:
        self._quadratic, self._refitter = quadratic, Refitter(quadratic, seed=seed)
        self.diagonal = fisher_diagonal + quadratic.ridge

    def refit(self, mask: Tensor, near: Tensor | None = None) -> Refitted:
        """Minimise Q on the mask, by conjugate gradients that start at ``near`` (or at w̄) on it."""
        q = self._quadratic
        weights = torch.where(mask, q.anchor if near is None else near, torch.zeros_like(q.anchor))
        refit = self._refitter(mask, weights, q.residual(weights))
        value, gradient = q.value(refit.weights, refit.residual), q.gradient(refit.weights, refit.residual)
        return Refitted(weights=refit.weights, mask=mask, value=value, gradient=gradient)


class BlockModel:
    """A `BlockQuadratic` as the search wants it.

    Args:
        quadratic: Q.
        fisher_diagonal: The diagonal of the blocks, (p,).
    """

    def __init__(self, quadratic: BlockQuadratic, fisher_diagonal: Tensor) -> None:
        self._quadratic = quadratic
        self.diagonal = fisher_diagonal + quadratic.ridge

    def refit(self, mask: Tensor, near: Tensor | None = None) -> Refitted:
        """Minimise Q on the mask exactly; ``near`` is not needed."""
        del near
        weights = torch.cat(list(self._quadratic.refit(mask)))
        value, gradient = self._quadratic.value_and_gradient(weights)
        return Refitted(weights=weights, mask=mask, value=value, gradient=gradient)


def swap_search(model: Model, pattern: Keep, start: Refitted, *, max_rounds: int) -> Generator[float, None, Refitted]:
    """Lower Q by exchanging pruned weights for kept ones; Q never rises.

    Alone, a pruned weight j would lower Q by g_j²/(2D_j) if it came back, and a kept weight i raise it by D_i·w_i²/2
    if it went (∇Q vanishes there). The pattern's best mask for the scores g²/D off S and D·w² on S makes every
    exchange that promises to pay, and only such as the pattern allows. Because weights interact, only the best
    quarter is made: kept weights get a bonus τ, chosen so that about a quarter of the exchanges remains. Then refit;
    where Q does not fall, again with a quarter of that.

    Args:
        model: Q.
        pattern: The masks allowed.
        start: A refit on one of them.
        max_rounds: Accepted exchanges at most.

    Yields:
        Q after every accepted exchange.

    Returns:
        The best refit found.
    """
    best = start
    for _ in range(max_rounds):
        better = _exchange(model, pattern, best)
        if better is None:
            break
        best = better
        yield best.value
    return best


def _exchange(model: Model, pattern: Keep, point: Refitted) -> Refitted | None:
    diagonal = model.diagonal
    score = torch.where(point.mask, diagonal * point.weights.square(), point.gradient.square() / diagonal)
    wanted, previous = PART * int((pattern.keep(score) & ~point.mask).sum()), None
    for _ in range(RETRIES):
        mask = _best_part(pattern, score, point.mask, max(1, round(wanted)))
        entering = int((mask & ~point.mask).sum())
        if not entering or entering == previous:
            return None
        trial = model.refit(mask, point.weights)
        if trial.value < point.value:
            return trial
        wanted, previous = PART * entering, entering
    return None


def _best_part(pattern: Keep, score: Tensor, mask: Tensor, wanted: int) -> Tensor:
    """Return the pattern's best mask when kept weights have about the smallest bonus τ that lets ``wanted`` enter.

    Where no τ that was tried lets any in up to that number, the mask with the fewest beyond.
    """
    chosen = pattern.keep(score)
    gains = score[chosen & ~mask].sort().values
    if len(gains) <= wanted:
        return chosen
    low, high = 0, len(gains)  # positions in `gains`, whose values are tried as τ: no exchange can promise more
    for _ in range(HALVINGS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        trial = pattern.keep(torch.where(mask, score + gains[middle], score))
        entering = int((trial & ~mask).sum())
        if entering:
            chosen = trial
        if entering > wanted:
            low = middle
        elif entering >= CLOSE * wanted:
            break
        else:
            high = middle
    return chosen
