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

Source = Literal["auto", "sampled", "model", "output"]

#: An output of so many values or more whose softmax gives its favourite less than this on average is no classifier's.
MANY_CLASSES, FLAT = 100, 0.1


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels (N, ...), how they are compared with outputs, and where they came from in plain words."""

    values: Tensor
    kind: LossKind
    origin: str


def resolve_labels(network: Network, data: Samples, source: Source, seed: int) -> Labels:
    """Return the labels for gradients at the given weights.

    ``'auto'`` takes the dataset's labels where it has any; else it samples them from the model's softmax (the true
    Fisher), or takes ``'output'`` for a model that does not look like a classifier. ``'sampled'`` always samples;
    ``'model'`` takes the model's most likely class.

    ``'output'`` is for reconstructing the model's own outputs f̄ = f(w̄): the loss ‖f(w) - f̄‖²/(2o) over o outputs has
    no gradient at w̄, and the Hessian JᵀJ/o there, J being the Jacobian (o, p). Rows zᵀJ/√o with random signs z have
    E[zzᵀ] = I, so that the mean of their outer products is an unbiased estimate of it; signs because among such z
    they vary least. So the labels are signs, (N, outputs...) int8, and the rows are gradients of zᵀf/√o.

    Args:
        network: The network at the weights w̄.
        data: N samples.
        source: See above.
        seed: Seeds the sampling; the draws do not depend on the device.

    Raises:
        DatasetError: Classes are asked for and the model has none, or labels do not fit the model.
    """
    with torch.no_grad():
        first = predict(network, [x[:1] for x in data.inputs])
        if source == "auto" and data.labels is not None:
            kind = loss_kind(first, data.labels[:1])
            check_classes(kind, first, data.labels)
            return Labels(values=data.labels, kind=kind, origin="labels of the dataset")
        if source == "output" or (source == "auto" and not _has_classes(first)):
            return _signs(first, len(data), seed)
        if not _has_classes(first):
            raise DatasetError(
                "The model does not look like a classifier, and has no labels of its own to offer.",
                expected="an output of shape (N, classes) or (N, tokens, classes)",
                received=[str(first.dtype), *first.shape],
                advice="Choose labels 'output', which reconstructs the outputs, or 'auto'.",
            )
        generator = torch.Generator().manual_seed(seed)
        parts, favourite = [], 0.0
        for part in batches(len(data)):
            output = predict(network, [x[part] for x in data.inputs])
            parts.append(_argmax(output) if source == "model" else _draw(output, generator))
            favourite += float(torch.softmax(output.float(), -1).amax(-1).mean()) * len(output) / len(data)
    if source == "auto" and first.shape[-1] >= MANY_CLASSES and favourite < FLAT:
        return _signs(first, len(data), seed)
    origin = "the model's most likely classes" if source == "model" else "drawn from the model's own softmax"
    return Labels(values=torch.cat(parts), kind=LossKind.CLASSES_LAST, origin=origin)


def _has_classes(output: Tensor) -> bool:
    return output.dim() in (2, 3) and output.shape[-1] >= 2 and output.dtype.is_floating_point


def _signs(output: Tensor, count: int, seed: int) -> Labels:
    if not output.dtype.is_floating_point:
        raise DatasetError(
            "The model's output is not differentiable.",
            expected="a floating-point output",
            received=[str(output.dtype), *output.shape],
            advice="Export the model so that its first output is its logits or features.",
        )
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, *output.shape[1:]), generator=generator, dtype=torch.int8) * 2 - 1
    return Labels(values=signs, kind=LossKind.RANDOM_SUM, origin="reconstruction of the model's own outputs")


def _argmax(output: Tensor) -> Tensor:
    return output.argmax(-1).cpu()


def _draw(output: Tensor, generator: torch.Generator) -> Tensor:
    # Inverse of the distribution function, in float64 on the CPU: the same draws on every device.
    ladder = torch.softmax(output.double().cpu(), -1).cumsum(-1)
    u = torch.rand(output.shape[:-1], generator=generator, dtype=torch.float64).unsqueeze(-1)
    return torch.searchsorted(ladder, u * ladder[..., -1:]).squeeze(-1).clamp(max=output.shape[-1] - 1)
