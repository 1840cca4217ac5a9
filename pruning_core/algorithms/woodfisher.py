"""WoodFisher: saliencies and updates from the inverse of the Fisher's blocks (Singh & Alistarh, 2020)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field

from pruning_core.algorithms.gradients import block_gram, gradient_rows
from pruning_core.algorithms.surgeon import JointOptions, joint_selector
from pruning_core.algorithms.task import PruningTask, Selector, Step
from pruning_core.solvers import BlockCurvature, BlockQuadratic

SUMMARY = (
    "Keep the weights of largest w²/(2[F⁻¹]_qq), F the Fisher in diagonal blocks; the survivors make up for the rest. "
    "Removes all at once, or in stages."
)
SOURCE = (
    "Singh and Alistarh, WoodFisher: Efficient Second-Order Approximation for Neural Network Compression, NeurIPS 2020 "
    "(arXiv 2004.14340)"
)


class Options(JointOptions):
    """Options of WoodFisher."""

    block_size: int = Field(
        default=500,
        ge=1,
        le=4096,
        description="About so many consecutive weights of one tensor in a diagonal block of the Fisher (published: up "
        "to 2000); memory is 4·p·block_size bytes.",
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Stream the Fisher's blocks once. Their inverse is that of WoodFisher's recursion (see `damped_inverse`).

    Raises:
        DatasetError: Labels are needed and there are none, or they do not fit the model.
        LimitExceeded: The blocks do not fit into memory.
        Diverged: Gradients or inverse left the finite numbers.
    """
    blocks = yield from block_gram(task, options, options.block_size)
    rows = gradient_rows(task, options, streamed=True)
    key = ("block saliency", options.block_size, rows.count, rows.batch_size, options.labels)

    def make(there: PruningTask, ridge: float) -> Generator[Step, None, BlockCurvature]:
        found = yield from block_gram(there, options, options.block_size)
        return BlockCurvature(BlockQuadratic(found.grams, there.layout.sizes, there.weights, ridge))

    mean = float(blocks.diagonal.mean(dtype=torch.float64))
    return joint_selector(task, options, rows, mean, make, key)
