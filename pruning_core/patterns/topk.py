"""Exactly k largest, by selection rather than by sorting."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(score: Tensor, k: int) -> Tensor:
    """Return the mask of the k largest scores; among equals the lower index wins.

    A selection of the k-th largest value, O(p), instead of a sort, O(p log p).

    Args:
        score: Shape (p,), real, no NaN.
        k: How many to keep, 0 <= k <= p.

    Returns:
        Bool mask of shape (p,) with exactly k true entries.

    Raises:
        ValueError: k is out of range.

    >>> top_k(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2)
    tensor([False,  True,  True, False, False])
    """
    p = score.numel()
    if not 0 <= k <= p:
        raise ValueError(f"expected 0 <= k <= {p}, got {k}")
    if k == 0 or k == p:
        return torch.full((p,), k == p, device=score.device)
    threshold = torch.kthvalue(score, p - k + 1).values
    mask = score > threshold
    ties = (score == threshold).nonzero().squeeze(1)
    mask[ties[: k - int(mask.sum())]] = True
    return mask
