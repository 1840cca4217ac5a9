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


class ColumnStore:
    """Gᵀ as it fills up with rows.

    One weight's gradients over the samples lie side by side, so that picking weights copies whole cache lines,
    and both Gv and Gᵀr read memory in order.

    Args:
        size: Weights p.
        count: Rows n to store; what comes after them is dropped.
        device: Where they live.
        together: So many consecutive rows that come are averaged into one: rows of a larger batch.
    """

    def __init__(self, size: int, count: int, device: torch.device, *, together: int = 1) -> None:
        self.count, self.together, self.done = count, together, 0
        self._values = torch.empty(size, count, device=device)
        self._squares, self._total = torch.zeros(size, device=device), torch.zeros(size, device=device)
        self._begun: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add rows (c, p)."""
        if self.together > 1:
            waiting = sum(map(len, self._begun)) + len(rows)
            whole = waiting - waiting % self.together
            if not whole:
                self._begun.append(rows.clone())
                return
            joined = torch.cat([*self._begun, rows])
            self._begun = [joined[whole:].clone()] if whole < waiting else []
            rows = joined[:whole].view(-1, self.together, joined.shape[1]).mean(1)
        rows = rows[: self.count - self.done]
        self._values[:, self.done : self.done + len(rows)] = rows.T
        self._squares += torch.linalg.vector_norm(rows, dim=0).square_()
        self._total += rows.sum(0)
        self.done += len(rows)

    def columns(self) -> Columns:
        """Return what has been stored, once ``count`` rows are in."""
        return Columns(values=self._values, diagonal=self._squares / self.count, mean=self._total / self.count)


def collect_columns(rows: GradientRows) -> Generator[int, None, Columns]:
    """Stream the rows into columns; yield the number of rows done after each block."""
    store = ColumnStore(rows.layout.size, rows.count, rows.network.device)
    for block in rows:
        store.add(block)
        yield store.done
    return store.columns()
