"""Small layer problems with correlated inputs, and plain float64 references for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pruning_core.algorithms.layerwise import LayerProblem
from pruning_core.curvature.layer_inputs import LayerGram
from pruning_core.network import Layer
from pruning_core.patterns import Block, Fixed, NofM, Pattern, Unstructured

DAMPING = 0.01
#: (out, in/groups, *kernel) and groups: linear, convolution, grouped and depthwise convolution.
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "linear": ((8, 18), 1),
    "conv": ((8, 6, 3), 1),
    "grouped": ((8, 6, 2), 2),
    "depthwise": ((6, 1, 3, 3), 6),
}


def problem(shape: tuple[int, ...], pattern: Pattern, *, groups: int = 1, seed: int = 0) -> LayerProblem:
    """Random weights; non-negative inputs of different scales that share a few directions, one of them always zero."""
    generator = torch.Generator().manual_seed(seed)
    d = math.prod(shape[1:])
    mix = torch.randn(groups, d, d, generator=generator) / d**0.5
    mix += torch.randn(groups, d, 2, generator=generator) @ torch.randn(groups, 2, d, generator=generator) / 2
    x = torch.relu(torch.randn(groups, 3 * d, d, generator=generator) @ mix)
    x = x * (torch.rand(groups, 1, d, generator=generator) + 0.2)
    x[:, :, 1] = 0
    layer = Layer(
        name="fc",
        kind="linear" if len(shape) == 2 else "conv",
        weight="fc.weight",
        shape=shape,
        groups=groups,
    )
    return LayerProblem(
        index=0,
        layer=layer,
        gram=LayerGram(H=x.mT @ x / (3 * d), positions=3 * d),
        weights=torch.randn(shape[0], d, generator=generator),
        pattern=pattern,
    )


def patterns(shape: tuple[int, ...]) -> list[Pattern]:
    """Every type of pattern over one layer."""
    size = math.prod(shape)
    mask = torch.rand(size, generator=torch.Generator().manual_seed(9)) < 0.6
    return [
        Unstructured((size,), (size // 2,)),
        Unstructured((size,), (size // 10,)),
        Unstructured((size,), (0,)),
        NofM((shape,), 2, 4),
        NofM((shape,), 1, 2),
        NofM((shape,), 1, 5),
        Block.of((shape,), (4, 1), 0.5),
        Block.of((shape,), (2, 2), 0.6),
        Block.of((shape,), (3, 1), 0.6),
        Fixed(mask),
    ]


CASES = [(shape, groups, pattern) for shape, groups in SHAPES.values() for pattern in patterns(shape)]


def case_id(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return type(value).__name__ if not isinstance(value, int) else str(value)


def row_grams(one: LayerProblem) -> Tensor:
    """The damped Gram of every output row, (out, d, d) float64."""
    H = one.damped(DAMPING)
    return H.repeat_interleave(len(one.weights) // len(H), 0)


def refit_row(H: Tensor, w: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """The best weights on these columns, by a dense solve, and ½(v - w)ᵀH(v - w)."""
    v = torch.zeros_like(w)
    if bool(kept.any()):
        v[kept] = torch.linalg.solve(H[kept][:, kept], (H @ w)[kept])
    return v, 0.5 * float((v - w) @ H @ (v - w))


def damped_error(one: LayerProblem, weights: Tensor) -> float:
    """½·tr (W - W̄) H (W - W̄)ᵀ with the damped H."""
    change = (weights - one.weights).double()
    return 0.5 * float(torch.einsum("oi,oij,oj->", change, row_grams(one), change))
