"""Each layer as it came out: zeros, what it lost, how much the network minds, and how its weights are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning_core.curvature.predict import Samples
from pruning_core.evaluate import compare
from pruning_core.holdout import drawn
from pruning_core.network import Layer, Network
from pruning_core.report import Histogram, LayerReport

#: Odd, so that one bin has zero in its middle.
BINS = 25
#: Sensitivities cost one forward pass for each layer: on so many samples at most,
_SAMPLES = 32
#: over all layers and levels no more sample passes than this,
_PASSES = 4096
#: and none at all where that leaves fewer samples for a layer.
_FEWEST = 4


def portraits(
    layers: Sequence[Layer], dense: Network, produced: Network, sensitivities: Mapping[str, float]
) -> tuple[LayerReport, ...]:
    """Return what is known of each layer.

    Args:
        layers: Those that took part.
        dense: The network as given,
        produced: and as it came out.
        sensitivities: Layer name -> `sensitivities`, as far as they were measured.
    """
    return tuple(
        _portrait(layer, dense.weights[layer.weight], produced.weights[layer.weight], sensitivities.get(layer.name))
        for layer in layers
    )


def sensitivities(
    layers: Sequence[Layer], network: Network, updates: Mapping[str, Tensor], held_out: Samples, seed: int, levels: int
) -> dict[str, float]:
    """Return by layer the output error, ‖f(x) - f_dense(x)‖ / ‖f_dense(x)‖, when only that layer is as pruned.

    Measured on a few held-out samples, so that it costs less than the evaluation it belongs to; empty where the
    layers are too many for that.

    Args:
        layers: Those that took part.
        network: The dense one, where the work is done.
        updates: Weight name -> as pruned.
        held_out: Where the samples are drawn from.
        seed: Of the draw.
        levels: How many levels share the cost.
    """
    count = min(_SAMPLES, _PASSES // (len(layers) * levels))
    if count < _FEWEST:
        return {}
    alone = {str(i): {layer.weight: updates[layer.weight]} for i, layer in enumerate(layers)}
    found = compare(network, alone, drawn(held_out, count, seed))
    errors = {layer.name: found[str(i)].output_error for i, layer in enumerate(layers)}
    return {name: error for name, error in errors.items() if error is not None}


def histogram(dense: Tensor, pruned: Tensor) -> Histogram | None:
    """Count the weights of a layer before and after in `BINS` bins of the same width; None where all are zero.

    >>> histogram(torch.tensor([-1.0, 0.1, 1.0]), torch.tensor([-1.0, 0.0, 1.0])).pruned[12]
    0
    """
    before, after = dense.detach().float().reshape(-1), pruned.detach().float().reshape(-1)
    limit = float(max(before.abs().max(), after.abs().max()))
    if not 0 < limit < float("inf"):
        return None

    def counted(weights: Tensor) -> tuple[int, ...]:
        counts = torch.histc(weights, BINS, -limit, limit)
        return tuple(int(count) for count in counts)

    return Histogram(limit=limit, dense=counted(before), pruned=counted(after[after != 0]))


def _portrait(layer: Layer, before: Tensor, after: Tensor, sensitivity: float | None) -> LayerReport:
    zeros = int((after == 0).sum())
    energy = float(before.double().square().sum())
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        weights=after.numel(),
        zeros=zeros,
        sparsity=zeros / after.numel(),
        change=float((before.double() - after.double()).square().sum()) / energy if energy else None,
        sensitivity=sensitivity,
        histogram=histogram(before, after),
    )
