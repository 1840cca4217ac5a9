"""G stored by columns: for solvers that pick weights."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.curvature.rows import GradientRows


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Gᵀ and what is known of each of its p rows.

    Args:
        values: Gᵀ, (p, n) float32.
        diagonal: The Fisher's diagonal, mean of squares over the samples, (p,) float32.
        mean: ḡ, the mean over the samples, (p,) float32.
    """

    values: Tensor
    diagonal: Tensor
    mean: Tensor


def collect_columns(rows: GradientRows) -> Generator[int, None, Columns]:
    """Stream the rows into columns; yield the number of rows done after each block.

    One weight's gradients over the samples lie side by side, so that picking weights copies whole cache lines,
    and both Gv and Gᵀr read memory in order.
    """
    p, device = rows.layout.size, rows.network.device
    values = torch.empty(p, rows.count, device=device)
    squares, total = torch.zeros(p, device=device), torch.zeros(p, device=device)
    done = 0
    for block in rows:
        values[:, done : done + len(block)] = block.T
        squares += torch.linalg.vector_norm(block, dim=0).square_()
        total += block.sum(0)
        done += len(block)
        yield done
    return Columns(values=values, diagonal=squares / rows.count, mean=total / rows.count)
