"""OBS: one weight at a time, the rest re-fitted after each, exactly, inside blocks of the Fisher (Hassibi & Stork)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.gradients import block_gram, gradient_notes, gradient_rows
from pruning_core.algorithms.surgeon import SurgeonOptions, chosen, rescaled, ridges, select_step
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, relay
from pruning_core.patterns import Fixed, Pattern, Unstructured
from pruning_core.solvers import BlockCurvature, BlockQuadratic, removal_ranks, staged_removal

SUMMARY = (
    "Optimal brain surgeon, exact: always remove the weight whose removal costs least after all others in its block of "
    "the Fisher have made up for it. One order of removal serves every sparsity."
)
SOURCE = (
    "Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, NeurIPS 1992; blocks as "
    "in Singh and Alistarh, NeurIPS 2020 (arXiv 2004.14340)"
)


class Options(SurgeonOptions):
    """Options of OBS."""

    block_size: int = Field(
        default=500,
        ge=1,
        le=4096,
        description="About so many consecutive weights of one tensor in a diagonal block of the Fisher; memory is "
        "4·p·block_size bytes, time grows with p·block_size².",
    )
    stages: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="For n:m and block patterns, where the order of single removals does not lead to an allowed mask: "
        "in how many stages the cheapest of what the pattern dooms goes, the rest re-fitted after each.",
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Stream the Fisher's blocks once; the order of removals is worked out when the first mask is asked for.

    Unstructured masks (global, in each layer, with caps) are cut from that order: the greedy over all blocks, inside
    what the counts allow. Other patterns are reached by stages. The weights are the exact refit, which is what the
    updates after each single removal add up to.

    Raises:
        DatasetError: Labels are needed and there are none, or they do not fit the model.
        LimitExceeded: The blocks do not fit into memory.
        Diverged: Gradients or inverse left the finite numbers.
    """
    blocks = yield from block_gram(task, options, options.block_size)
    rows = gradient_rows(task, options, streamed=True)
    tried = ridges(options.ridge, float(blocks.diagonal.mean(dtype=torch.float64)))

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        candidates, before = {}, pattern.keep(task.weights.abs())
        for ridge, shown in zip(tried, rescaled([1] * len(tried)), strict=True):
            quadratic = BlockQuadratic(blocks.grams, task.layout.sizes, task.weights, ridge)
            mask, weights = yield from relay(_solve(task, options, quadratic, pattern), shown)
            plain = torch.where(before, task.weights, torch.zeros_like(task.weights))
            candidates[f"ridge {ridge:.3g}"] = Selection(
                mask=mask,
                weights=weights,
                objective={"start": quadratic.value(plain), "end": quadratic.value(weights)},
                options={
                    **options.model_dump(),
                    "samples": rows.count,
                    "batch_size": rows.batch_size,
                    "ridge": ridge,
                },
                notes=gradient_notes(rows),
            )
        return chosen(task, candidates)

    return select


def _solve(
    task: PruningTask, options: Options, quadratic: BlockQuadratic, pattern: Pattern
) -> Generator[Step, None, tuple[Tensor, Tensor]]:
    tensors = len(quadratic.sizes)
    ordering, fitting = rescaled([8, 1])
    if isinstance(pattern, Unstructured):
        key = ("obs", options.block_size, options.samples, options.batch_size, options.labels, quadratic.ridge)
        ranks = yield from relay(task.shared.once(key, _ranks(quadratic)), ordering)
        mask = pattern.keep(ranks.nan_to_num(0.0))
    elif isinstance(pattern, Fixed):
        mask = pattern.keep(task.weights)
    else:
        removing = staged_removal(BlockCurvature(quadratic), pattern, task.weights, options.stages)
        mask = yield from relay(removing, lambda stage: ordering(select_step(stage, options.stages)))
    parts = []
    for part in quadratic.refit(mask):
        parts.append(part)
        yield fitting(select_step(len(parts), tensors))
    return mask, torch.cat(parts)


def _ranks(quadratic: BlockQuadratic) -> Generator[Step, None, Tensor]:
    return (yield from relay(removal_ranks(quadratic), lambda done: select_step(done, len(quadratic.sizes))))
