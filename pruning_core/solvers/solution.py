"""What a solver gives back. Not converging is data, not an exception."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class Status(Enum):
    """How a solver ended; the value says it in words."""

    CONVERGED = "the tolerance was reached"
    STEP_LIMIT = "the step limit was reached first; the value is the best found"
    STALLED = "no further step lowers the objective in this arithmetic"
    DIVERGED = "the iterates left the finite numbers; the value must not be used"


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The end of a solver's run.

    Args:
        value: The weights (p,).
        mask: Which of them were allowed to be non-zero (p,), bool.
        status: How it ended.
        start: The objective where the solver began.
        objective: The objective at ``value``.
        steps: Steps done.
    """

    value: Tensor
    mask: Tensor
    status: Status
    start: float
    objective: float
    steps: int
