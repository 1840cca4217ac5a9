"""The loss whose curvature is taken: cross-entropy for classes, squared error for numbers."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional

from pruning_core.errors import DatasetError

#: Positions with this label take no part in the loss (the convention of language-model data).
IGNORED = -100


class LossKind(Enum):
    """How outputs and labels are compared."""

    CLASSES_LAST = "cross-entropy, classes along the last dimension"
    CLASSES_SECOND = "cross-entropy, classes along dimension 1"
    SQUARED_ERROR = "mean squared error"
    RANDOM_SUM = "random sum of the outputs, for the Gauss-Newton matrix of their squared error"


def loss_kind(output: Tensor, labels: Tensor) -> LossKind:
    """Return the loss that fits an output (N, ...) and labels (N, ...).

    Integer labels of shape (N,), (N, T), ... with an output that has one more dimension, of classes, mean
    cross-entropy; float labels of the output's shape mean squared error.

    Raises:
        DatasetError: Shapes and types fit neither.
    """
    if labels.dtype.is_floating_point:
        if labels.numel() == output.numel() and len(labels) == len(output):
            return LossKind.SQUARED_ERROR
    elif output.dim() >= 2:
        if labels.shape == output.shape[:-1] and output.shape[-1] >= 2:
            return LossKind.CLASSES_LAST
        if labels.shape == output.shape[:1] + output.shape[2:] and output.shape[1] >= 2:
            return LossKind.CLASSES_SECOND
    raise DatasetError(
        "The labels do not fit the model's output.",
        expected="integer class labels with the output's shape less its class dimension, or float targets of its shape",
        received={"labels": [str(labels.dtype), *labels.shape], "output": [str(output.dtype), *output.shape]},
        advice="Send class numbers as int64 of shape (N,), or (N, T) for one label per token.",
    )


def sample_losses(kind: LossKind, output: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample: shapes (N, ...) and (N, ...) -> (N,).

    Over several positions of one sample (tokens, pixels) it is the mean; ignored positions do not count. For
    ``RANDOM_SUM`` the "labels" are random signs z of the output's shape and the "loss" is zᵀf/√o over o outputs.
    """
    if kind is LossKind.RANDOM_SUM:
        flat = output.float().reshape(len(output), -1)
        return (flat * labels.reshape(len(labels), -1)).sum(1) / math.sqrt(flat.shape[1])
    if kind is LossKind.SQUARED_ERROR:
        return (output.reshape(len(output), -1) - labels.reshape(len(labels), -1)).square().mean(1)
    if kind is LossKind.CLASSES_LAST:
        output = output.movedim(-1, 1)
    losses = functional.cross_entropy(output.float(), labels.long(), reduction="none", ignore_index=IGNORED)
    if losses.dim() == 1:
        return losses
    counted = (labels != IGNORED).reshape(len(labels), -1).sum(1).clamp(min=1)
    return losses.reshape(len(losses), -1).sum(1) / counted


def check_classes(kind: LossKind, output: Tensor, labels: Tensor) -> None:
    """Check that every class label names one of the output's classes.

    Raises:
        DatasetError: A label is out of range.
    """
    if kind not in (LossKind.CLASSES_LAST, LossKind.CLASSES_SECOND):
        return
    classes = output.shape[-1 if kind is LossKind.CLASSES_LAST else 1]
    counted = labels[labels != IGNORED]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise DatasetError(
            "A class label is out of range.",
            expected=f"labels from 0 to {classes - 1} (or {IGNORED} for 'ignore'): the model has {classes} outputs",
            received={"smallest": int(counted.min()), "largest": int(counted.max())},
            advice="Class numbers begin at 0.",
        )


def predicted_classes(kind: LossKind, output: Tensor) -> Tensor:
    """Return the most likely class of each sample or position, in the shape of its labels."""
    return torch.argmax(output, dim=-1 if kind is LossKind.CLASSES_LAST else 1)
