"""The block-diagonal Fisher: GᵀG/n within blocks of consecutive weights of one tensor, streamed over samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def blocks_of(sizes: tuple[int, ...], block_size: int) -> tuple[tuple[int, int], ...]:
    """Return for each tensor (number of blocks m, block length b): about ``block_size``, as equal as can be.

    A tensor gets ⌊size/block_size⌋ blocks and at least one, as in the paper's experiments: block_size <= b <
    2·block_size where the tensor is that large, and m·b >= size.

    >>> blocks_of((200, 1000, 1800), 500)
    ((1, 200), (2, 500), (3, 600))
    """
    counts = [max(1, size // block_size) for size in sizes]
    return tuple((m, math.ceil(size / m)) for size, m in zip(sizes, counts, strict=True))


class BlockGram:
    """Sum of the outer products of rows within each block; G itself is never stored, so n is unlimited.

    Args:
        sizes: Weights of each tensor, in the order of the flat vector.
        block_size: About the length b of a block. Memory is Σ 4·m·b², about 4·p·block_size bytes.
        device: Where the blocks live.
    """

    def __init__(self, sizes: tuple[int, ...], block_size: int, device: torch.device) -> None:
        self.sizes = sizes
        self.blocks = blocks_of(sizes, block_size)
        self.rows = 0
        self._sums = [torch.zeros(m, b, b, device=device) for m, b in self.blocks]

    @staticmethod
    def bytes_needed(sizes: tuple[int, ...], block_size: int) -> int:
        """Return the bytes of the blocks: Σ 4·m·b²."""
        return sum(4 * m * b * b for m, b in blocks_of(sizes, block_size))

    def add(self, rows: Tensor) -> None:
        """Add the outer products of these rows, (c, p)."""
        for part, (m, b), total in zip(
            torch.split(rows, list(self.sizes), dim=1), self.blocks, self._sums, strict=True
        ):
            padded = functional.pad(part, (0, m * b - part.shape[1])).view(len(rows), m, b)
            total.baddbmm_(padded.permute(1, 2, 0), padded.permute(1, 0, 2))
        self.rows += len(rows)

    def mean(self) -> list[Tensor]:
        """Return for each tensor its blocks of GᵀG/n, (m, b, b); the last block is padded with zeros.

        The sums are divided in place and handed over; nothing can be added afterwards.
        """
        sums, self._sums = self._sums, []
        for total in sums:
            total /= max(1, self.rows)
        return sums
