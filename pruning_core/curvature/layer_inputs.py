"""What goes into a layer: its input as rows of patches, and the Gram matrix of these rows, streamed over samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pruning_core.curvature.predict import FORWARD_BATCH, Samples, batches
from pruning_core.network import Layer, Network, Site


@dataclass(frozen=True, kw_only=True)
class LayerGram:
    """The second moment of a layer's input, H = XᵀX / positions, for each group.

    Attributes:
        H: (groups, d, d), float32 (float64 for a float64 network), symmetric; d = in/groups · kernel, in the order of
            ``weight.reshape(out, -1)``.
        positions: Rows of X: samples x places where the layer is applied, all uses of the weight together.
    """

    H: Tensor
    positions: int

    @property
    def squares(self) -> Tensor:
        """Squared norm of each column of X, (groups, d)."""
        return self.H.diagonal(dim1=1, dim2=2) * self.positions


class GramSum:
    """Adds up XᵀX for one weight; X itself is never kept."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._positions = 0

    def add(self, patches: Tensor) -> None:
        """Add the rows of some patches, (positions, groups, d)."""
        columns = patches.permute(1, 2, 0)
        if self._sum is None:
            self._sum = columns @ columns.mT
        else:
            self._sum.baddbmm_(columns, columns.mT)
        self._positions += len(patches)

    def gram(self) -> LayerGram:
        """Return the mean; the sum is handed over, and nothing can be added afterwards.

        Raises:
            ValueError: Nothing was added.
        """
        total, self._sum = self._sum, None
        if total is None:
            raise ValueError("no patches were added")
        return LayerGram(H=total.div_(max(1, self._positions)), positions=self._positions)


def layer_patches(site: Site, x: Tensor, every: int = 1, offset: int = 0) -> Tensor:
    """Return the input of a layer as rows: (positions, groups, d) with d = in/groups · kernel.

    In each group y = patches @ Wᵀ (without the bias) for W = weight.reshape(groups, out/groups, d). Positions are in
    the order of the output's elements of one channel: samples, then places, row by row.

    Args:
        site: Which use of which layer.
        x: The value named ``site.input``: (N, in, *size) for a convolution, (..., in) for a linear layer.
        every: Take only each so many-th place of a convolution along each spatial axis,
        offset: from this one on.

    Returns:
        In float64 where x is float64, else in float32. May be a view of x.
    """
    x = x if x.dtype == torch.float64 else x.float()
    layer = site.layer
    if layer.kind == "linear":
        return x.reshape(-1, 1, layer.shape[1])
    kernel = layer.shape[2:]
    if x.dim() == len(kernel) + 1:
        x = x.unsqueeze(0)
    if any(side for sides in site.padding for side in sides):
        x = functional.pad(x, [side for sides in reversed(site.padding) for side in sides])
    for axis, (size, stride, dilation) in enumerate(zip(kernel, site.stride, site.dilation, strict=True), start=2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        x = _thinned(x, axis, every, offset)
    places = range(2, 2 + len(kernel))
    offsets = range(2 + len(kernel), 2 + 2 * len(kernel))
    # (in, *kernel, N, *places): long runs are copied at once
    columns = x.permute(1, *offsets, 0, *places)
    d = math.prod(layer.shape[1:])
    return columns.reshape(layer.groups, d, -1).permute(2, 0, 1)


def layer_targets(site: Site, y: Tensor, every: int = 1, offset: int = 0) -> Tensor:
    """Return values in the shape of a layer's output as columns, (groups, out/groups, positions).

    The positions are those of `layer_patches` with the same ``every`` and ``offset``.
    """
    y = y if y.dtype == torch.float64 else y.float()
    if site.layer.kind == "linear":
        return y.reshape(1, -1, y.shape[-1]).mT
    spatial = len(site.stride)
    if y.dim() == spatial + 1:
        y = y.unsqueeze(0)
    for axis in range(2, 2 + spatial):
        y = _thinned(y, axis, every, offset)
    return y.transpose(0, 1).reshape(site.groups, y.shape[1] // site.groups, -1)


def _thinned(x: Tensor, axis: int, every: int, offset: int) -> Tensor:
    if every == 1:
        return x
    return x[(slice(None),) * axis + (slice(min(offset, x.shape[axis] - 1), None, every),)]


def layer_grams(
    network: Network,
    data: Samples,
    layers: Collection[Layer],
    weights: Mapping[str, Tensor] | None = None,
    *,
    batch: int = FORWARD_BATCH,
) -> Generator[int, None, dict[str, LayerGram]]:
    """Collect the Gram of every layer in one pass over the samples, with the inputs that they have in this network.

    Args:
        network: What to run.
        data: The samples.
        layers: Whose Grams are wanted. A weight that is used more than once gets one Gram over all its uses.
        weights: Replaces some of the network's weights.
        batch: Samples at a time; a network with a fixed batch size takes its own.

    Yields:
        Samples done.

    Returns:
        Canonical weight name -> Gram.
    """
    wanted = {layer.weight for layer in layers}
    sums = {name: GramSum() for name in wanted}
    done = 0
    for inputs in input_chunks(network, data, batch):
        with torch.no_grad():
            state = network.begin(inputs)
            for site in network.sites:
                if site.layer.weight in wanted:
                    state, found = network.advance(state, site.node, weights, keep=(site.input,))
                    sums[site.layer.weight].add(layer_patches(site, found[site.input]))
        done += len(inputs[0])
        yield done
    return {layer.weight: sums[layer.weight].gram() for layer in layers}


def input_chunks(network: Network, data: Samples, size: int = FORWARD_BATCH) -> Iterator[list[Tensor]]:
    """Yield the samples in chunks that the network takes, on its device.

    A network with a fixed batch size gets full batches: samples that do not fill the last one are left out, and
    where there are not enough for one they are repeated.
    """
    if network.batch is None:
        for part in batches(len(data), size):
            yield [x[part].to(network.device) for x in data.inputs]
        return
    count = max(len(data) // network.batch, 1) * network.batch
    index = torch.arange(count) % len(data)
    for part in index.view(-1, network.batch):
        yield [x[part.to(x.device)].to(network.device) for x in data.inputs]
