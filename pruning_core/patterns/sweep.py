"""The order in which a column sweep takes a layer's inputs, so that weights that compete stand side by side."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sweep_order(shape: tuple[int, ...], m: int) -> Tensor:
    """Return the columns of ``weight.reshape(out, -1)`` such that every m in a row make one group of a pattern.

    A column is an input channel at a kernel position, (channel, *kernel) in row-major order. An n:m group (and a row of
    an r×m block) is m consecutive channels at the same position, so for kernels larger than one its members are not
    neighbours. In this order they are; the columns of the in mod m left-over channels come last.

    Args:
        shape: (out, in/groups, *kernel).
        m: Channels in a group.

    Returns:
        A permutation of d = in/groups · kernel columns, (d,) int64. Its inverse is its ``argsort``.

    >>> sweep_order((1, 5, 2), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7, 8, 9]
    """
    channels, kernel = shape[1], math.prod(shape[2:])
    columns = torch.arange(channels * kernel)
    grouped = channels // m * m * kernel
    inner = columns[:grouped].view(channels // m, m, kernel).transpose(1, 2)
    return torch.cat([inner.reshape(-1), columns[grouped:]])
