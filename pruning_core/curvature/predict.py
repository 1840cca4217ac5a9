"""Run a network over a dataset in batches, whatever batch size it was exported with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pruning_core.network import Network

#: Samples a forward pass takes where the network leaves the choice.
FORWARD_BATCH = 128


class Samples(Protocol):
    """What curvature needs of a dataset: inputs (N, ...) in the network's order, and perhaps labels (N, ...)."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """One tensor per network input, each (N, ...)."""

    @property
    def labels(self) -> Tensor | None:
        """Class numbers or targets (N, ...), if there are any."""

    def __len__(self) -> int:
        """Number of samples, N."""


def predict(network: Network, inputs: Sequence[Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the network's first output for these samples: (N, ...) each -> (N, ...).

    A network with a fixed batch size gets full batches; the last is filled by repeating its last sample, and
    what comes out for the filling is dropped.
    """
    count = len(inputs[0])
    moved = [x.to(network.device) for x in inputs]
    if network.batch is None or network.batch == count:
        return network.run(moved, weights)[0]
    outputs = []
    for start in range(0, count, network.batch):
        part = [x[start : start + network.batch] for x in moved]
        missing = network.batch - len(part[0])
        if missing:
            part = [torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) for x in part]
        outputs.append(network.run(part, weights)[0][: network.batch - missing])
    return torch.cat(outputs)


def batches(count: int, size: int = FORWARD_BATCH) -> Iterator[slice]:
    """Yield slices that cut ``count`` samples into batches of at most ``size``.

    >>> list(batches(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
