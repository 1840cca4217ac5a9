"""A line search that really goes back: the shortest way along a direction to a lower objective, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Searched:
    """Where a line search ended.

    Args:
        value: The point; the very one it started from where nothing lower was found.
        objective: There.
        length: Of the step taken, as a multiple of the direction; 0 where it went back.
        trials: Objectives computed.
    """

    value: Tensor
    objective: float
    length: float
    trials: int


def backtrack(
    objective: Callable[[Tensor], float],
    start: Tensor,
    direction: Tensor,
    *,
    at_start: float,
    trials: int = 5,
) -> Searched:
    """Try steps 1, ½, ¼, ... along a direction; take the first that lowers the objective, and halve on while it falls.

    Args:
        objective: What must fall; a value that is not finite never counts as lower.
        start: Where to begin.
        direction: Added to the start, times the length.
        at_start: The objective there.
        trials: Objectives computed at most.
    """
    best: Searched | None = None
    length = 1.0
    for number in range(1, trials + 1):
        trial = start + length * direction
        value = objective(trial)
        if value < (best.objective if best else at_start):
            best = Searched(value=trial, objective=value, length=length, trials=number)
        elif best is not None:
            break
        length /= 2
    return best or Searched(value=start, objective=at_start, length=0.0, trials=trials)
