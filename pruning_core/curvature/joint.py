"""The match of a whole network to the dense one, at its output and on the way, over all weights at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import jvp

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
        batch: Samples in a chunk; of a network with a fixed batch size as many batches as fit, at least one.
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
        self._parts = list(input_chunks(network, data, batch))
        self._output_weight = output_weight
        self._dense: list[Values] | None = None
        self._scales: tuple[float, ...] = ()
        each = max(1, batch // len(self._parts[0][0]))
        self._chunks = [range(i, min(i + each, len(self._parts))) for i in range(0, len(self._parts), each)]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self._chunks)

    def size(self, chunk: int) -> int:
        """Return the samples of a chunk."""
        return sum(len(self._parts[part][0]) for part in self._chunks[chunk])

    def prepare(self) -> Generator[int, None, None]:
        """Run the dense network once for the scales, and keep its activations where they fit; yields chunks done."""
        squares = [0.0] * len(self._blocks)
        kept: list[Values] | None = []
        total = total_square = 0.0
        count = samples = 0
        for chunk in range(len(self)):
            for part in self._chunks[chunk]:
                with torch.no_grad():
                    values = self._values({}, part)
                for i, value in enumerate(values[:-1]):
                    squares[i] += float(value.double().square().sum())
                output = values[-1].double()
                total, total_square = total + float(output.sum()), total_square + float(output.square().sum())
                count += output.numel()
                if part == 0 and self._too_large(values):
                    kept = None
                if kept is not None:
                    kept.append(values)
            samples += self.size(chunk)
            yield chunk + 1
        variance = total_square - total * total / max(1, count)
        blocks = max(1, len(self._blocks))
        self._scales = (
            *(_root(samples, blocks * square) for square in squares),
            _root(self._output_weight * samples, variance),
        )
        self._dense = kept

    def value(self, w: Tensor, chunk: int) -> float:
        """Return ½·‖r‖² per sample of a chunk."""
        weights = self._layout.split(w)
        with torch.no_grad():
            squares = [_square(self._residual(weights, part, self._targets(part))) for part in self._chunks[chunk]]
        return sum(squares) / (2 * self.size(chunk))

    def gradient(self, w: Tensor, chunk: int) -> tuple[float, Tensor]:
        """Return the value and its gradient Jᵀr per sample, (p,)."""
        total, gradient = 0.0, torch.zeros_like(w)
        for part in self._chunks[chunk]:
            with torch.enable_grad():
                leaves, residual = self._tracked(w, part)
                loss = sum((r.square().sum() for r in residual), torch.zeros((), device=w.device)) / 2
            gradient += self._pulled(loss, leaves, w)
            total += float(loss.detach())
        return total / self.size(chunk), gradient / self.size(chunk)

    def transposed(self, w: Tensor, chunk: int, generator: torch.Generator) -> Tensor:
        """Return Jᵀu / √samples for random signs u, (p,): its squares have the Gauss-Newton diagonal as their mean."""
        pulled = torch.zeros_like(w)
        for part in self._chunks[chunk]:
            with torch.enable_grad():
                leaves, residual = self._tracked(w, part)
                signs = [torch.randint(0, 2, r.shape, generator=generator).mul_(2).sub_(1).to(r) for r in residual]
                mixed = [(r * u).sum() for r, u in zip(residual, signs, strict=True)]
                pulled += self._pulled(sum(mixed, torch.zeros((), device=w.device)), leaves, w)
        return pulled / math.sqrt(self.size(chunk))

    def curvature(self, w: Tensor, d: Tensor, chunk: int) -> float:
        """Return dᵀGd = ‖J·d‖² per sample, G the Gauss-Newton matrix."""
        return sum(_square(self._pushed(w, d, part)) for part in self._chunks[chunk]) / self.size(chunk)

    def _tracked(self, w: Tensor, part: int) -> tuple[dict[str, Tensor], Values]:
        """Return leaves by name, and the residual that depends on them."""
        leaves = {name: flat.detach().requires_grad_() for name, flat in self._layout.split(w).items()}
        return leaves, self._residual(leaves, part, self._targets(part))

    def _pulled(self, scalar: Tensor, leaves: Mapping[str, Tensor], w: Tensor) -> Tensor:
        """Return the gradient of a scalar as one vector; zero where the network does not use a weight."""
        names = [layer.weight for layer in self._layout.layers]
        parts = torch.autograd.grad(scalar, [leaves[name] for name in names], allow_unused=True)
        sized = zip(parts, self._layout.sizes, strict=True)
        return torch.cat([w.new_zeros(n) if part is None else part.reshape(-1).to(w.dtype) for part, n in sized])

    def _pushed(self, w: Tensor, d: Tensor, part: int) -> Values:
        """Return J·d."""
        targets = self._targets(part)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch 2.13 about itself, at the first use
            tangent: Values = jvp(lambda flat: self._residual(self._layout.split(flat), part, targets), (w,), (d,))[1]
        return tangent

    def _targets(self, part: int) -> Values:
        if self._dense is not None:
            return self._dense[part]
        with torch.no_grad():
            return self._values({}, part)

    def _residual(self, weights: Mapping[str, Tensor], part: int, targets: Values) -> Values:
        dense = self._network.weights
        values = self._values({name: weight.to(dense[name].dtype) for name, weight in weights.items()}, part)
        return tuple((v - t) * scale for v, t, scale in zip(values, targets, self._scales, strict=True))

    def _values(self, weights: Mapping[str, Tensor], part: int) -> Values:
        network = self._network
        state, found = network.advance(
            network.begin(self._parts[part]), network.length, weights, keep=set(self._blocks)
        )
        values = (*(found[name] for name in self._blocks), network.outputs(state, weights)[0])
        return tuple(value.to(torch.promote_types(value.dtype, torch.float32)) for value in values)

    def _too_large(self, values: Values) -> bool:
        needed = len(self._parts) * sum(v.numel() * v.element_size() for v in values)
        return needed > CACHE_SHARE * available_bytes(self._network.device)


def _square(residual: Values) -> float:
    return sum(float(r.square().sum(dtype=torch.float64)) for r in residual)


def _root(numerator: float, denominator: float) -> float:
    return math.sqrt(numerator / denominator) if denominator > 0 else 0.0
