"""How good candidate weights are on held-out calibration data: what CHITA's choices are made by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pruning_core.algorithms.task import PruningTask
from pruning_core.curvature import LossKind, loss_kind, predict, sample_losses
from pruning_core.curvature.predict import batches
from pruning_core.errors import DatasetError

#: Held-out samples looked at, at most.
ENOUGH = 1024


class HeldOut:
    """Mean loss of candidate weights on held-out samples; the smaller the better.

    With labels it is the loss they fit (cross-entropy rather than accuracy: of the candidates it ranks the same ones
    first, and it does not jump). Without, it is the cross-entropy to the dense network's softmax for outputs that
    look like classes, else the squared distance from its outputs.

    Args:
        task: The job.
        classes: Whether unlabelled outputs are classes.
    """

    def __init__(self, task: PruningTask, *, classes: bool) -> None:
        self._task, self._classes = task, classes
        data = task.held_out
        self._parts = list(batches(min(len(data), ENOUGH)))
        self._kind: LossKind | None = None
        self._references: list[Tensor] = []
        with torch.no_grad():
            if data.labels is not None:
                try:
                    self._kind = loss_kind(predict(task.network, [x[:1] for x in data.inputs]), data.labels[:1])
                except DatasetError:
                    self._kind = None
            if self._kind is None:
                self._references = [predict(task.network, [x[part] for x in data.inputs]) for part in self._parts]

    @property
    def criterion(self) -> str:
        """What is compared, in plain words."""
        if self._kind is not None:
            return "loss"
        return "cross-entropy to the dense model" if self._classes else "squared distance from the dense outputs"

    def loss(self, weights: Tensor) -> float:
        """Return the mean loss at flat weights (p,)."""
        task, total, count = self._task, 0.0, 0
        updates = {
            name: value.to(task.network.weights[name].dtype) for name, value in task.layout.split(weights).items()
        }
        with torch.no_grad():
            for i, part in enumerate(self._parts):
                output = predict(task.network, [x[part] for x in task.held_out.inputs], updates)
                losses = self._losses(i, part, output)
                total += float(losses.sum(dtype=torch.float64))
                count += len(losses)
        return total / count if total == total else float("inf")

    def _losses(self, i: int, part: slice, output: Tensor) -> Tensor:
        if self._kind is not None:
            assert self._task.held_out.labels is not None
            return sample_losses(self._kind, output, self._task.held_out.labels[part].to(output.device))
        reference = self._references[i]
        if self._classes:
            likelihood = functional.log_softmax(output.float(), -1)
            losses = -(torch.softmax(reference.float(), -1) * likelihood).sum(-1)
        else:
            losses = (output.float() - reference.float()).square()
        return losses.reshape(len(output), -1).mean(1)
