"""CHITA's choices on held-out data: the ridge, the structure, and how much of the first-order term to take."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from pruning_core.algorithms.chita_curvature import Curvature, Effort, Solved, guarded
from pruning_core.algorithms.chita_held_out import HeldOut
from pruning_core.algorithms.task import Step, relay
from pruning_core.patterns import Pattern

T = TypeVar("T")

#: Where the search for the ridge begins (and the rule without one), as a multiple of the Fisher's mean diagonal.
RELATIVE_RIDGE = {"block": 0.1, "global": 0.3}
#: Neighbouring ridges differ by this factor; so many are tried at most.
RIDGE_FACTOR, RIDGES = 10**0.5, 6
#: And so many where a stage before has found where to begin.
NEARBY_RIDGES = 3
#: The search for a ridge ends where the loss falls by less than this part.
ENOUGH_BETTER = 1e-3
#: A structure whose first loss is so many times that of the best before gets no further ridges.
HOPELESS = 1.2
#: While ridges are compared, swap rounds are cut to this.
PROBING_SWAPS = 5
#: Where the line search along the first-order step begins; it halves or doubles, so often at most. Every one of the
#: blocks by itself takes the whole step, so that for them it begins low.
FIRST_STEP = {"block": 2.0**-6, "global": 1.0}
STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The best candidate on held-out data.

    Args:
        solved: Mask and weights.
        curvature: What it was solved with.
        loss: On the held-out data.
        step: How much of the first-order step was taken; 0 without the term.
        tried: What was compared: (structure, λ, loss).
    """

    solved: Solved
    curvature: Curvature
    loss: float
    step: float
    tried: tuple[tuple[str, float, float], ...]


def choose(
    curvatures: Sequence[Curvature],
    anchor: Tensor,
    pattern: Pattern,
    *,
    ridge: float | Literal["auto"] | None,
    gradient: Tensor | None,
    effort: Effort,
    held_out: HeldOut,
    begin: float | None = None,
    first: float | None = None,
) -> Generator[Step, None, Chosen]:
    """Solve with each structure and with several ridges; return what does best on held-out data.

    The ridges form a geometric grid around the start; the search goes on in the direction in which the held-out loss
    falls, and stops where it rises. A later structure that begins far behind is left at that. Candidates are compared
    with a short swap search; the winner gets the whole one.

    Args:
        curvatures: The structures to compare.
        anchor: w̄, (p,).
        pattern: The masks allowed.
        ridge: λ itself; ``"auto"``: search; None: the rule's multiple of the mean diagonal.
        gradient: ḡ, for the first-order term ḡᵀ(w-w̄)/B, (p,); None: without it.
        effort: Of the winner's solve.
        held_out: What is compared by.
        begin: Multiple of the mean diagonal to begin the search for λ at; None: the rule's.
        first: Where to begin the line search along the first-order step; None or 0: where its structure begins.
    """
    probing = replace(effort, swaps=min(effort.swaps, PROBING_SWAPS))
    part = 1 / (len(curvatures) + 1)
    best: Chosen | None = None
    tried: list[tuple[str, float, float]] = []
    for i, curvature in enumerate(curvatures):
        solve = _Candidate(curvature, anchor, pattern, gradient, probing, held_out, first)
        if isinstance(ridge, float):
            start, most = ridge, 1
        else:
            start = (begin or RELATIVE_RIDGE[curvature.name]) * curvature.scale
            near = NEARBY_RIDGES if begin else RIDGES
            most = near if ridge == "auto" else 1
        hopeless = HOPELESS * best.loss if best is not None else float("inf")
        found = yield from scaled(_climb(solve, start, most, hopeless), i * part, part)
        tried += solve.tried
        if best is None or found.loss < best.loss:
            best = found
    assert best is not None
    if probing.swaps < effort.swaps:
        whole = _Candidate(best.curvature, anchor, pattern, gradient, effort, held_out, best.step or first)
        found = yield from scaled(whole(best.solved.ridge), 1 - part, part)
        # What was given by the recipe is taken at its word: only what was left to choose is chosen.
        if found.loss <= best.loss or len(tried) == 1:
            best = found
    return replace(best, tried=tuple(tried))


def scaled(steps: Generator[Step, None, T], begin: float, span: float) -> Generator[Step, None, T]:
    """Yield steps as a part of a longer run: their fractions, never falling, from ``begin`` over ``span``."""
    highest = begin

    def shown(step: Step) -> Step:
        nonlocal highest
        highest = max(highest, begin + span * step.fraction)
        return replace(step, fraction=min(1.0, highest))

    return relay(steps, shown)


class _Candidate:
    """Solves at one ridge after another, each with its best part of the first-order step; keeps their held-out loss."""

    def __init__(
        self,
        curvature: Curvature,
        anchor: Tensor,
        pattern: Pattern,
        gradient: Tensor | None,
        effort: Effort,
        held_out: HeldOut,
        first: float | None,
    ) -> None:
        self._curvature, self._anchor, self._pattern, self._held_out = curvature, anchor, pattern, held_out
        # A step that every block takes by itself says nothing of which weights to exchange.
        self._slope = None if gradient is None else gradient / curvature.batch_size
        self._selects = curvature.name == "global"
        self._effort, self._first = effort, first or FIRST_STEP[curvature.name]
        self.tried: list[tuple[str, float, float]] = []

    def __call__(self, ridge: float) -> Generator[Step, None, Chosen]:
        slope = self._slope if self._selects else None
        solved = yield from guarded(self._curvature, self._anchor, self._pattern, ridge, slope, self._effort)
        loss, step = self._held_out.loss(solved.weights), 0.0 if slope is None else 1.0
        chosen = Chosen(solved=solved, curvature=self._curvature, loss=loss, step=step, tried=())
        if self._slope is not None:
            chosen = _line_search(chosen, self._anchor, self._slope, self._first, self._held_out)
            self._first = chosen.step or self._first
        self.tried.append((self._curvature.name, solved.ridge, chosen.loss))
        return chosen


def _climb(solve: _Candidate, start: float, most: int, hopeless: float) -> Generator[Step, None, Chosen]:
    """Return the best of at most so many ridges: the start, both its neighbours, and on beyond the better of these.

    Where the first loss is ``hopeless`` or more, no other ridge is tried.
    """
    found: dict[int, Chosen] = {}

    def at(place: int) -> Generator[Step, None, Chosen]:
        return scaled(solve(start * RIDGE_FACTOR**place), len(found) / most, 1 / most)

    found[0] = yield from at(0)
    if not found[0].loss < hopeless:
        return found[0]
    for place in (1, -1)[: most - 1]:
        found[place] = yield from at(place)
    if len(found) == 3:
        way = place = 1 if found[1].loss < found[-1].loss else -1
        while len(found) < most and found[place].loss < found[place - way].loss * (1 - ENOUGH_BETTER):
            place += way
            found[place] = yield from at(place)
    return min(found.values(), key=lambda one: one.loss)


def _line_search(chosen: Chosen, anchor: Tensor, slope: Tensor, first: float, held_out: HeldOut) -> Chosen:
    """Scale the first-order step on the chosen mask.

    With the slope scaled by τ the best weights on the mask are w(0) + τ·(w(1) - w(0)): Q's minimiser is affine in the
    slope. The best τ on held-out data among powers of two is taken, or 0.
    """
    solved = chosen.solved
    without, whole = (chosen.curvature.refit(anchor, solved.mask, solved.ridge, s) for s in (None, slope))

    def at(step: float) -> tuple[float, float]:
        return held_out.loss(without + step * (whole - without)), step

    best = min(at(0.0), at(first))
    for factor in (2.0, 0.5) if best[1] else (0.5,):
        step, moved = first * factor, False
        for _ in range(STEPS):
            found = at(step)
            if not found < best:
                # A step far too long says nothing of shorter ones.
                if factor == 0.5 and best[1] == 0.0:
                    step *= factor
                    continue
                break
            best, step, moved = found, step * factor, True
        if moved:
            break
    loss, step = best
    weights = without + step * (whole - without)
    if not bool(torch.isfinite(weights).all()) or not loss < chosen.loss:
        return chosen
    return replace(chosen, solved=replace(solved, weights=weights), loss=loss, step=step)
