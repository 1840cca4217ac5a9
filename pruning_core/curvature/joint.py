"""The match of a whole network to the dense one, at its output and on the way, over all weights at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vjp

from pruning_core.curvature.layer_inputs import input_chunks
from pruning_core.curvature.layout import Layout
from pruning_core.curvature.memory import available_bytes
from pruning_core.curvature.predict import Samples
from pruning_core.network import Network

#: The part of what is free that the dense activations may take; else they are computed again each time.
CACHE_SHARE = 0.3

Values = tuple[Tensor, ...]


class JointMatch:
    """½·‖r(w)‖² per sample over chunks of samples, r the scaled differences from the dense network.

    r holds, for each of b blocks, (A(w) - A) / √(b·E‖A‖²), and for the output (L(w) - L)·√(ω / (E‖L - L̄‖²)):
    a mean of relative errors of the blocks' activations A, and ω times that of the output L (its mean L̄, over
    all elements, taken out). E is over samples. In exact arithmetic r = 0 at the dense weights.

    Args:
        network: The dense network.
        data: The samples.
        layout: Where w, (p,), goes.
        blocks: Names of the values to match.
        batch: Samples in a chunk; a network with a fixed batch size takes its own.
        output_weight: ω.
    """

    def __init__(
        self,
        network: Network,
        data: Samples,
        layout: Layout,
        blocks: Sequence[str],
        *,
        batch: int,
        output_weight: float,
    ) -> None:
        self._network, self._layout, self._blocks = network, layout, tuple(blocks)
        self._chunks = list(input_chunks(network, data, batch))
        self._output_weight = output_weight
        self._dense: list[Values] | None = None
        self._scales: tuple[float, ...] = ()

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self._chunks)

    def size(self, chunk: int) -> int:
        """Return the samples of a chunk."""
        return len(self._chunks[chunk][0])

    def prepare(self) -> Generator[int, None, None]:
        """Run the dense network once for the scales, and keep its activations where they fit; yields chunks done."""
        squares = [0.0] * len(self._blocks)
        kept: list[Values] | None = []
        total = total_square = 0.0
        count = samples = 0
        for number in range(len(self)):
            with torch.no_grad():
                values = self._values({}, number)
            for i, value in enumerate(values[:-1]):
                squares[i] += float(value.double().square().sum())
            output = values[-1].double()
            total, total_square = total + float(output.sum()), total_square + float(output.square().sum())
            count, samples = count + output.numel(), samples + self.size(number)
            if number == 0 and self._too_large(values):
                kept = None
            if kept is not None:
                kept.append(values)
            yield number + 1
        variance = total_square - total * total / max(1, count)
        blocks = max(1, len(self._blocks))
        self._scales = (
            *(_root(samples, blocks * square) for square in squares),
            _root(self._output_weight * samples, variance),
        )
        self._dense = kept

    def value(self, w: Tensor, chunk: int) -> float:
        """Return ½·‖r‖² per sample of a chunk."""
        with torch.no_grad():
            return self._half_square(self._residual(self._layout.split(w), chunk, self._targets(chunk)), chunk)

    def gradient(self, w: Tensor, chunk: int) -> tuple[float, Tensor]:
        """Return the value and its gradient Jᵀr per sample, (p,)."""
        leaves = {name: part.detach().requires_grad_() for name, part in self._layout.split(w).items()}
        residual = self._residual(leaves, chunk, self._targets(chunk))
        loss = sum((r.square().sum() for r in residual), torch.zeros((), device=w.device)) / (2 * self.size(chunk))
        parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return float(loss.detach()), self._flat(dict(zip(leaves, parts, strict=True)), w)

    def transposed(self, w: Tensor, chunk: int, generator: torch.Generator) -> Tensor:
        """Return Jᵀu / √samples for random signs u, (p,): its squares have the Gauss-Newton diagonal as their mean."""
        targets = self._targets(chunk)
        leaves = {name: part.detach().requires_grad_() for name, part in self._layout.split(w).items()}
        residual = self._residual(leaves, chunk, targets)
        signs = [torch.randint(0, 2, r.shape, generator=generator).mul_(2).sub_(1).to(r) for r in residual]
        mixed = sum(((r * u).sum() for r, u in zip(residual, signs, strict=True)), torch.zeros((), device=w.device))
        parts = torch.autograd.grad(mixed, list(leaves.values()), allow_unused=True)
        return self._flat(dict(zip(leaves, parts, strict=True)), w) / math.sqrt(self.size(chunk))

    def curvature(self, w: Tensor, d: Tensor, chunk: int) -> float:
        """Return dᵀGd = ‖J·d‖² per sample, G the Gauss-Newton matrix."""
        return 2 * self._half_square(self._forward(w, d, chunk), chunk)

    def product(self, w: Tensor, d: Tensor, chunk: int) -> Tensor:
        """Return G·d = JᵀJ·d per sample, (p,)."""
        tangent = self._forward(w, d, chunk)
        targets = self._targets(chunk)
        pull = vjp(lambda flat: self._residual(self._layout.split(flat), chunk, targets), w)[1]
        result: Tensor = pull(tangent)[0] / self.size(chunk)
        return result

    def _forward(self, w: Tensor, d: Tensor, chunk: int) -> Values:
        targets = self._targets(chunk)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch 2.13 about itself, at the first use
            tangent: Values = jvp(lambda flat: self._residual(self._layout.split(flat), chunk, targets), (w,), (d,))[1]
        return tangent

    def _targets(self, chunk: int) -> Values:
        if self._dense is not None:
            return self._dense[chunk]
        with torch.no_grad():
            return self._values({}, chunk)

    def _residual(self, weights: Mapping[str, Tensor], chunk: int, targets: Values) -> Values:
        dense = self._network.weights
        values = self._values({name: part.to(dense[name].dtype) for name, part in weights.items()}, chunk)
        return tuple((v - t) * scale for v, t, scale in zip(values, targets, self._scales, strict=True))

    def _values(self, weights: Mapping[str, Tensor], chunk: int) -> Values:
        network = self._network
        state, found = network.advance(
            network.begin(self._chunks[chunk]), network.length, weights, keep=set(self._blocks)
        )
        return (*(found[name] for name in self._blocks), network.outputs(state, weights)[0])

    def _half_square(self, residual: Values, chunk: int) -> float:
        return sum(float(r.square().sum(dtype=torch.float64)) for r in residual) / (2 * self.size(chunk))

    def _flat(self, parts: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
        """Return the gradients by name as one vector; zero where the network does not use a weight."""
        layers = zip(self._layout.layers, self._layout.sizes, strict=True)
        return torch.cat([_or_zeros(parts[layer.weight], size, like) for layer, size in layers])

    def _too_large(self, values: Values) -> bool:
        needed = len(self) * sum(v.numel() * v.element_size() for v in values)
        return needed > CACHE_SHARE * available_bytes(self._network.device)


def _or_zeros(part: Tensor | None, size: int, like: Tensor) -> Tensor:
    return like.new_zeros(size) if part is None else part.reshape(-1).to(like.dtype)


def _root(numerator: float, denominator: float) -> float:
    return math.sqrt(numerator / denominator) if denominator > 0 else 0.0
