"""Gradient rows: row i of G is the gradient, at w̄, of the mean loss over B calibration samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning_core.curvature.labels import Labels
from pruning_core.curvature.layout import Layout
from pruning_core.curvature.losses import sample_losses
from pruning_core.curvature.predict import Samples, predict
from pruning_core.network import Network

#: A block of rows takes about this many bytes: large enough for fast products, small beside G.
BLOCK_BYTES = 128 * 2**20
#: Rows that one vectorised backward computes: their bytes, and the samples in them, stay below these.
VMAP_BYTES = 32 * 2**20
VMAP_SAMPLES = 128
#: From this batch size on, one backward per row keeps the cores busy by itself.
LOOP_FROM = 16


class GradientRows:
    """The rows of G (n×p), streamed as blocks; restartable, in an order fixed by the seed.

    Samples are drawn without replacement. Rows of few samples are computed many at a time (``vmap``); where the
    network does not allow that, or the result disagrees with a plain backward, one backward per row is done.

    Args:
        network: At the weights w̄, on its device.
        layout: The prunable weights, p of them.
        data: The calibration samples, N of them.
        labels: Their labels.
        rows: n wanted; fewer where the data has not n·B samples, but at least one.
        batch_size: B; no more than N.
        seed: Of the order.

    Attributes:
        count: The n that the data allows.
        batch_size: The B that the data allows.
        vectorised: Whether rows are computed many at a time; known once iteration has begun.
    """

    def __init__(
        self, network: Network, layout: Layout, data: Samples, labels: Labels, *, rows: int, batch_size: int, seed: int
    ) -> None:
        self.network, self.layout, self.data, self.labels = network, layout, data, labels
        self.batch_size = min(batch_size, len(data))
        self.count = min(rows, len(data) // self.batch_size)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        self._order = order[: self.count * self.batch_size].view(self.count, self.batch_size)
        self.vectorised = self.batch_size < LOOP_FROM and network.batch in (None, self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield blocks of consecutive rows, each (c, p) float32; a block is valid until the next is asked for."""
        p = self.layout.size
        capacity = max(1, min(self.count, 256, BLOCK_BYTES // (4 * p)))
        at_once = max(1, min(capacity, VMAP_SAMPLES // self.batch_size, VMAP_BYTES // (4 * p)))
        block = torch.empty(capacity, p, device=self.network.device)
        filled = 0
        for start in range(0, self.count, at_once):
            rows = self._order[start : start + at_once]
            if filled + len(rows) > capacity:
                yield block[:filled]
                filled = 0
            self._fill(block[filled : filled + len(rows)], rows)
            filled += len(rows)
        yield block[:filled]

    def _fill(self, out: Tensor, rows: Tensor) -> None:
        if self.vectorised:
            try:
                self._vectorised_rows(out, rows)
            except (OSError, ImportError):
                # The machine's doing, such as a full disk, not the network's: another way gives other last bits, and
                # the same job must give the same bytes wherever it runs.
                raise
            except Exception:
                # vmap has no rule for some op of this graph. A real fault of the network fails again below, in plain
                # words.
                self.vectorised = False
            else:
                if int(rows[0, 0]) != int(self._order[0, 0]) or self._agrees(out[0], rows[0]):
                    return
                self.vectorised = False
        for row, indices in zip(out, rows, strict=True):
            self._one_row(row, indices)

    def _agrees(self, row: Tensor, indices: Tensor) -> bool:
        plain = torch.empty_like(row)
        self._one_row(plain, indices)
        return bool(torch.linalg.vector_norm(row - plain) <= 1e-4 * torch.linalg.vector_norm(plain) + 1e-12)

    def _samples(self, indices: Tensor) -> tuple[list[Tensor], Tensor]:
        inputs = [x[indices.to(x.device)].to(self.network.device) for x in self.data.inputs]
        labels = self.labels.values
        return inputs, labels[indices.to(labels.device)].to(self.network.device)

    def _one_row(self, out: Tensor, indices: Tensor) -> None:
        weights = {name: self.network.weights[name].detach().requires_grad_() for name in self.layout.names}
        inputs, labels = self._samples(indices)
        with torch.enable_grad():
            loss = sample_losses(self.labels.kind, predict(self.network, inputs, weights), labels).mean()
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        parts = zip(torch.split(out, list(self.layout.sizes)), gradients, strict=True)
        for part, gradient in parts:
            part.zero_() if gradient is None else part.copy_(gradient.reshape(-1))

    def _vectorised_rows(self, out: Tensor, rows: Tensor) -> None:
        weights = {name: self.network.weights[name].detach() for name in self.layout.names}
        inputs, labels = self._samples(rows)

        def loss(w: dict[str, Tensor], x: list[Tensor], y: Tensor) -> Tensor:
            return sample_losses(self.labels.kind, self.network.run(x, w)[0], y).mean()

        # The fused attention kernels have no batching rule; the plain one is ordinary products.
        with sdpa_kernel(SDPBackend.MATH):
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, labels)
        for part, name in zip(torch.split(out, list(self.layout.sizes), dim=1), self.layout.names, strict=True):
            part.copy_(gradients[name].reshape(len(rows), -1))
