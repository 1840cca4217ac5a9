"""What an algorithm is given, what it yields on the way, and what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pruning_core.algorithms.checkpoints import Checkpoints, NoCheckpoints
from pruning_core.curvature import Layout, Shared
from pruning_core.curvature.predict import Samples
from pruning_core.network import Network
from pruning_core.patterns import Pattern

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class PruningTask:
    """One network to prune: what an algorithm may look at.

    Args:
        network: As given, on the device to work on.
        calibration: The samples to fit on.
        held_out: Other samples, for every choice among options and for line searches; never for fitting.
        layout: The prunable layers that take part, as a flat vector of p weights.
        weights: w̄, (p,) float32, on the network's device.
        seed: Seeds everything random.
        shared: Statistics of this job, computed once whoever asks.
        checkpoints: Where finished steps are kept (see `remember`).
    """

    network: Network
    calibration: Samples
    held_out: Samples
    layout: Layout
    weights: Tensor
    seed: int
    shared: Shared = field(default_factory=Shared)
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A point where a job may show progress, or be cancelled.

    Args:
        stage: What is being done: ``'gradients'``, ``'select'``, ``'refine'``.
        done: Steps of this stage that are done,
        total: of so many.
        fraction: Of the present call (statistics, one selection, one refinement), 0 to 1, never falling.
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
        buffers: Other tensors of the network to replace, by name: batch norms' running statistics.
    """

    mask: Tensor
    weights: Tensor | None = None
    objective: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


def weights_of(task: PruningTask, selection: Selection) -> dict[str, Tensor]:
    """Return name -> values of a selection: weights with exact zeros off the mask, and buffers; in their own dtypes."""
    masks = task.layout.split(selection.mask)
    values = None if selection.weights is None else task.layout.split(selection.weights)
    out = {}
    for name, mask in masks.items():
        given = task.network.weights[name].detach()
        value = given if values is None else values[name].to(given.dtype)
        out[name] = torch.where(mask, value, torch.zeros_like(given))
    return {**out, **selection.buffers}


def pattern_key(task: PruningTask, pattern: Pattern) -> str:
    """Return a name that no other pattern of the job has, for checkpoints of what depends on it."""
    digest = hashlib.sha256(repr(pattern).encode())
    digest.update(pattern.keep(task.weights.abs()).cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


#: Chooses mask and weights for one pattern. Called once for each level of a frontier, in ascending sparsity; a search
#: for a goal calls it in any order.
Selector = Callable[[Pattern], Generator[Step, None, Selection]]


class Algorithm(Protocol):
    """How masks are chosen: one file in this package, one line in its registry."""

    def __call__(self, task: PruningTask, options: Any) -> Generator[Step, None, Selector]:
        """Measure what every level needs, yielding after each step; return the selector.

        Closing a generator cancels.
        """


class Refiner(Protocol):
    """How surviving weights are re-fitted under a mask: one file in this package, one line in its registry."""

    def __call__(self, task: PruningTask, options: Any, start: Selection) -> Generator[Step, None, Selection]:
        """Return better weights on the mask of ``start``, which stays as it is; yield after every step."""


def relay(inner: Generator[S, None, R], shown: Callable[[S], Step]) -> Generator[Step, None, R]:
    """Run an inner solver to its end, yielding each of its steps as a step of the algorithm; return its value."""
    while True:
        try:
            step = next(inner)
        except StopIteration as end:
            value: R = end.value
            return value
        yield shown(step)
