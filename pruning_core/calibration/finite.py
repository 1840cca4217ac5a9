"""Finding a NaN or an infinity without a copy of the data."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22


def first_not_finite(array: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity in row-major order, or None.

    Args:
        array: Shape (N, …); integers are always finite. Memory beside it: a few MiB, or one sample.

    >>> first_not_finite(torch.tensor([[0.0, 1.0], [float("nan"), 2.0]]))
    (1, 0)
    """
    if not array.dtype.is_floating_point or array.numel() == 0:
        return None
    step = max(1, _CHUNK_ELEMENTS * len(array) // array.numel())
    for start in range(0, len(array), step):
        wrong = ~torch.isfinite(array[start : start + step])
        if wrong.any():
            row, *rest = (int(i) for i in wrong.nonzero()[0])
            return (start + row, *rest)
    return None
