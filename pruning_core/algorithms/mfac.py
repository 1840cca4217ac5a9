"""M-FAC: saliencies and updates from the inverse Fisher of m gradients, without blocks (Frantar et al., 2021)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from pruning_core.algorithms.gradients import columns, gradient_rows
from pruning_core.algorithms.surgeon import JointOptions, joint_selector, select_step
from pruning_core.algorithms.task import PruningTask, Selector, Step
from pruning_core.curvature import Columns
from pruning_core.solvers import DualCurvature, LowRankQuadratic, kernel

SUMMARY = (
    "Keep the weights of largest w²/(2[F⁻¹]_qq), F the whole Fisher of m gradients, without blocks; the survivors make "
    "up for the rest. O(mp) memory, and O(mp) a product with F⁻¹."
)
SOURCE = (
    "Frantar, Kurtic and Alistarh, M-FAC: Efficient Matrix-Free Approximations of Second-Order Information, NeurIPS "
    "2021 (arXiv 2107.03356)"
)


class Options(JointOptions):
    """Options of M-FAC; ``samples`` is the paper's m."""


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Store m gradients once; every inverse is factorised in the m×m dual (see `DualInverse`).

    Raises:
        DatasetError: Labels are needed and there are none, or they do not fit the model.
        LimitExceeded: The gradients do not fit into memory.
        Diverged: Gradients or inverse left the finite numbers.
    """
    stored = yield from columns(task, options)
    rows = gradient_rows(task, options)
    key = (rows.count, rows.batch_size, options.labels)

    def make(there: PruningTask, ridge: float) -> Generator[Step, None, DualCurvature]:
        found = yield from columns(there, options)
        whole = yield from there.shared.once(("kernel", *key), whole_kernel(found))
        return DualCurvature(LowRankQuadratic(found.values, there.weights, ridge), whole, there.seed)

    mean = float(stored.diagonal.mean(dtype=torch.float64))
    return joint_selector(task, options, rows, mean, make, ("whole saliency", *key))


def whole_kernel(stored: Columns) -> Generator[Step, None, Tensor]:
    """Return GGᵀ, (m, m) float64."""
    yield select_step(1, 1)
    return kernel(stored.values)
