"""How much arithmetic a network does in its prunable layers, and how much of it is by zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.network import Network


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-adds of one sample in the prunable layers.

    Attributes:
        dense: Of all weights: positions · weights of the layer, summed over layers and their uses.
        needed: Of those that are not zero: what a kernel that skips every zero would do.
    """

    dense: int
    needed: int


def macs(network: Network, inputs: Sequence[Tensor]) -> Macs:
    """Count them by running the network once and looking at the shapes of what each layer gives.

    A weight of a linear layer is used once for each row of its input, one of a convolution once for each position of
    its output; both are the numbers of one output channel. Attention's own products, norms and activations are not
    counted: pruning does not change them.

    Args:
        network: The network; layers whose weights are shared count at each use.
        inputs: One batch.
    """
    samples = len(inputs[0])
    weights = {layer.weight: network.weights[layer.weight] for layer in network.layers}
    nonzero = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    dense = needed = 0
    with torch.no_grad():
        state = network.begin(inputs)
        for site in network.sites:
            state, found = network.advance(state, site.node + 1, keep=[site.output])
            weight = weights[site.layer.weight]
            positions = found[site.output].numel() // site.layer.shape[0]
            dense += positions * weight.numel()
            needed += positions * nonzero[site.layer.weight]
    return Macs(dense=dense // samples, needed=needed // samples)
