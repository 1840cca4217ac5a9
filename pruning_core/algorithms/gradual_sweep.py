"""Layer by layer: every surviving weight re-fitted to the dense network's activations by least squares."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pruning_core.curvature.layer_inputs import input_chunks, layer_patches
from pruning_core.curvature.memory import check_fits
from pruning_core.curvature.predict import FORWARD_BATCH, Samples
from pruning_core.network import Network, Site, State
from pruning_core.network.following import Following, added_bias, affine, followings
from pruning_core.solvers.layer_least_squares import layer_least_squares

#: Channels whose batch norm scales by less than this part of the largest scale are left as they are.
DEAD = 1e-4


@dataclass(frozen=True)
class Grid:
    """Which places of one layer's output are looked at in one chunk of samples: every step-th from an offset."""

    steps: tuple[int, ...]
    offsets: tuple[int, ...]

    def inputs(self, site: Site, x: Tensor) -> Tensor:
        """Return the rows of the layer's input at these places, (places, groups, d)."""
        if site.layer.kind == "linear":
            return layer_patches(site, x)[self.offsets[0] :: self.steps[0]]
        spatial = len(self.steps)
        x = x.unsqueeze(0) if x.dim() == spatial + 1 else x
        x = functional.pad(x, [side for sides in reversed(site.padding) for side in sides])
        for axis, (offset, stride) in enumerate(zip(self.offsets, site.stride, strict=True), start=2):
            x = x.narrow(axis, offset * stride, x.shape[axis] - offset * stride)
        strides = tuple(stride * step for stride, step in zip(site.stride, self.steps, strict=True))
        return layer_patches(replace(site, stride=strides, padding=((0, 0),) * spatial), x)

    def outputs(self, site: Site, z: Tensor) -> Tensor:
        """Return the values at these places of something that has the shape of the layer's output, (places, out)."""
        z = z if z.dtype == torch.float64 else z.float()
        if site.layer.kind == "linear":
            return z.reshape(-1, z.shape[-1])[self.offsets[0] :: self.steps[0]]
        z = z.unsqueeze(0) if z.dim() == len(self.steps) + 1 else z
        places = tuple(slice(o, None, s) for o, s in zip(self.offsets, self.steps, strict=True))
        return z[:, :, *places].movedim(1, -1).reshape(-1, z.shape[1])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A sweep's result.

    Attributes:
        weights: Weight name -> re-fitted weight, exact zeros off the mask.
        grams: Weight name -> H = XᵀX / rows of the pruned network's inputs, (groups, d, d).
        errors: Weight name -> ‖X·W - Y‖² / ‖Y‖² (before, after) the fit.
    """

    weights: Mapping[str, Tensor]
    grams: Mapping[str, Tensor]
    errors: Mapping[str, tuple[float, float]]


class DenseTargets:
    """The dense network's activations Z behind every layer, at sampled places of every sample; kept in memory.

    Z is what `follow` finds: batch norm and sum included where they belong to the layer. It also says which of
    several kinds of target a layer can have, which depends on shapes: a sum of unequal shapes is none.

    Args:
        network: The dense network.
        data: The samples.
        weights: Names of the weights that are to be fitted.
        positions: Places per sample of one layer that are looked at, about.
        seed: Of the places.
    """

    def __init__(self, network: Network, data: Samples, weights: Sequence[str], positions: int, seed: int) -> None:
        wanted = set(weights)
        self.network = network
        self.sites = tuple(site for site in network.sites if site.layer.weight in wanted)
        self.chunks = list(input_chunks(network, data, FORWARD_BATCH))
        self._followings = dict(followings(network))
        self._positions, self._seed = positions, seed
        self._grids: list[dict[int, Grid]] = []
        self._values: list[dict[int, Tensor]] = []

    def collect(self) -> Generator[int, None, None]:
        """Run the dense network once; yields chunks done.

        Raises:
            LimitExceeded: The activations do not fit into memory.
        """
        for number, chunk in enumerate(self.chunks):
            grids: dict[int, Grid] = {}
            values: dict[int, Tensor] = {}
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
            live = _bytes(chunk)
            with torch.no_grad():
                state = self.network.begin(chunk)
                for site in self.sites:
                    state, _ = self.network.advance(state, site.node)
                    live = max(live, _bytes(state.values.values()))
                    values[site.node], grids[site.node] = self._at(site, state, generator, len(chunk[0]))
            self._values.append(values)
            self._grids.append(grids)
            if number == 0:
                # Beside the targets every chunk's run is held where the sweep is, and one chunk's next step.
                check_fits(
                    len(self.chunks) * (_bytes(values.values()) + live) + live,
                    self.network.device,
                    "The dense activations and the running state do not fit into memory.",
                    "Give fewer samples or fewer positions.",
                )
            yield number + 1

    def following(self, site: Site) -> Following:
        """Return what follows a site, as far as it can be used."""
        return self._followings[site.node]

    def rows(self, chunk: int, site: Site, state: State, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return inputs X (rows, groups, d) of the network run so far, and wanted outputs Y = X·Wᵀ (rows, out).

        Y is the dense target, less what the *pruned* network adds behind the layer, taken back through the affine
        batch norm and the bias.

        Args:
            chunk: Number of the chunk of samples.
            site: The layer.
            state: The pruned network's run, before the layer.
            weights: The pruned network's weights so far.
        """
        grid, following = self._grids[chunk][site.node], self._followings[site.node]
        X = grid.inputs(site, state.values[site.input])
        Y = self._values[chunk][site.node]
        if following.residual is not None:
            stop = max(state.position, following.residual_known)
            _, found = self.network.advance(state, stop, weights, keep=(following.residual,))
            Y = Y - grid.outputs(site, found[following.residual])
        norm = affine(self.network, following)
        if norm is not None:
            scale, shift = (part.to(Y.dtype) for part in norm)
            Y = (Y - shift) / torch.where(self.live(site), scale, torch.ones_like(scale))
        bias = added_bias(self.network, site, state.values)
        if bias is not None:
            Y = Y - bias.to(Y.dtype)
        return X, Y

    def live(self, site: Site) -> Tensor:
        """Return which output channels have an effect, (out,) bool."""
        norm = affine(self.network, self._followings[site.node])
        if norm is None:
            return torch.ones(site.layer.shape[0], dtype=torch.bool, device=self.network.device)
        size = norm[0].abs()
        return size > DEAD * size.max()

    def _at(self, site: Site, state: State, generator: torch.Generator, samples: int) -> tuple[Tensor, Grid]:
        following = self._followings[site.node]
        names = {site.output, following.target, *([following.residual] if following.residual else [])}
        stop = max(following.known, following.residual_known)
        _, found = self.network.advance(state, stop, keep=names)
        own, target = found[site.output], found[following.target]
        same = own.shape == target.shape and (
            following.residual is None or found[following.residual].shape == target.shape
        )
        # Batch norm acts on dimension 1, which for a linear layer's output is the channel only without positions.
        if not same or (following.norm is not None and site.layer.kind == "linear" and own.dim() != 2):
            self._followings[site.node] = Following(target=site.output, known=site.node + 1)
            target = own
        grid = _grid(site, own, self._positions, generator, samples)
        return grid.outputs(site, target).clone(), grid


def sweep(
    targets: DenseTargets, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], ridge: float
) -> Generator[int, None, Fitted]:
    """Fit every layer in execution order, on the inputs that the layers fitted before give it.

    For each output channel o with support S: min over w of ‖X_S·w - Y_o‖²/rows + ε·‖w - w⁰_S‖², with ε = ridge ·
    mean diagonal of XᵀX/rows and w⁰ the weights given: the fit never gets worse than they are, pruned.
    A weight with several uses is fitted to all of them once the last is reached.

    Args:
        targets: What to fit to.
        weights: Weight name -> weights so far; what the mask prunes is ignored.
        masks: Weight name -> bool, the supports.
        ridge: Relative strength of the pull towards the weights given.

    Yields:
        Layers done.
    """
    network = targets.network
    now = {name: (weights[name] * masks[name]).to(network.weights[name].dtype) for name in weights}
    states = [network.begin(chunk) for chunk in targets.chunks]
    last = {site.layer.weight: site.node for site in targets.sites}
    sums: dict[str, _Sums] = {}
    grams: dict[str, Tensor] = {}
    errors: dict[str, tuple[float, float]] = {}
    for done, site in enumerate(targets.sites, start=1):
        name = site.layer.weight
        total = sums.setdefault(name, _Sums(site, targets.live(site)))
        with torch.no_grad():
            for number in range(len(states)):
                states[number], _ = network.advance(states[number], site.node, now)
                total.add(*targets.rows(number, site, states[number], now))
        if last[name] == site.node:
            fit, errors[name] = sums.pop(name).fit(now[name], masks[name], ridge)
            now[name] = fit
            grams[name] = total.gram
        yield done
    return Fitted(weights=now, grams=grams, errors=errors)


class _Sums:
    """Normal equations of one layer, added up over rows."""

    def __init__(self, site: Site, live: Tensor) -> None:
        self._shape, self._groups, self._live = site.layer.shape, site.layer.groups, live
        self._rows, self._square = 0, torch.zeros(())
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, X: Tensor, Y: Tensor) -> None:
        columns = X.permute(1, 2, 0)
        wanted = Y.view(len(Y), self._groups, -1).permute(1, 2, 0)
        if self._gram is None or self._cross is None:
            self._gram, self._cross = columns @ columns.mT, wanted @ columns.mT
        else:
            self._gram.baddbmm_(columns, columns.mT)
            self._cross.baddbmm_(wanted, columns.mT)
        self._square = self._square + Y.square().sum(0).double().cpu()
        self._rows += len(Y)

    @property
    def gram(self) -> Tensor:
        """H, (groups, d, d)."""
        assert self._gram is not None
        return self._gram / max(1, self._rows)

    def fit(self, weight: Tensor, mask: Tensor, ridge: float) -> tuple[Tensor, tuple[float, float]]:
        """Return the fitted weight in its own shape and dtype, and the relative error before and after."""
        assert self._cross is not None
        H = self.gram
        out = self._shape[0]
        B = (self._cross / max(1, self._rows)).reshape(out, -1)
        before = weight.reshape(out, -1).to(H.dtype)
        B = torch.where(self._live[:, None], B, self._times(H, before))
        after = layer_least_squares(H, B, mask.reshape(out, -1), ridge, prior=before)
        errors = self._error(H, B, before), self._error(H, B, after)
        return after.reshape(self._shape).to(weight.dtype), errors

    def _times(self, H: Tensor, W: Tensor) -> Tensor:
        return (W.view(self._groups, -1, W.shape[1]) @ H).reshape(W.shape)

    def _error(self, H: Tensor, B: Tensor, W: Tensor) -> float:
        squares = float((self._square[self._live.cpu()] / max(1, self._rows)).sum())
        rest = (W * (self._times(H, W) - 2 * B))[self._live].sum(dtype=torch.float64)
        return max(0.0, (squares + float(rest)) / squares) if squares else 0.0


def _grid(site: Site, output: Tensor, positions: int, generator: torch.Generator, samples: int) -> Grid:
    def offsets(steps: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(torch.randint(step, (1,), generator=generator)) for step in steps)

    if site.layer.kind == "linear":
        places = output.numel() // (output.shape[-1] * max(1, samples))
        steps: tuple[int, ...] = (max(1, places // positions),)
    else:
        spatial = output.shape[-(len(site.layer.shape) - 2) :]
        step = max(1, int((math.prod(spatial) / positions) ** (1 / len(spatial)) + 1e-9))
        steps = tuple(min(step, size) for size in spatial)
    return Grid(steps, offsets(steps))


def _bytes(values: object) -> int:
    assert hasattr(values, "__iter__")
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
