"""From what a recipe says of a pattern to the pattern over a network's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pruning_core import recipe
from pruning_core.errors import RecipeError
from pruning_core.patterns.block import Block
from pruning_core.patterns.fixed import Fixed
from pruning_core.patterns.n_of_m import NofM
from pruning_core.patterns.pattern import Pattern
from pruning_core.patterns.unstructured import Unstructured


def build(
    spec: recipe.Pattern, shapes: Sequence[tuple[int, ...]], sparsity: float | None = None, mask: Tensor | None = None
) -> Pattern:
    """Return the pattern that a recipe names, over layers of these shapes.

    Args:
        spec: The recipe's pattern.
        shapes: (out, in/groups, *kernel) of each layer, in the order of the flat vector of p weights.
        sparsity: Fraction of the weights to prune; n:m and an uploaded mask have their own.
        mask: The uploaded mask, (p,) bool, for a pattern of type ``'mask'``.

    Raises:
        RecipeError: Sparsity or mask is missing, does not fit, or cannot be reached.
    """
    layers = tuple(tuple(shape) for shape in shapes)
    sizes = tuple(math.prod(shape) for shape in layers)
    if isinstance(spec, recipe.NofM):
        return NofM(layers, spec.n, spec.m)
    if isinstance(spec, recipe.Mask):
        if mask is None or mask.shape != (sum(sizes),):
            raise RecipeError(
                "The pattern 'mask' needs a mask over the layers that take part.",
                expected=[sum(sizes)],
                received=None if mask is None else list(mask.shape),
                advice="Upload a mask made for this model, and name it in the job.",
            )
        return Fixed(mask)
    if sparsity is None:
        raise RecipeError(
            f"The pattern {spec.type!r} needs a sparsity.", expected="0 <= sparsity < 1", advice="Give 'sparsity'."
        )
    if isinstance(spec, recipe.Block):
        return Block.of(layers, spec.shape, sparsity, scope=spec.scope)
    return Unstructured.of(sizes, sparsity, scope=spec.scope, max_layer_sparsity=spec.max_layer_sparsity)
