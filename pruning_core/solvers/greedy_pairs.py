"""Combinatorial brain surgeon: greedy removal that sees pairwise interactions, then swaps (arXiv 2203.04466).

The objective throughout is what matters in the end: the quadratic model after the survivors are re-fitted,
Q*(S) = min {Q(w): w vanishes off S}.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning_core.solvers.elimination import eliminate
from pruning_core.solvers.inverse_fisher import CHUNK, DualInverse, kernel
from pruning_core.solvers.low_rank import LowRankQuadratic

#: The part of what is left that goes between two factorisations; the least and the most that do.
PART, LEAST, MOST = 0.15, 64, 1024
#: Weights on each side of the table of swaps.
SIDE = 512


class Rule(Protocol):
    """The part of a pattern that the search needs."""

    def keep(self, score: Tensor) -> Tensor:
        """Return the allowed mask with the largest sum of scores."""

    def accepts(self, mask: Tensor) -> bool:
        """Return whether this mask is allowed."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A support with its best weights, and what every single change would do to Q*.

    Args:
        mask: S, (p,) bool.
        weights: The minimiser of Q that vanishes off S, (p,) float64.
        value: Q*(S).
        gram: Σ_{i∈S} x_i·x_iᵀ, (n, n) float64.
        inverse: (H_SS + λI)⁻¹.
        leverage: ‖y_i‖², (p,) float64.
        entering: The value that a weight off S would take if it alone came back, (p,) float64; 0 on S.
    """

    mask: Tensor
    weights: Tensor
    value: float
    gram: Tensor
    inverse: DualInverse
    leverage: Tensor
    entering: Tensor

    @property
    def change(self) -> Tensor:
        """What each change by itself is worth, (p,): on S the rise when it leaves, off S the fall when it enters."""
        ridge = self.inverse.ridge
        floor = torch.finfo(torch.float32).eps
        leaving = 0.5 * self.weights.square() * ridge / (1 - self.leverage).clamp_min(floor)
        return torch.where(self.mask, leaving, 0.5 * self.entering.square() * ridge * (1 + self.leverage))


def fit(quadratic: LowRankQuadratic, mask: Tensor, gram: Tensor) -> Fit:
    """Return the best weights on a support, in closed form, and the value of every change.

    With r₀ = Σ_{i∉S} w̄_i·x_i and z = K⁻¹r₀: w_S = w̄_S + X_S·z, and the slope of Q off S is -λ(x_j·z + w̄_j).

    Args:
        quadratic: Q, without first-order term.
        mask: S, (p,) bool.
        gram: Σ_{i∈S} x_i·x_iᵀ (see `kernel`).
    """
    columns, anchor = quadratic.columns, quadratic.anchor.double()
    inverse = DualInverse(columns, quadratic.ridge, gram)
    missing = torch.where(mask, torch.zeros_like(anchor), anchor)
    every = torch.arange(len(anchor), device=anchor.device)
    outside = quadratic.combine(every[~mask], quadratic.anchor[~mask])
    dual, leverage = inverse.solve_dual(outside), inverse.leverage(every)
    moved = anchor + _products(columns, every, dual)
    # Q* = ½·w̄_{Sᶜ}ᵀ[(H + λI)⁻¹_{SᶜSᶜ}]⁻¹w̄_{Sᶜ} = (λ/2)(r₀·z + ‖w̄_{Sᶜ}‖²).
    value = 0.5 * quadratic.ridge * float(outside @ dual + missing.square().sum())
    zero = torch.zeros_like(anchor)
    return Fit(
        mask=mask,
        weights=torch.where(mask, moved, zero),
        value=value,
        gram=gram,
        inverse=inverse,
        leverage=leverage,
        entering=torch.where(mask, zero, moved / (1 + leverage)),
    )


def elimination_order(quadratic: LowRankQuadratic, whole: Tensor) -> Generator[float, None, Tensor]:
    """Return when each weight goes, (p,) float64 ranks: greedy removal over the whole Fisher, without blocks.

    At each round the weights that would cost least alone, twice as many as are to go, are taken together with their
    block of the inverse, (I - YYᵀ)/λ; inside it one weight at a time is eliminated exactly, so that every pairwise
    interaction among them counts. Then the model is factorised again on what is left. Once no more than ``LEAST``
    are left nothing is approximate.

    Args:
        quadratic: Q, without first-order term.
        whole: GGᵀ, (n, n) float64.

    Yields:
        The part of the removals that is done.
    """
    columns, ridge = quadratic.columns, quadratic.ridge
    size, device = quadratic.size, quadratic.anchor.device
    ranks = torch.empty(size, dtype=torch.float64, device=device)
    alive, gram = torch.arange(size, device=device), whole.clone()
    outside = torch.zeros(columns.shape[1], dtype=torch.float64, device=device)
    gone = 0
    while gone < size:
        inverse = DualInverse(columns, ridge, gram)
        weights = quadratic.anchor[alive].double() + _products(columns, alive, inverse.solve_dual(outside))
        cost = weights.square() / inverse.diagonal(alive)
        going = min(len(alive), max(LEAST, min(MOST, round(PART * len(alive)))))
        window = torch.argsort(cost, stable=True)[: 2 * going].sort().values
        y = inverse.whiten(alive[window]).double()
        block = -(y @ y.T)
        block.diagonal().add_(1)
        removed = eliminate((block / ridge).unsqueeze(0), weights[window].unsqueeze(0), going)
        order = alive[window[removed.order[0]]]
        ranks[order] = torch.arange(gone, gone + going, dtype=torch.float64, device=device)
        gone += going
        alive = alive[torch.ones_like(alive, dtype=torch.bool).index_fill(0, window[removed.order[0]], False)]
        gram = gram - kernel(columns, order) if len(alive) > going else kernel(columns, alive)
        outside += quadratic.combine(order, quadratic.anchor[order])
        yield gone / size
    return ranks


def _products(columns: Tensor, index: Tensor, dual: Tensor) -> Tensor:
    """Return x_i·z for the weights in ``index``: (c,) float64, products and sums in float64."""
    parts = [columns[index[start : start + CHUNK]].double() @ dual for start in range(0, len(index), CHUNK)]
    return torch.cat(parts)


def exchange_pairs(
    quadratic: LowRankQuadratic, pattern: Rule, groups: Tensor | None, start: Fit, max_rounds: int, tolerance: float
) -> Generator[float, None, Fit]:
    """Lower Q* by exchanges of weights on S with weights off it; it never rises.

    A round makes the exact table of what each swap does, both changes and their interaction, between the weights that
    are cheapest to remove and those most worth having back; does the best disjoint ones together; and halves their
    number until Q* falls. Where the pattern is not one of counts (``groups`` None), the candidate is the mask that
    ``keep`` makes of the single changes, what is on S favoured more and more until Q* falls.

    Args:
        quadratic: Q.
        pattern: The masks allowed.
        groups: For each weight the group that it may swap within, (p,); None: the pattern knows.
        start: A fit on one of the pattern's masks.
        max_rounds: Rounds at most.
        tolerance: Stop when a round lowers Q* by less than this part.

    Yields:
        Q* after every round.
    """
    state = start
    for _ in range(max_rounds):
        better = None
        trials = _kept(pattern, state) if groups is None else _swapped(state, groups)
        for mask in trials:
            if pattern.accepts(mask) and not torch.equal(mask, state.mask):
                trial = fit(quadratic, mask, _updated(quadratic, state, mask))
                if trial.value < state.value * (1 - 1e-12):
                    better = trial
                    break
        if better is None:
            return state
        before, state = state.value, better
        yield state.value
        if before - state.value <= tolerance * before:
            return state
    return state


def _updated(quadratic: LowRankQuadratic, state: Fit, mask: Tensor) -> Tensor:
    entered = (mask & ~state.mask).nonzero().squeeze(1)
    left = (state.mask & ~mask).nonzero().squeeze(1)
    return state.gram + kernel(quadratic.columns, entered) - kernel(quadratic.columns, left)


def _kept(pattern: Rule, state: Fit) -> Generator[Tensor, None, None]:
    for favour in (1.0, 2.0, 4.0, 16.0, 64.0):
        yield pattern.keep(torch.where(state.mask, favour * state.change, state.change))


def _swapped(state: Fit, groups: Tensor) -> Generator[Tensor, None, None]:
    leave, enter = swaps(state, groups)
    count = len(leave)
    while count:
        mask = state.mask.clone()
        mask[leave[:count]] = False
        mask[enter[:count]] = True
        yield mask
        count //= 2


def swaps(state: Fit, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the swaps that lower Q* by themselves, disjoint, best first: who leaves (c,), who enters (c,).

    When j enters with w'_j, i of S becomes w_i - (y_i·y_j)·w'_j, with the inverse's diagonal
    ((1 - ‖y_i‖²) + (y_i·y_j)²/(1 + ‖y_j‖²))/λ; its removal then costs half the square of the one over the other.
    """
    change, ridge = state.change, state.inverse.ridge
    inside, outside = state.mask.nonzero().squeeze(1), (~state.mask).nonzero().squeeze(1)
    i = inside[torch.argsort(change[inside], stable=True)[:SIDE]]
    j = outside[torch.argsort(change[outside], descending=True, stable=True)[:SIDE]]
    cross = state.inverse.whiten(i).double() @ state.inverse.whiten(j).double().T
    value = state.weights[i].unsqueeze(1) - cross * state.entering[j]
    diagonal = (1 - state.leverage[i]).clamp_min(torch.finfo(torch.float32).eps).unsqueeze(1)
    table = 0.5 * ridge * value.square() / (diagonal + cross.square() / (1 + state.leverage[j])) - change[j]
    table.masked_fill_(groups[i].unsqueeze(1) != groups[j], torch.inf)
    leave, enter = [], []
    for _ in range(min(table.shape)):
        best = int(table.argmin())
        row, column = divmod(best, table.shape[1])
        if not float(table[row, column]) < 0:
            break
        leave.append(i[row])
        enter.append(j[column])
        table[row] = torch.inf
        table[:, column] = torch.inf
    empty = i[:0]
    return (torch.stack(leave), torch.stack(enter)) if leave else (empty, empty)
