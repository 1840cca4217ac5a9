"""Search for the highest sparsity that keeps a goal, on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from pruning_core.errors import RecipeError
from pruning_core.recipe import Goal
from pruning_core.report import Quality

S = TypeVar("S")
L = TypeVar("L")


def keeps(goal: Goal, dense: Quality, pruned: Quality) -> bool:
    """Return whether the loss of quality is within the goal's bound.

    Raises:
        RecipeError: The data cannot show it: no labels, or no classes.
    """
    word = "accuracy" if goal.max_accuracy_drop is not None else "loss"
    before, after = getattr(dense, word), getattr(pruned, word)
    if before is None or after is None:
        raise RecipeError(
            f"The goal needs the {word}, and the calibration data cannot show it.",
            expected="class labels" if word == "accuracy" else "labels",
            received="no labels that fit the model's output",
            advice="Add labels 'y' to the calibration data, or ask for a sparsity.",
        )
    if goal.max_accuracy_drop is not None:
        return bool(before - after <= goal.max_accuracy_drop + 1e-12)
    return bool(after - before <= (goal.max_loss_increase or 0.0) + 1e-12)


def search(
    goal: Goal, attempt: Callable[[float], Generator[S, None, L | None]], low: float = 0.0
) -> Generator[S, None, tuple[float, L | None]]:
    """Find the highest sparsity that holds, by bisection to the goal's precision; quality is taken to fall with it.

    Args:
        goal: Bound, highest sparsity, precision.
        attempt: Sparsity -> its result where the goal holds there, else None.
        low: A sparsity known to hold (0: the dense network).

    Returns:
        The highest sparsity that was seen to hold, and its result; ``(low, None)`` when nothing above it held.
    """
    high = goal.max_sparsity
    if high <= low:
        return low, None
    best = yield from attempt(high)
    if best is not None:
        return high, best
    while high - low > goal.precision:
        middle = round((low + high) / 2, 6)
        found = yield from attempt(middle)
        if found is None:
            high = middle
        else:
            low, best = middle, found
    return low, best


def most_attempts(goal: Goal) -> int:
    """Return how many attempts a search makes at most.

    >>> most_attempts(Goal(max_loss_increase=0.1, max_sparsity=0.8, precision=0.1))
    4
    """
    count, span = 1, goal.max_sparsity
    while span > goal.precision:
        count, span = count + 1, span / 2
    return count
