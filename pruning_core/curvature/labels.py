"""Which labels the Fisher is taken with: the dataset's, or the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pruning_core.curvature.losses import LossKind, check_classes, loss_kind
from pruning_core.curvature.predict import Samples, batches, predict
from pruning_core.errors import DatasetError
from pruning_core.network import Network

Source = Literal["auto", "sampled", "model"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels (N, ...), how they are compared with outputs, and where they came from in plain words."""

    values: Tensor
    kind: LossKind
    origin: str


def resolve_labels(network: Network, data: Samples, source: Source, seed: int) -> Labels:
    """Return the labels for gradients at the given weights.

    ``'auto'`` takes the dataset's labels where it has any, else samples them from the model's softmax (the true
    Fisher); ``'sampled'`` always samples; ``'model'`` takes the model's most likely class.

    Args:
        network: The network at the weights w̄.
        data: N samples.
        source: See above.
        seed: Seeds the sampling; the draws do not depend on the device.

    Raises:
        DatasetError: Labels are needed and there are none, or they do not fit the model.
    """
    with torch.no_grad():
        if source == "auto" and data.labels is not None:
            output = predict(network, [x[:1] for x in data.inputs])
            kind = loss_kind(output, data.labels[:1])
            check_classes(kind, output, data.labels)
            return Labels(values=data.labels, kind=kind, origin="labels of the dataset")
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for part in batches(len(data)):
            output = predict(network, [x[part] for x in data.inputs])
            if output.dim() not in (2, 3) or output.shape[-1] < 2 or not output.dtype.is_floating_point:
                raise DatasetError(
                    "The calibration data has no labels, and the model does not look like a classifier.",
                    expected="an output of shape (N, classes) or (N, tokens, classes), or labels in the dataset",
                    received=[str(output.dtype), *output.shape],
                    advice="Add an array 'y' to the calibration data: class numbers, or float targets.",
                )
            parts.append(_argmax(output) if source == "model" else _draw(output, generator))
    origin = "the model's most likely classes" if source == "model" else "drawn from the model's own softmax"
    return Labels(values=torch.cat(parts), kind=LossKind.CLASSES_LAST, origin=origin)


def _argmax(output: Tensor) -> Tensor:
    return output.argmax(-1).cpu()


def _draw(output: Tensor, generator: torch.Generator) -> Tensor:
    # Inverse of the distribution function, in float64 on the CPU: the same draws on every device.
    ladder = torch.softmax(output.double().cpu(), -1).cumsum(-1)
    u = torch.rand(output.shape[:-1], generator=generator, dtype=torch.float64).unsqueeze(-1)
    return torch.searchsorted(ladder, u * ladder[..., -1:]).squeeze(-1).clamp(max=output.shape[-1] - 1)
