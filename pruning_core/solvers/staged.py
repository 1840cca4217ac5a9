"""Removal in stages: score, remove the cheapest of what the pattern dooms, re-fit, score again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol

import torch
from torch import Tensor


class Keeper(Protocol):
    """The part of a pattern that staged removal needs."""

    @property
    def kept(self) -> int:
        """Number of weights that stay, k."""

    def keep(self, score: Tensor) -> Tensor:
        """Return the allowed mask with the largest sum of scores."""


class Scorer(Protocol):
    """What staged removal asks of a model of the loss."""

    def saliency(self, mask: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """Yield the parts of what each removal costs, none negative."""

    def refit(self, mask: Tensor) -> Iterator[Tensor]:
        """Yield the parts of the best weights that vanish off the mask."""


def remove_cheapest(pattern: Keeper, score: Tensor, mask: Tensor, left: int) -> Tensor:
    """Return a mask with ``left`` weights (or as near as the pattern allows), from which the pattern can be reached.

    The pattern's best mask, in which what has gone stays gone, dooms some weights; of these the cheapest go.

    Args:
        pattern: The masks allowed in the end.
        score: What each removal costs, (p,), none negative.
        mask: What is left now, (p,) bool.
        left: How many are to be left; the pattern's ``kept`` gives one of its masks.
    """
    score = score.double().masked_fill(~mask, 0)
    bottom = -1 - 2 * score.sum()
    target = pattern.keep(torch.where(mask, score, bottom))
    if left <= pattern.kept:
        return target
    doomed = (mask & ~target).nonzero().squeeze(1)
    going = max(0, int(mask.sum()) - left)
    cheapest = doomed[torch.argsort(score[doomed], stable=True)[:going]]
    return torch.where(torch.zeros_like(mask).index_fill_(0, cheapest, 1), torch.zeros_like(mask), mask)


def counts_left(size: int, kept: int, stages: int) -> tuple[int, ...]:
    """Return how many weights each stage leaves: falling geometrically, the last exactly ``kept``.

    >>> counts_left(1000, 10, 2)
    (100, 10)
    """
    ratio = max(1, kept) / size
    return (*(max(kept, round(size * ratio ** (stage / stages))) for stage in range(1, stages)), kept)


def staged_removal(
    scorer: Scorer, pattern: Keeper, weights: Tensor, stages: int, *, first: Tensor | None = None
) -> Generator[int, None, Tensor]:
    """Return a mask of any pattern by removals in stages, the survivors re-fitted and scored again after each.

    As one stage it is ``pattern.keep(saliency)``; with many it comes near to one removal at a time, inside what the
    pattern still allows.

    Args:
        scorer: Saliencies and refits.
        pattern: The masks allowed.
        weights: w̄, (p,).
        stages: How many, >= 1.
        first: The saliencies at w̄ with nothing removed, where they are already known.

    Yields:
        The stage begun, from 0, after every part of it.

    Returns:
        The mask, (p,) bool.
    """
    mask = torch.ones_like(weights, dtype=torch.bool)
    for stage, left in enumerate(counts_left(weights.numel(), pattern.kept, stages)):
        if stage == 0 and first is not None:
            score = first
        else:
            score = torch.cat((yield from _numbered(scorer.saliency(mask, weights), stage)))
        mask = remove_cheapest(pattern, score, mask, left)
        if stage < stages - 1:
            weights = torch.cat((yield from _numbered(scorer.refit(mask), stage)))
    return mask


def _numbered(parts: Iterator[Tensor], stage: int) -> Generator[int, None, list[Tensor]]:
    collected = []
    for part in parts:
        collected.append(part)
        yield stage
    return collected
