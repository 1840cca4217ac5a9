"""The global step of gradual pruning: all survivors together, against the dense network's blocks and output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.curvature import Layout
from pruning_core.curvature.joint import JointMatch
from pruning_core.curvature.memory import capacity_bytes
from pruning_core.network import Network
from pruning_core.network.following import followings
from pruning_core.solvers.global_step import descend
from pruning_core.solvers.layer_least_squares import SupportFactors

#: Relative ridge of the preconditioner's Grams.
RIDGE = 1e-2
#: The least curvature of a channel, as a part of its layer's mean: probes are few and noisy.
LEAST_CURVATURE = 0.1
#: Random probes of the channels' curvature.
PROBES = 2
#: Lengths that are tried, one after another, until held-out data agrees.
SCALES = (1.5, 0.4)
#: The part of what is free that factors of the preconditioner may take; layers beyond it get diagonal ones.
FACTOR_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What the global step came to: weights (p,), and the mean loss on held-out data before and after."""

    weights: Tensor
    start: float
    end: float
    scale: float


def matched_values(network: Network) -> tuple[str, ...]:
    """Return the values to match: what each sum becomes (its activation, if it has one); without sums, each layer."""
    found = followings(network).values()
    sums = [one for one in found if one.residual is not None]
    return tuple(dict.fromkeys(one.activation or one.target for one in (sums or found)))


def global_step(
    match: JointMatch,
    held_out: JointMatch,
    layout: Layout,
    grams: Mapping[str, Tensor],
    weights: Tensor,
    mask: Tensor,
    *,
    steps: int,
    momentum: float,
    seed: int,
) -> Generator[int, None, Joined]:
    """Lower the joint loss over the surviving weights; keep the result if held-out data agrees.

    Args:
        match: The loss on the calibration samples.
        held_out: The same on held-out ones.
        layout: Where the layers are.
        grams: Weight name -> H = XᵀX/rows of the layer's input, (groups, d, d).
        weights: (p,), zero off the mask.
        mask: (p,) bool.
        steps: Chunks of samples to step on.
        momentum: Of the descent.
        seed: Of probes and order.

    Yields:
        Steps done; again from 1 where a first try is thrown away.
    """
    precondition = _preconditioner(match, layout, grams, weights, mask, seed)
    start = _mean(held_out, weights)
    for scale in SCALES:
        descent = yield from descend(
            match, precondition, weights, steps=steps, momentum=momentum, scale=scale, seed=seed
        )
        end = float("nan") if descent.diverged else _mean(held_out, descent.weights)
        if end < start:
            return Joined(weights=descent.weights, start=start, end=end, scale=scale)
        if descent.length == 0.0:
            break
    return Joined(weights=weights, start=start, end=start, scale=0.0)


def _mean(match: JointMatch, weights: Tensor) -> float:
    return sum(match.value(weights, chunk) for chunk in range(len(match))) / max(1, len(match))


def _preconditioner(
    match: JointMatch, layout: Layout, grams: Mapping[str, Tensor], weights: Tensor, mask: Tensor, seed: int
) -> Callable[[Tensor], Tensor]:
    """Return g -> P·g: per output channel o, the inverse of c_o·(H_SS + ε·I) on its support S.

    That is the Gauss-Newton matrix with the layer's input and what lies behind it taken as independent, channel by
    channel. c_o = E[gᵀ(H_SS + ε·I)⁻¹g]/|S| over random probes g = Jᵀu, so that the trace is right.
    """
    masks = {name: part.reshape(part.shape[0], -1) for name, part in layout.split(mask).items()}
    solvers = _solvers(grams, masks)

    def solve(flat: Tensor) -> Iterable[tuple[str, Tensor]]:
        for name, part in layout.split(flat).items():
            matrix = part.reshape(part.shape[0], -1)
            yield name, solvers[name](matrix) if name in solvers else torch.zeros_like(matrix)

    counts = {name: part.sum(1).clamp(min=1) for name, part in masks.items()}
    curvatures = {name: weights.new_zeros(len(part)) for name, part in masks.items()}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PROBES):
        chunk = int(torch.randint(len(match), (1,), generator=generator))
        probe = match.transposed(weights, chunk, generator) * mask
        parts = layout.split(probe)
        for name, solved in solve(probe):
            curvatures[name] += (parts[name].reshape(solved.shape) * solved).sum(1) / counts[name] / PROBES
    inverse = {name: _inverse(c) for name, c in curvatures.items()}

    def precondition(gradient: Tensor) -> Tensor:
        return torch.cat([(solved * inverse[name][:, None]).reshape(-1) for name, solved in solve(gradient * mask)])

    return precondition


def _inverse(curvature: Tensor) -> Tensor:
    floored = curvature + LEAST_CURVATURE * curvature.mean()
    return torch.where(floored > 0, 1 / floored, torch.zeros_like(floored))


def _solvers(grams: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return weight name -> (H_SS + ε·I)⁻¹ for all channels: factors for the cheap layers, diagonals beyond."""
    if not grams:
        return {}
    needed = {name: int(masks[name].sum(1).square().sum()) * grams[name].element_size() for name in grams}
    left = int(FACTOR_SHARE * capacity_bytes(next(iter(grams.values())).device))
    solvers: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in sorted(needed, key=lambda name: (needed[name], name)):
        left -= needed[name]
        solvers[name] = (
            SupportFactors(grams[name], masks[name], RIDGE).solve if left >= 0 else _diagonal(grams[name], masks[name])
        )
    return solvers


def _diagonal(H: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    diagonal = H.diagonal(dim1=1, dim2=2)
    damped = diagonal + RIDGE * diagonal.mean(1, keepdim=True)
    scale = damped.repeat_interleave(len(mask) // len(H), dim=0)
    inverse = torch.where(mask & (scale > 0), 1 / scale, torch.zeros_like(scale))
    return lambda matrix: matrix * inverse.to(matrix.dtype)
