"""Optimal brain surgeon for patterns: whole units go together, and a group of units can lose only so many."""

from __future__ import annotations

import torch
from torch import Tensor

#: Columns removed after which the stored inverses are brought up to date by one matrix product.
FLUSH = 32


def eliminate_units(
    inverse: Tensor, weights: Tensor, units: Tensor, *, group_size: int = 1, limit: int = 1, joint: int = 1
) -> tuple[Tensor, Tensor]:
    """Remove units one at a time from each system, each time the one that costs least after the rest is re-fitted.

    A unit is c columns that all rows of a system lose together. With A = H⁻¹ on the columns still there, removing unit
    u costs ½·Σ w_uᵀ(A_uu)⁻¹w_u over the rows w; the rest follows by eliminating its columns from A (Frantar &
    Alistarh 2022, on n:m and block sparsity).

    Args:
        inverse: H⁻¹ of each system, (m, d, d), positive definite.
        weights: Rows of each system, (m, rows, d), minimisers where nothing is removed.
        units: Columns of each unit, (u, c).
        group_size: So many consecutive units make a group,
        limit: which loses exactly this many of them.
        joint: So many consecutive systems lose the same units at the same time (their rows form one block).

    Returns:
        Order of units, and costs float64; both (m / joint, t), t = u / group_size · limit. Ties: the lower unit.
    """
    m, d = len(inverse), inverse.shape[1]
    count, c = units.shape
    heads, total = m // joint, count // group_size * limit
    system, head = torch.arange(m, device=weights.device), torch.arange(heads, device=weights.device)
    order = torch.empty(heads, total, dtype=torch.long, device=weights.device)
    costs = torch.empty(heads, total, dtype=torch.float64, device=weights.device)
    matrix, w = inverse.clone(), weights.to(inverse.dtype, copy=True)
    blocks = matrix[:, units.unsqueeze(2), units.unsqueeze(1)]
    gone = torch.zeros(heads, count, dtype=torch.bool, device=weights.device)
    room = torch.full((heads, count // group_size), limit, device=weights.device)
    eye = torch.eye(c, dtype=matrix.dtype, device=matrix.device)
    factors = matrix.new_zeros(m, d, max(FLUSH, c))
    used = 0
    for step in range(total):
        cost = _cost(blocks, w[:, :, units]).view(heads, joint, count).sum(1)
        closed = gone | (room == 0).repeat_interleave(group_size, 1)
        costs[:, step], q = cost.masked_fill(closed, torch.inf).min(1)
        order[:, step] = q
        gone[head, q] = True
        room[head, q // group_size] -= 1
        chosen = q.repeat_interleave(joint)
        if used + c > factors.shape[2]:
            matrix.baddbmm_(factors[:, :, :used], factors[:, :, :used].mT, alpha=-1)
            used = 0
        for j in units[chosen].unbind(1):
            earlier = factors[:, :, :used]
            column = matrix[system, j] - (earlier @ earlier[system, j].unsqueeze(2)).squeeze(2)
            # Exact arithmetic keeps the pivot positive; rounding may not take it to zero.
            pivot = column[system, j].clamp_min(torch.finfo(matrix.dtype).tiny).sqrt().unsqueeze(1)
            column = column / pivot
            factors[:, :, used] = column
            used += 1
            w = w - column.unsqueeze(1) * (w[system, :, j] / pivot).unsqueeze(2)
            parts = column[:, units]
            blocks = blocks - parts.unsqueeze(3) * parts.unsqueeze(2)
        # What has gone must not stop the others' systems from being solved.
        blocks[system, chosen] = eye
    return order, costs


def _cost(blocks: Tensor, w: Tensor) -> Tensor:
    """Return ½·Σ_rows w_uᵀ(A_uu)⁻¹w_u: blocks (m, u, c, c), w (m, rows, u, c) -> (m, u)."""
    if blocks.shape[2] == 1:
        return 0.5 * w.square().sum((1, 3)) / blocks[:, :, 0, 0].clamp_min(torch.finfo(w.dtype).tiny)
    right = w.permute(0, 2, 3, 1)
    solved: Tensor = torch.linalg.solve_ex(blocks, right)[0]
    return 0.5 * (solved * right).sum((2, 3))
