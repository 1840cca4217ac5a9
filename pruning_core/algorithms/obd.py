"""OBD: what a weight's removal costs by the diagonal of the Fisher alone (LeCun, Denker & Solla, 1989)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from pruning_core.algorithms.gradients import (
    GradientOptions,
    check_finite,
    gradient_notes,
    gradient_rows,
    gradient_step,
)
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step
from pruning_core.curvature import GradientRows
from pruning_core.patterns import Pattern

SUMMARY = (
    "Optimal brain damage: keep the weights of largest ½·F_ii·w², F the Fisher's diagonal; nothing is re-fitted. "
    "Memory of a few copies of the weights."
)
SOURCE = "LeCun, Denker and Solla, Optimal Brain Damage, NeurIPS 1989"


class Options(GradientOptions):
    """Options of OBD."""


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Stream the gradients' squares once; the selector keeps the largest saliencies.

    Raises:
        DatasetError: Labels are needed and there are none, or they do not fit the model.
        Diverged: The gradients are not finite.
    """
    rows = gradient_rows(task, options, streamed=True)
    key = ("diagonal", rows.count, rows.batch_size, options.labels)
    diagonal = yield from task.shared.once(key, fisher_diagonal(rows))
    saliency = 0.5 * diagonal * task.weights.square()
    used = {**options.model_dump(), "samples": rows.count, "batch_size": rows.batch_size}

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        mask = pattern.keep(saliency)
        removed = float(saliency[~mask].sum(dtype=torch.float64))
        yield Step(stage="select", done=1, total=1, fraction=1.0)
        return Selection(mask=mask, objective={"end": removed}, options=used, notes=gradient_notes(rows))

    return select


def fisher_diagonal(rows: GradientRows) -> Generator[Step, None, Tensor]:
    """Return the mean of the rows' squares, (p,) float32; O(p) memory beside one block of rows.

    Raises:
        Diverged: The gradients are not finite.
    """
    total, done = torch.zeros(rows.layout.size, device=rows.network.device), 0
    for block in rows:
        total += torch.linalg.vector_norm(block, dim=0).square_()
        done += len(block)
        yield gradient_step(done, rows.count)
    total /= rows.count
    check_finite(total)
    return total
