"""What an algorithm is given, what it yields on the way, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pruning_core.curvature import Layout
from pruning_core.curvature.predict import Samples
from pruning_core.network import Network
from pruning_core.patterns import Unstructured

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class PruningTask:
    """One selection: which of these weights stay, and at what values.

    Args:
        network: As given, on the device to work on.
        calibration: The samples.
        layout: The prunable layers that take part, as a flat vector of p weights.
        weights: w̄, (p,) float32, on the network's device.
        pattern: The masks that are allowed; its ``kept`` is k.
        seed: Seeds everything random.
    """

    network: Network
    calibration: Samples
    layout: Layout
    weights: Tensor
    pattern: Unstructured
    seed: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """A point where a job may show progress, or be cancelled.

    Args:
        stage: What is being done: ``'gradients'`` or ``'select'``.
        done: Steps of this stage that are done,
        total: of so many.
        fraction: Of the whole algorithm, 0 to 1, never falling.
    """

    stage: str
    done: int
    total: int
    fraction: float


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What an algorithm decided.

    Args:
        mask: (p,) bool, one of the pattern's.
        weights: (p,) float32, used where the mask is true; None: the weights as given.
        objective: The algorithm's objective by name, such as ``{"start": …, "end": …}``.
        options: Every option with the value that was used, defaults filled in.
        notes: Choices made on the way, in plain words.
    """

    mask: Tensor
    weights: Tensor | None = None
    objective: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Algorithm(Protocol):
    """One file in this package, one line in its registry."""

    def __call__(self, task: PruningTask, options: Any) -> Generator[Step, None, Selection]:
        """Yield after every step; return the selection. Closing the generator cancels."""


def relay(inner: Generator[S, None, R], shown: Callable[[S], Step]) -> Generator[Step, None, R]:
    """Run an inner solver to its end, yielding each of its steps as a step of the algorithm; return its value."""
    while True:
        try:
            step = next(inner)
        except StopIteration as end:
            value: R = end.value
            return value
        yield shown(step)
