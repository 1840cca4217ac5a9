"""Layer-wise least squares: the best weights of every output channel on its own support, many channels at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Matrices that are factorised together take at most this many bytes.
BATCH_BYTES = 64 * 2**20
#: Supports that are factorised together are padded to the largest; it is at most this much above the smallest.
PADDING = 1.15
#: What is added to the ridge, as a multiple of it, each time rounding makes a system indefinite.
RETRIES = (0.0, 10.0, 1000.0)


@dataclass(frozen=True)
class _Batch:
    """Factors L (c, m, m) of c systems, each for r channels (c, r); ``index`` (c, m) says which inputs they take.

    Where ``padded`` is true an input is only filling: a row of the identity.
    """

    channels: Tensor
    index: Tensor
    padded: Tensor
    factor: Tensor


class SupportFactors:
    """Cholesky factors of H_SS + ε·I for the support S of every output channel, to solve with as often as wanted.

    ε = ridge · mean diagonal of H (of the channel's group). Channels with the same support share a factor.

    Args:
        H: (d, d), or (groups, d, d) where channel o belongs to group o // (out / groups); symmetric, semi-definite.
        mask: (out, d) bool, the supports.
        ridge: Relative ridge; where rounding makes a system indefinite, more of it is used for that system.
    """

    def __init__(self, H: Tensor, mask: Tensor, ridge: float) -> None:
        self._mask = mask
        self._epsilon = _epsilon(H, ridge)
        self._batches = list(_factorise(H, mask, self._epsilon))

    def solve(self, B: Tensor, prior: Tensor | None = None) -> Tensor:
        """Return W (out, d) with (H_SS + ε·I)·w_S = b_S + ε·v_S and w = 0 off S for the rows w, b, v of W, B, prior."""
        B = B if prior is None else B + prior * _owned(self._epsilon, len(B))
        W = torch.zeros_like(B)
        for batch in self._batches:
            _solve(batch, B, W)
        return W.masked_fill_(~self._mask, 0.0)


def layer_least_squares(H: Tensor, B: Tensor, mask: Tensor, ridge: float = 1e-4, prior: Tensor | None = None) -> Tensor:
    """Minimise ½·wᵀHw - bᵀw + ½ε·‖w - v‖² over the weights w of each output channel that vanish off its support.

    With H = XᵀX/n and B = YᵀX/n that is the least-squares fit of the outputs Y by the inputs X; ε = ridge · mean
    diagonal of H. Costs Σ|S|³/3 multiplications over the different supports.

    Args:
        H: (d, d), or (groups, d, d) where channel o belongs to group o // (out / groups); symmetric, semi-definite.
        B: (out, d).
        mask: (out, d) bool, the supports.
        ridge: Relative ridge.
        prior: What the ridge pulls to, rows v of (out, d); None: to zero.

    Returns:
        W (out, d), exactly zero off the mask.
    """
    epsilon = _epsilon(H, ridge)
    B = B if prior is None else B + prior * _owned(epsilon, len(B))
    W = torch.zeros_like(B)
    for batch in _factorise(H, mask, epsilon):
        _solve(batch, B, W)
    return W.masked_fill_(~mask, 0.0)


def _solve(batch: _Batch, B: Tensor, W: Tensor) -> None:
    count, shared = batch.channels.shape
    right = B[batch.channels[:, :, None], batch.index[:, None, :]].masked_fill(batch.padded[:, None, :], 0.0)
    solved = torch.cholesky_solve(right.mT.to(batch.factor.dtype), batch.factor).mT.to(W.dtype)
    # Filling points at input 0 and is zero: adding it changes nothing.
    rows = torch.zeros(count, shared, W.shape[1], dtype=W.dtype, device=W.device)
    rows.scatter_add_(2, batch.index[:, None, :].expand(-1, shared, -1), solved)
    W[batch.channels.reshape(-1)] = rows.reshape(-1, W.shape[1])


def _epsilon(H: Tensor, ridge: float) -> Tensor:
    """Return ε for each group."""
    return ridge * H.diagonal(dim1=-2, dim2=-1).mean(-1).reshape(-1)


def _owned(epsilon: Tensor, out: int) -> Tensor:
    """Return each channel's ε as a column, (out, 1)."""
    return epsilon.repeat_interleave(out // len(epsilon)).unsqueeze(1)


def _factorise(H: Tensor, mask: Tensor, epsilon: Tensor) -> Iterator[_Batch]:
    """Yield batches of factors that cover all channels with a support that is not empty."""
    H = H if H.dim() == 3 else H.unsqueeze(0)
    out = len(mask)
    group = torch.arange(out, device=mask.device) // max(1, out // len(H))
    channels, supports = _shared(mask, len(H) > 1)
    sizes = supports.sum(1)
    for part in _similar(sizes, H.element_size()):
        m = int(sizes[part].max())
        if m:
            index, padded = _indices(supports[part], m)
            factor = _cholesky(H, group[channels[part, 0]], index, padded, epsilon)
            yield _Batch(channels[part], index, padded, factor)


def _shared(mask: Tensor, grouped: bool) -> tuple[Tensor, Tensor]:
    """Return channels (c, r) and supports (c, d): all channels share one support, or each has its own."""
    channels = torch.arange(len(mask), device=mask.device)
    if not grouped and bool((mask == mask[:1]).all()):
        return channels.unsqueeze(0), mask[:1]
    return channels.unsqueeze(1), mask


def _similar(sizes: Tensor, element: int) -> Iterator[Tensor]:
    """Yield the indices of supports of about one size, as many as fit a batch."""
    order = torch.argsort(sizes, stable=True)
    ordered = sizes[order].tolist()
    start = 0
    for end in range(1, len(ordered) + 1):
        if end < len(ordered):
            m = ordered[end]
            fits = (end + 1 - start) * m * m * element <= BATCH_BYTES
            if fits and m <= PADDING * ordered[start] + 4:
                continue
        yield order[start:end]
        start = end


def _indices(supports: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return (index (c, m), padded (c, m)): each row's support in order, then filling."""
    rank = supports.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :m]
    padded = torch.arange(m, device=supports.device) >= supports.sum(1, keepdim=True)
    return rank.masked_fill(padded, 0), padded


def _cholesky(H: Tensor, owner: Tensor, index: Tensor, padded: Tensor, epsilon: Tensor) -> Tensor:
    flat = H.reshape(-1)
    d = H.shape[-1]
    places = (owner * d * d)[:, None, None] + index[:, :, None] * d + index[:, None, :]
    systems = flat[places]
    systems.masked_fill_(padded[:, :, None] | padded[:, None, :], 0.0)
    diagonal = systems.diagonal(dim1=1, dim2=2)
    diagonal += torch.where(padded, torch.ones_like(diagonal), epsilon[owner, None].expand_as(diagonal))
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(systems)
    if not bool(failed.any()):
        return factor
    # Rounding beats the ridge: once more with twice the digits, then with more ridge.
    precise, factor = systems.double(), factor.double()
    for extra in RETRIES:
        chosen = failed.nonzero().squeeze(1)
        again = precise[chosen]
        floor = epsilon[owner[chosen], None].double().clamp_min(torch.finfo(torch.float32).tiny)
        again.diagonal(dim1=1, dim2=2).add_(extra * floor)
        factor[chosen], failed[chosen] = torch.linalg.cholesky_ex(again)
        if not bool(failed.any()):
            break
    else:
        chosen = failed.nonzero().squeeze(1)  # not semi-definite at all: fall back to its diagonal
        scale = precise[chosen].diagonal(dim1=1, dim2=2).abs() + epsilon[owner[chosen], None]
        factor[chosen] = torch.diag_embed(scale.clamp_min(torch.finfo(torch.float32).tiny).sqrt())
    return factor
