"""The flat vector of prunable weights: which layer lies where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.network import Layer


@dataclass(frozen=True)
class Layout:
    """Layers side by side in one vector of p float32 numbers, in execution order, each in row-major order."""

    layers: tuple[Layer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical weight names, in order."""
        return tuple(layer.weight for layer in self.layers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each layer, in order."""
        return tuple(math.prod(layer.shape) for layer in self.layers)

    @property
    def size(self) -> int:
        """All weights, p."""
        return sum(self.sizes)

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the weights of these layers as one float32 vector of shape (p,)."""
        return torch.cat([weights[name].detach().reshape(-1).float() for name in self.names])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return weight name -> its part of a vector (p,), in the layer's shape; views."""
        parts: Sequence[Tensor] = torch.split(flat, list(self.sizes))
        return {layer.weight: part.view(layer.shape) for layer, part in zip(self.layers, parts, strict=True)}
