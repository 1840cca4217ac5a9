"""G stored by columns: for solvers that pick weights."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from pruning_core.curvature.rows import GradientRows


def collect_columns(rows: GradientRows) -> Generator[int, None, Tensor]:
    """Stream the rows into Gᵀ, (p, n) float32, row-major; yield the number of rows done after each block.

    One weight's gradients over the samples lie side by side, so that picking weights copies whole cache lines,
    and both Gv and Gᵀr read memory in order.

    Returns:
        Gᵀ, as the generator's value.
    """
    columns = torch.empty(rows.layout.size, rows.count, device=rows.network.device)
    done = 0
    for block in rows:
        columns[:, done : done + len(block)] = block.T
        done += len(block)
        yield done
    return columns
