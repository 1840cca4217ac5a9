"""The stages of gradual pruning: which patterns come before the one asked for, and the best mask inside the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning_core.curvature import Layout
from pruning_core.patterns import Block, NofM, Pattern, Unstructured, kept_count, top_k


@dataclass(frozen=True)
class Stage:
    """One stage on the way.

    Attributes:
        key: Its name.
        pattern: The pattern to reach.
        shared: Whether sparser levels pass through it too.
        part: How much of what the pattern prunes goes now; below 1 a later stage has the same pattern.
    """

    key: str
    pattern: Pattern
    shared: bool = True
    part: float = 1.0


def stages(pattern: Pattern, sparsities: Sequence[float], passes: int) -> tuple[Stage, ...]:
    """Return the stages up to and including a pattern.

    What comes before the last depends on the pattern's kind, not on its sparsity: levels share their stages.

    Args:
        pattern: The one asked for.
        sparsities: Of the stages of unstructured and block patterns, rising.
        passes: Stages from each n+1:m to n:m; each takes an equal number of weights, the smallest first.

    Returns:
        At least one; every mask of a stage can hold a mask of the next.
    """
    if isinstance(pattern, NofM):
        return tuple(
            Stage(f"{n}-of-{pattern.m}-{turn + 1}-of-{passes}", replace(pattern, n=n), part=1 / (passes - turn))
            for n in range(pattern.m - 1, pattern.n - 1, -1)
            for turn in range(passes)
        )
    if isinstance(pattern, Unstructured | Block):
        groups = _groups(pattern)
        before: list[Stage] = []
        for sparsity in sparsities:
            counts = tuple(kept_count(size, sparsity) for size in groups)
            if counts == pattern.counts:
                return (*before, Stage(f"{sparsity:g}", pattern))
            if all(more >= less for more, less in zip(counts, pattern.counts, strict=True)):
                before.append(Stage(f"{sparsity:g}", replace(pattern, counts=counts)))
        return (*before, Stage(f"kept-{pattern.kept}", pattern, shared=False))
    return (Stage("mask", pattern, shared=False),)


def nested(stage: Stage, weights: Tensor, mask: Tensor, layout: Layout, floor: float) -> Tensor:
    """Return the mask of the largest weights inside a mask.

    Args:
        stage: Its pattern says which masks are allowed at the end of it.
        weights: (p,), zero off the mask.
        mask: (p,) bool; what it prunes comes last.
        layout: Where the layers are.
        floor: With one ranking over all layers: the part of each layer that stays, or half of the density that is
            asked for where that is less.
    """
    pattern, size = stage.pattern, weights.abs()
    score = torch.where(mask, size, torch.full_like(size, -1.0))
    first = _first(pattern, score, layout, min(floor, pattern.kept / max(1, pattern.size) / 2))
    # A block's score is a sum: a kept block stays ahead of all others if each of its members is far ahead.
    kept = pattern.keep(score if first is None else score + first * (pattern.size + 1) * (size.max() + 1))
    if stage.part == 1.0:
        return kept
    going = (mask & ~kept).nonzero().squeeze(1)
    last = top_k(size[going], len(going) - math.ceil(stage.part * len(going)))
    return kept.index_fill(0, going[last], value=True)


def _groups(pattern: Unstructured | Block) -> tuple[int, ...]:
    """Return how many weights, or blocks, compete for each of the counts."""
    if isinstance(pattern, Unstructured):
        return pattern.sizes
    return (sum(pattern.blocks),) if len(pattern.counts) == 1 else pattern.blocks


def _first(pattern: Pattern, score: Tensor, layout: Layout, floor: float) -> Tensor | None:
    """Return what stays in each layer in any case, (p,) bool; None where layers do not compete."""
    if floor <= 0 or not isinstance(pattern, Unstructured | Block) or len(pattern.counts) != 1:
        return None
    parts = []
    for layer, part in zip(layout.layers, torch.split(score, list(layout.sizes)), strict=True):
        if isinstance(pattern, Unstructured):
            alone: Unstructured | Block = Unstructured((len(part),), (math.floor(floor * len(part)),))
        else:
            free = replace(pattern, shapes=(layer.shape,), counts=(0,))
            alone = replace(free, counts=(math.floor(floor * free.blocks[0]),))
        parts.append(alone.keep(part))
    return torch.cat(parts)
