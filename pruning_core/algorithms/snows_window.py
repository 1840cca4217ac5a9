"""One layer of SNOWS: how well a window of operations matches its targets, and Gauss-Newton steps on that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.curvature.layer_inputs import GramSum, layer_patches, layer_targets
from pruning_core.network import Linearised, Network, Site, State, Window
from pruning_core.solvers import SupportFactors
from pruning_core.solvers.gauss_newton import Searched, backtrack
from pruning_core.solvers.newton_cg import newton_cg


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some samples at a layer: the state before it in the pruned network, and the targets of its window's outputs."""

    state: State
    targets: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Normal:
    """The normal equations of K = 0: H = XᵀX/n (groups, d, d) and B = (T_0 - bias)ᵀX/n (out, d)."""

    H: Tensor
    B: Tensor


class WindowFit:
    """L(W) = Σ_k (1/|Y_k|)·‖Y_k(W; X) - T_k‖² over the outputs Y_0, ..., Y_K of a window, for one layer's weight W.

    A sum over chunks of samples. All other weights of the window are the network's own.

    Args:
        network: The dense network.
        site: The layer; ``site.alone`` must hold.
        window: Of the site.
        chunks: The samples.
        cache_bytes: Linearised chunks are kept for the products of a Newton step up to this size; beyond it they are
            made again for each product.
    """

    def __init__(
        self, network: Network, site: Site, window: Window, chunks: Sequence[Chunk], *, cache_bytes: int = 2**30
    ) -> None:
        self.network, self.site, self.window, self.chunks = network, site, window, chunks
        self._name = site.layer.weight
        self._dtype = network.weights[self._name].dtype
        self._cache_bytes = cache_bytes
        counts = [sum(chunk.targets[k].numel() for chunk in chunks) for k in range(len(window.outputs))]
        self.scales = tuple(1 / max(1, count) for count in counts)

    @property
    def positions(self) -> int:
        """Places where the layer is applied, over all samples."""
        return sum(chunk.targets[0].numel() for chunk in self.chunks) // self.site.layer.shape[0]

    def objective(self, weight: Tensor) -> float:
        """Return L at a weight."""
        total = 0.0
        with torch.no_grad():
            for chunk in self.chunks:
                overrides = {self._name: weight.to(self._dtype)}
                _, found = self.network.advance(chunk.state, self.window.stop, overrides, keep=self.window.outputs)
                total += self._loss([found[name] for name in self.window.outputs], chunk)
        return total

    def linearise(self, weight: Tensor) -> LinearisedFit:
        """Return L's value, gradient and Gauss-Newton products at a weight."""
        return LinearisedFit(self, weight, self._cache_bytes)

    def linearised(self, chunk: Chunk, weight: Tensor) -> Linearised:
        """Return the window of one chunk as a linear map of the weight."""
        return self.network.linearise(chunk.state, self.window, self._name, weight.to(self._dtype))

    def _loss(self, values: Sequence[Tensor], chunk: Chunk) -> float:
        return sum(
            scale * _squared(value - target)
            for scale, value, target in zip(self.scales, values, chunk.targets, strict=True)
        )


class LinearisedFit:
    """A `WindowFit` around one weight, linearised once.

    Attributes:
        objective: L.
        gradient: ∇L = 2·Σ_k Jᵀ_k(Y_k - T_k)/|Y_k|, in the weight's shape.
    """

    def __init__(self, fit: WindowFit, weight: Tensor, cache_bytes: int) -> None:
        self._fit, self._weight = fit, weight
        self._kept: list[Linearised] = []
        self.objective, gradient = 0.0, torch.zeros_like(weight)
        left = cache_bytes
        for chunk in fit.chunks:
            linear = fit.linearised(chunk, weight)
            residuals = [value - target for value, target in zip(linear.values, chunk.targets, strict=True)]
            self.objective += sum(s * _squared(r) for s, r in zip(fit.scales, residuals, strict=True))
            gradient += self._pull(linear, residuals)
            left -= linear.bytes
            if left >= 0:
                self._kept.append(linear)
        self.gradient = gradient

    def product(self, v: Tensor) -> Tensor:
        """Return 2·Σ_k JᵀJ·v/|Y_k|: the Gauss-Newton matrix, which for ReLU and batch norm is the exact Hessian."""
        total = torch.zeros_like(self._weight)
        tangent = v.to(self._fit.network.weights[self._fit.site.layer.weight].dtype)
        for linear in self._maps():
            total += self._pull(linear, linear.push(tangent))
        return total

    def _pull(self, linear: Linearised, cotangents: Sequence[Tensor]) -> Tensor:
        """Return 2·Σ_k Jᵀ_k·u_k/|Y_k|; 1/|Y_0| comes last, or a half-precision network would see zeros."""
        first = self._fit.scales[0]
        return 2 * first * linear.pull([s / first * u for s, u in zip(self._fit.scales, cotangents, strict=True)])

    def channel_curvature(self, generator: torch.Generator) -> Tensor:
        """Estimate, for each output channel, the mean of 2·Σ_k (∂Y_k/∂Y_0)²·/|Y_k| over the elements of Y_0: (out,).

        One random probe of ±1 on the first chunk. The Gauss-Newton block of a channel is about this times its XᵀX.
        """
        linear = next(self._maps())
        first = self._fit.scales[0]
        probes = [
            (s / first) ** 0.5 * (torch.randint(0, 2, t.shape, generator=generator) * 2 - 1).to(t)
            for s, t in zip(self._fit.scales, linear.values, strict=True)
        ]
        squares = 2 * first * _wide(linear.pull(probes, to_output=True)).square()
        axis = -1 if self._fit.site.layer.kind == "linear" else squares.dim() - 1 - len(self._fit.site.stride)
        return squares.movedim(axis, 0).flatten(1).mean(1)

    def _maps(self) -> Iterator[Linearised]:
        yield from self._kept
        for chunk in self._fit.chunks[len(self._kept) :]:
            yield self._fit.linearised(chunk, self._weight)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _squared(x: Tensor) -> float:
    return float(_wide(x).square().sum())


def newton_step(
    fit: WindowFit,
    judge: WindowFit,
    weight: Tensor,
    mask: Tensor,
    factors: SupportFactors,
    *,
    at_start: float,
    cg_steps: int,
    tolerance: float,
    generator: torch.Generator,
) -> Searched:
    """Take one Gauss-Newton step on one layer's support, with a line search on other samples.

    CG is preconditioned by the layer's Gram on each channel's support, times the channel's downstream curvature.

    Args:
        fit: What to minimise.
        judge: What the line search looks at.
        weight: Where to begin; zero off the mask.
        mask: The support, in the weight's shape.
        factors: Of H_SS, rows being output channels.
        at_start: The judge's objective at ``weight``.
        cg_steps: Products at most.
        tolerance: Relative residual at which CG ends.
        generator: Of the probe that estimates the curvature.

    Returns:
        The new weight and the judge's objective there; the old ones where no step lowers it.
    """
    linear = fit.linearise(weight)
    curvature = linear.channel_curvature(generator).clamp_min(torch.finfo(torch.float32).tiny)
    scale = curvature.to(weight.dtype)[:, None] * fit.positions

    def precondition(residual: Tensor) -> Tensor:
        return (factors.solve(residual.reshape(len(mask), -1)) / scale).view_as(residual)

    found = newton_cg(
        lambda v: linear.product(v) * mask,
        -linear.gradient * mask,
        precondition,
        steps=cg_steps,
        tolerance=tolerance,
    )
    return backtrack(judge.objective, weight, found.value, at_start=at_start)


def normal_equations(
    network: Network, site: Site, chunks: Sequence[Chunk], *, positions: int, generator: torch.Generator
) -> Normal:
    """Return the normal equations of Y_0 = T_0 over the chunks.

    Args:
        network: The dense network, for the bias.
        site: The layer.
        chunks: Samples with the target T_0 first.
        positions: About so many places are enough: of a convolution on large maps only every second, third, ... place
            along each axis is taken, from a random one on.
        generator: Of these.
    """
    total, cross = GramSum(), torch.zeros(())
    channels = site.layer.shape[0]
    places = sum(chunk.targets[0].numel() for chunk in chunks) // channels
    dimensions = max(1, len(site.stride))
    every = max(1, int((places / positions) ** (1 / dimensions) + 0.5)) if site.layer.kind == "conv" else 1
    for number, chunk in enumerate(chunks):
        offset = int(torch.randint(every, (), generator=generator))
        target = chunk.targets[0] if site.bias is None else chunk.targets[0] - _bias(network, site, chunk)
        patches = layer_patches(site, chunk.state.values[site.input], every, offset)
        columns = layer_targets(site, target, every, offset)
        moment = (columns @ patches.permute(1, 0, 2)).flatten(0, 1)
        cross = cross + moment if number else moment
        total.add(patches)
    gram = total.gram()
    return Normal(H=gram.H, B=cross / gram.positions)


def _bias(network: Network, site: Site, chunk: Chunk) -> Tensor:
    """Return what the layer gives for a weight of zeros."""
    zeros = {site.layer.weight: torch.zeros_like(network.weights[site.layer.weight])}
    _, found = network.advance(chunk.state, site.node + 1, zeros, keep=(site.output,))
    return found[site.output]
