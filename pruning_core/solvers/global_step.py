"""Least squares over all weights at once, from small chunks of samples: preconditioned steps of Gauss-Newton length."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: Chunks from which the step length is worked out.
MEASURED = 2
#: A mean loss over so many steps stands for the loss.
WINDOW = 8
#: A loss this many times the first one is a divergence.
BLOWN_UP = 4.0


class Chunks(Protocol):
    """A sum of squares ½·‖r(w)‖², cut into chunks of samples; values are per sample of a chunk."""

    def __len__(self) -> int:
        """Number of chunks."""

    def gradient(self, w: Tensor, chunk: int) -> tuple[float, Tensor]:
        """Return ½·‖r‖² and Jᵀr, (p,)."""

    def curvature(self, w: Tensor, d: Tensor, chunk: int) -> float:
        """Return ‖J·d‖²."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """What a descent came to.

    Attributes:
        weights: (p,), the last iterate.
        start: Mean loss over the first chunks.
        end: Mean loss over the last ones, each seen before its step.
        length: The Gauss-Newton length of a step without momentum.
        diverged: Whether the loss blew up, and the descent stopped.
    """

    weights: Tensor
    start: float
    end: float
    length: float
    diverged: bool


def descend(
    problem: Chunks,
    precondition: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    momentum: float,
    scale: float,
    seed: int,
) -> Generator[int, None, Descent]:
    """Go down the preconditioned gradients of chunks in turn, with momentum μ and a step length that falls to zero.

        m ← μ·m + P·Jᵀr,   w ← w - (1-μ)·σ·α·½(1 + cos(π·t/T))·m

    α is measured once: with d = P·Jᵀr over some chunks, α = rᵀJd/‖Jd‖² minimises the Gauss-Newton model along d. The
    length (1-μ)·α makes a run of equal gradients one Gauss-Newton step.

    Args:
        problem: The sum of squares.
        precondition: P, (p,) -> (p,), symmetric and semi-definite; what it maps to zero never moves.
        start: w, (p,).
        steps: T.
        momentum: μ, 0 <= μ < 1.
        scale: σ.
        seed: Of the order of the chunks.

    Yields:
        Steps done.
    """
    generator = torch.Generator().manual_seed(seed)
    w, velocity = start.clone(), torch.zeros_like(start)
    length, first = _measured(problem, precondition, start, generator)
    losses: list[float] = []
    order: list[int] = []
    for step in range(steps if length > 0 else 0):
        if not order:
            order = torch.randperm(len(problem), generator=generator).tolist()
        loss, gradient = problem.gradient(w, order.pop())
        losses.append(loss)
        if not loss <= BLOWN_UP * first:
            return Descent(weights=start, start=first, end=first, length=length, diverged=True)
        velocity.mul_(momentum).add_(precondition(gradient))
        w.sub_(velocity, alpha=(1 - momentum) * scale * length * 0.5 * (1 + math.cos(math.pi * step / steps)))
        yield step + 1
    last = losses[-WINDOW:]
    end = sum(last) / len(last) if last else first
    return Descent(weights=w, start=first, end=end, length=length, diverged=not bool(torch.isfinite(w).all()))


def _measured(
    problem: Chunks, precondition: Callable[[Tensor], Tensor], w: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Return the step length α (0 where there is nothing to gain) and the mean loss over the chunks it is from."""
    chosen = torch.randperm(len(problem), generator=generator)[:MEASURED].tolist()
    losses, gradient = [], torch.zeros_like(w)
    for chunk in chosen:
        loss, part = problem.gradient(w, chunk)
        losses.append(loss)
        gradient += part / len(chosen)
    direction = precondition(gradient)
    slope = float(gradient.double() @ direction.double())
    bend = sum(problem.curvature(w, direction, chunk) for chunk in chosen) / max(1, len(chosen))
    length = slope / bend if slope > 0 and bend > 0 else 0.0
    return length if math.isfinite(length) else 0.0, sum(losses) / max(1, len(losses))
