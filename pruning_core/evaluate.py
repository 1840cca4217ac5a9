"""How well a network does, measured: loss, accuracy, and distance from the dense network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.curvature import loss_kind, predict, sample_losses
from pruning_core.curvature.losses import IGNORED, LossKind, predicted_classes
from pruning_core.curvature.predict import Samples, batches
from pruning_core.errors import DatasetError
from pruning_core.network import Network
from pruning_core.report import Quality


def standing(quality: Quality) -> tuple[float, float]:
    """Return what two qualities on the same data are compared by: the larger is the better network.

    Accuracy, then loss; without class labels the loss; without labels how close the outputs are to the dense ones.
    """
    last = quality.loss if quality.loss is not None else quality.output_error
    return quality.accuracy or 0.0, -(last if last is not None else 0.0)


@dataclass
class _Sums:
    """What one network has shown so far."""

    loss: float = 0.0
    loss_squares: float = 0.0
    right: int = 0
    labelled: int = 0
    agreeing: int = 0
    predictions: int = 0
    error: float = 0.0


def quality(network: Network, dataset: Samples, reference: Network | None = None) -> Quality:
    """Measure one network; `compare` measures several in one pass.

    Args:
        network: To be measured.
        dataset: N samples, with labels or without.
        reference: The dense network; without it agreement and output error are None.
    """
    if reference is None:
        return compare(network, {}, dataset)["dense"]
    return compare(reference, {"it": {name: network.weights[name] for name in reference.weights}}, dataset)["it"]


def compare(dense: Network, candidates: Mapping[str, Mapping[str, Tensor]], dataset: Samples) -> dict[str, Quality]:
    """Measure the dense network and some changes of its weights over a dataset, streamed in one pass.

    Args:
        dense: The network as given.
        candidates: Name -> weights that replace the dense ones.
        dataset: N samples. Labels that do not fit the output are not used: losses are then None.

    Returns:
        Name -> quality; the dense network's under ``"dense"`` (without agreement and output error).
    """
    sums = {name: _Sums() for name in ("dense", *candidates)}
    norm, kind = 0.0, None
    with torch.no_grad():
        for part in batches(len(dataset)):
            inputs = [x[part] for x in dataset.inputs]
            labels = None if dataset.labels is None else dataset.labels[part].to(dense.device)
            reference = predict(dense, inputs)
            if labels is not None:
                kind = _kind(reference, labels)
            norm += float(reference.double().square().sum())
            _count(sums["dense"], reference, None, labels, kind)
            for name, weights in candidates.items():
                _count(sums[name], predict(dense, inputs, weights), reference, labels, kind)
    return {name: _quality(s, len(dataset), norm, kind, name == "dense") for name, s in sums.items()}


def _kind(output: Tensor, labels: Tensor) -> LossKind | None:
    try:
        return loss_kind(output, labels)
    except DatasetError:
        return None


def _count(sums: _Sums, output: Tensor, reference: Tensor | None, labels: Tensor | None, kind: LossKind | None) -> None:
    if labels is not None and kind is not None:
        losses = sample_losses(kind, output, labels).double()
        sums.loss += float(losses.sum())
        sums.loss_squares += float(losses.square().sum())
        if kind is not LossKind.SQUARED_ERROR:
            counted = labels != IGNORED
            sums.right += int(((predicted_classes(kind, output) == labels) & counted).sum())
            sums.labelled += int(counted.sum())
    if reference is None:
        return
    sums.error += float((output.double() - reference.double()).square().sum())
    guess = kind or LossKind.CLASSES_LAST
    if guess is not LossKind.SQUARED_ERROR and output.dim() >= 2 and output.shape[-1] >= 2:
        same = predicted_classes(guess, output) == predicted_classes(guess, reference)
        sums.agreeing += int(same.sum())
        sums.predictions += same.numel()


def _quality(sums: _Sums, samples: int, norm: float, kind: LossKind | None, dense: bool) -> Quality:
    return Quality(
        samples=samples,
        loss=None if kind is None else sums.loss / samples,
        loss_standard_error=None if kind is None else _standard_error(sums, samples),
        accuracy=sums.right / sums.labelled if sums.labelled else None,
        agreement=None if dense or not sums.predictions else sums.agreeing / sums.predictions,
        output_error=None if dense or norm == 0 else (sums.error / norm) ** 0.5,
    )


def _standard_error(sums: _Sums, samples: int) -> float | None:
    if samples < 2:
        return None
    mean = sums.loss / samples
    error = (max(sums.loss_squares / samples - mean * mean, 0.0) / (samples - 1)) ** 0.5
    return error if math.isfinite(error) else None
