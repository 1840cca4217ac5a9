"""Optimal brain surgeon, exactly: one weight at a time, the inverse downdated by elimination, many blocks at once."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.solvers.blocks import BlockQuadratic
from pruning_core.solvers.inverse_fisher import damped_inverse

#: Removals after which the stored inverse is brought up to date by one matrix product.
FLUSH = 32
#: Bytes of inverses that are worked on at a time.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """In which order the weights of each block went, and what each removal cost.

    Args:
        order: Positions within the block, (m, t).
        costs: The rise of the block's quadratic at each removal, (m, t) float64, none negative.
    """

    order: Tensor
    costs: Tensor


def eliminate(inverse: Tensor, weights: Tensor, count: int | None = None) -> Elimination:
    """Remove weights one at a time from each block, each time the one that costs least after the rest is re-fitted.

    With A = H⁻¹ on the weights still there, removal of q costs w_q²/(2A_qq); then w ← w - A_:q·w_q/A_qq and
    A ← A - A_:q·A_q:/A_qq (Hassibi & Stork 1992; Frantar & Alistarh 2022, lemma 1). Only w and the diagonal of A are
    kept up to date; columns are made when they are needed, and A follows every few removals by a matrix product, with
    what has gone left out.

    Args:
        inverse: H⁻¹ of each block, (m, b, b); symmetric positive definite.
        weights: (m, b), the minimiser where nothing is removed.
        count: Removals in each block, t <= b; None: all b.

    Returns:
        Order and costs. Ties go to the lower position.
    """
    m, b = weights.shape
    total = b if count is None else count
    block = torch.arange(m, device=weights.device)
    order = torch.empty(m, total, dtype=torch.long, device=weights.device)
    costs = torch.empty(m, total, dtype=torch.float64, device=weights.device)
    matrix, w = inverse.clone(), weights.to(inverse.dtype, copy=True)
    diagonal = matrix.diagonal(dim1=1, dim2=2).clone()
    names = torch.arange(b, device=weights.device).expand(m, b)
    gone = torch.zeros(m, b, dtype=torch.bool, device=weights.device)
    done = 0
    while done < total:
        steps = min(FLUSH, total - done)
        factors = matrix.new_zeros(m, matrix.shape[1], steps)
        for step in range(steps):
            cost = torch.where(gone, torch.inf, 0.5 * w.square() / diagonal)
            costs[:, done + step], q = cost.min(1)
            order[:, done + step] = names[block, q]
            pivot = diagonal[block, q].sqrt().unsqueeze(1)
            column = matrix[block, q]
            if step:
                earlier = factors[:, :, :step]
                column = torch.baddbmm(column.unsqueeze(2), earlier, earlier[block, q].unsqueeze(2), alpha=-1).squeeze(
                    2
                )
            column = column / pivot
            factors[:, :, step] = column
            w = w - column * (w[block, q].unsqueeze(1) / pivot)
            # Exact arithmetic keeps the diagonal positive; rounding may not take it to zero.
            diagonal = torch.maximum(diagonal - column.square(), diagonal * 1e-12)
            gone[block, q] = True
        done += steps
        if done < total:
            left = gone.logical_not().nonzero()[:, 1].view(m, -1)
            factors = factors.gather(1, left.unsqueeze(2).expand(-1, -1, steps))
            matrix = matrix.gather(1, left.unsqueeze(2).expand(-1, -1, matrix.shape[2]))
            matrix = matrix.gather(2, left.unsqueeze(1).expand(-1, left.shape[1], -1))
            matrix.baddbmm_(factors, factors.transpose(1, 2), alpha=-1)
            w, names = w.gather(1, left), names.gather(1, left)
            diagonal = matrix.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(matrix.dtype).tiny)
            gone = torch.zeros_like(left, dtype=torch.bool)
    return Elimination(order=order, costs=costs)


def removal_ranks(quadratic: BlockQuadratic) -> Generator[int, None, Tensor]:
    """Return when each weight goes if always the cheapest next removal over all blocks is done, (p,) float64 ranks.

    Blocks do not interact, so each is eliminated by itself; then the block whose next removal costs least moves on,
    which is the order of the largest cost so far within the block. The weights after the first removals are the refit
    on what is left. As scores the ranks serve every count: global, in each layer, or with floors.

    Args:
        quadratic: Blocks, w̄ (the minimiser) and λ.

    Yields:
        The tensors done. NaN ranks where a block could not be inverted.
    """
    places, costs, offset = [], [], 0
    sizes = quadratic.sizes
    for done, (gram, part) in enumerate(zip(quadratic.grams, torch.split(quadratic.anchor, list(sizes)), strict=True)):
        m, b, _ = gram.shape
        padded = part.new_zeros(m * b)
        padded[: len(part)] = part
        at_once = max(1, CHUNK_BYTES // (8 * b * b))
        for start in range(0, m, at_once):
            inverse = damped_inverse(gram[start : start + at_once], quadratic.ridge)
            went = eliminate(inverse, padded.view(m, b)[start : start + at_once])
            place = went.order + b * torch.arange(start, start + len(inverse), device=part.device).unsqueeze(1)
            real = place < len(part)
            places.append(offset + place[real])
            costs.append(went.costs.cummax(1).values[real])
        offset += len(part)
        yield done + 1
    place, cost = torch.cat(places), torch.cat(costs)
    ranks = torch.empty(len(place), dtype=torch.float64, device=place.device)
    ranks[place[torch.argsort(cost, stable=True)]] = torch.arange(len(place), dtype=torch.float64, device=place.device)
    return ranks if bool(torch.isfinite(cost).all()) else torch.full_like(ranks, torch.nan)
