"""The two forms of the Fisher that CHITA solves with, behind one call: solve for a pattern at a ridge."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning_core.algorithms.gradients import Blocks
from pruning_core.algorithms.task import Step, relay
from pruning_core.curvature import Columns, GradientRows
from pruning_core.errors import Diverged
from pruning_core.patterns import Pattern
from pruning_core.solvers import (
    BlockModel,
    BlockQuadratic,
    LowRankModel,
    LowRankQuadratic,
    Refitted,
    Status,
    solve_cardinality,
    swap_search,
)

#: A solve that diverges is tried again with a ridge so many times larger, so often; counted from this part of the
#: mean diagonal, where the ridge was below what float32 can feel.
GUARD_FACTOR, GUARD_TRIES, GUARD_LEAST = 10.0, 3, 1e-6


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far a solve goes: see CHITA's options of these names."""

    tolerance: float
    max_rounds: int
    swaps: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A mask (p,), the best weights (p,) on it, and how they came about.

    Args:
        mask: Chosen.
        weights: Minimise Q on the mask.
        start: Q of the first mask with its weights as given.
        end: Q of ``weights``.
        ridge: λ that was used.
        exchanged: Weights that are in the mask and were not in the first one.
        rounds: Rounds of the solver, and of the swap search.
    """

    mask: Tensor
    weights: Tensor
    start: float
    end: float
    ridge: float
    exchanged: int
    rounds: tuple[int, int]


class Curvature(Protocol):
    """The Fisher at one point, in one structure."""

    name: str
    #: Mean of the Fisher's diagonal, which ridges are multiples of.
    scale: float
    #: ḡ, the mean row, (p,), and the samples B that one row is of.
    mean: Tensor
    batch_size: int
    #: Rows n it was measured from.
    rows: int

    def solve(
        self, anchor: Tensor, pattern: Pattern, ridge: float, slope: Tensor | None, effort: Effort
    ) -> Generator[Step, None, Solved]:
        """Choose mask and weights around w̄; Q never rises."""

    def refit(self, anchor: Tensor, mask: Tensor, ridge: float, slope: Tensor | None) -> Tensor:
        """Return the best weights (p,) on a mask."""


class BlockCurvature:
    """Diagonal blocks of the Fisher: the mask is magnitude's, the survivors are refitted exactly; swaps on top."""

    name = "block"

    def __init__(self, blocks: Blocks, sizes: tuple[int, ...], rows: GradientRows) -> None:
        self._blocks, self._sizes = blocks, sizes
        self.scale = float(blocks.diagonal.mean(dtype=torch.float64)) or 1.0
        self.mean, self.rows, self.batch_size = blocks.mean, rows.count, rows.batch_size

    def solve(
        self, anchor: Tensor, pattern: Pattern, ridge: float, slope: Tensor | None, effort: Effort
    ) -> Generator[Step, None, Solved]:
        """Choose mask and weights around w̄; Q never rises."""
        mask, there = free_first(anchor, self._blocks.diagonal, pattern)
        quadratic = BlockQuadratic(self._blocks.grams, self._sizes, there, ridge, slope)
        start = quadratic.value(torch.where(mask, there, torch.zeros_like(there)))
        model = BlockModel(quadratic, self._blocks.diagonal)
        refitted = model.refit(mask)
        yield select_step(1, 2)
        swapped, swaps = yield from _swapped(model, pattern, refitted, effort, 0.5)
        return Solved(
            mask=swapped.mask,
            weights=swapped.weights,
            start=start,
            end=swapped.value,
            ridge=ridge,
            exchanged=int((swapped.mask & ~mask).sum()),
            rounds=(0, swaps),
        )

    def refit(self, anchor: Tensor, mask: Tensor, ridge: float, slope: Tensor | None) -> Tensor:
        """Return the best weights (p,) on a mask."""
        return torch.cat(list(BlockQuadratic(self._blocks.grams, self._sizes, anchor, ridge, slope).refit(mask)))


class GlobalCurvature:
    """The whole low-rank Fisher: mask and survivors are optimised together."""

    name = "global"

    def __init__(self, columns: Columns, batch_size: int) -> None:
        self._columns = columns
        self.scale = float(columns.diagonal.mean(dtype=torch.float64)) or 1.0
        self.mean, self.rows, self.batch_size = columns.mean, columns.values.shape[1], batch_size

    def solve(
        self, anchor: Tensor, pattern: Pattern, ridge: float, slope: Tensor | None, effort: Effort
    ) -> Generator[Step, None, Solved]:
        """Choose mask and weights around w̄; Q never rises."""
        mask, there = free_first(anchor, self._columns.diagonal, pattern)
        quadratic = LowRankQuadratic(self._columns.values, there, ridge, slope)
        solving = solve_cardinality(
            quadratic,
            pattern,
            mask,
            tolerance=effort.tolerance,
            max_rounds=effort.max_rounds,
            seed=effort.seed,
        )
        total = 2 * max(1, effort.max_rounds)
        rounds = iter(range(1, total))
        solution = yield from relay(solving, lambda _: select_step(next(rounds, total // 2), total))
        if solution.status is Status.DIVERGED:
            nothing = float("nan")
            return Solved(
                mask=mask,
                weights=solution.value,
                start=solution.start,
                end=nothing,
                ridge=ridge,
                exchanged=0,
                rounds=(solution.steps, 0),
            )
        weights, end, chosen, swaps = solution.value, solution.objective, solution.mask, 0
        if effort.swaps:
            model = LowRankModel(quadratic, self._columns.diagonal, seed=effort.seed)
            refitted = model.refit(solution.mask, solution.value)
            swapped, swaps = yield from _swapped(model, pattern, refitted, effort, 0.5)
            if swapped.value < end:
                weights, end, chosen = swapped.weights, swapped.value, swapped.mask
        return Solved(
            mask=chosen,
            weights=weights,
            start=solution.start,
            end=end,
            ridge=ridge,
            exchanged=int((chosen & ~mask).sum()),
            rounds=(solution.steps, swaps),
        )

    def refit(self, anchor: Tensor, mask: Tensor, ridge: float, slope: Tensor | None) -> Tensor:
        """Return the best weights (p,) on a mask."""
        quadratic = LowRankQuadratic(self._columns.values, anchor, ridge, slope)
        return LowRankModel(quadratic, self._columns.diagonal).refit(mask).weights


def guarded(
    curvature: Curvature, anchor: Tensor, pattern: Pattern, ridge: float, slope: Tensor | None, effort: Effort
) -> Generator[Step, None, Solved]:
    """Solve; where the result is not finite, or Q rose, again with ten times the ridge (or more), up to three times.

    Raises:
        Diverged: The largest ridge did not help.
    """
    tried = []
    for attempt in range(GUARD_TRIES + 1):
        larger = max(ridge, GUARD_LEAST * curvature.scale) * GUARD_FACTOR**attempt if attempt else ridge
        solved = yield from curvature.solve(anchor, pattern, larger, slope, effort)
        tried.append(solved.ridge)
        # Rounding in a solve may cost a little; anything more, or a NaN, is a solver gone wrong.
        fell = solved.end <= solved.start + 1e-3 * abs(solved.start)
        if fell and bool(torch.isfinite(solved.weights).all()):
            return solved
    raise Diverged(
        "CHITA left the finite numbers, or its objective rose.",
        expected="an objective that falls",
        received={"start": repr(solved.start), "end": repr(solved.end), "ridges tried": tried},
        advice="Give a larger ridge; check the calibration data for extreme values.",
    )


def free_first(weights: Tensor, diagonal: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Choose the magnitude mask after the weights that the loss does not depend on.

    A weight whose gradient is exactly zero on every sample (a dead pixel, a dead unit) is free to prune: it goes
    first, whatever its size, and w̄ is taken as zero there so that the ridge does not charge for it.

    Args:
        weights: w̄, (p,).
        diagonal: The Fisher's diagonal, (p,).
        pattern: The masks allowed.

    Returns:
        The mask (p,), and the anchor of the quadratic model (p,).
    """
    size = weights.abs()
    live = diagonal > 0
    mask = pattern.keep(torch.where(live, size, size - size.max() - 1))
    return mask, torch.where(live | mask, weights, torch.zeros_like(weights))


def select_step(done: int, total: int) -> Step:
    """Return the step of so much of a solve being done."""
    return Step(stage="select", done=done, total=total, fraction=min(1.0, done / total))


def _swapped(
    model: BlockModel | LowRankModel, pattern: Pattern, start: Refitted, effort: Effort, share: float
) -> Generator[Step, None, tuple[Refitted, int]]:
    rounds = 0

    def shown(value: float) -> Step:
        nonlocal rounds
        del value
        rounds += 1
        part = 1 - share + share * rounds / effort.swaps
        return Step(stage="select", done=rounds, total=effort.swaps, fraction=part)

    best = yield from relay(swap_search(model, pattern, start, max_rounds=effort.swaps), shown)
    return best, rounds
