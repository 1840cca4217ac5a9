"""Uploaded masks: do they fit the network, and what do they leave?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning_core.curvature import Layout
from pruning_core.errors import MaskError
from pruning_core.network import Layer, Network


def masked_layers(network: Network, masks: Mapping[str, Tensor]) -> tuple[Layer, ...]:
    """Return the prunable layers that the masks name, in execution order.

    Args:
        network: Whose weights they are for.
        masks: Weight name -> bool, in the weight's shape, True = kept.

    Raises:
        MaskError: A name is no prunable weight, a shape or dtype differs, or there is none.
    """
    layers = {layer.weight: layer for layer in network.layers}
    if not masks:
        raise MaskError("The mask file is empty.", expected="a bool array for at least one weight")
    for name, mask in masks.items():
        if name not in layers:
            raise MaskError(
                f"The mask names {name!r}, which is no prunable weight of this model.",
                expected=sorted(layers)[:50],
                received=name,
                advice=network.unprunable.get(name),
            )
        if mask.dtype != torch.bool or tuple(mask.shape) != layers[name].shape:
            raise MaskError(
                f"The mask of {name!r} does not fit the weight.",
                expected=["bool", *layers[name].shape],
                received=[str(mask.dtype).removeprefix("torch."), *mask.shape],
            )
    return tuple(layer for layer in network.layers if layer.weight in masks)


def flat_mask(layout: Layout, masks: Mapping[str, Tensor]) -> Tensor:
    """Return the masks of a layout's layers as one vector (p,) bool."""
    return torch.cat([masks[name].reshape(-1) for name in layout.names])
