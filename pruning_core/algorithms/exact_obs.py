"""ExactOBS: a layer's weights go one at a time, and all that remain are re-fitted each time."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.checkpoints import Saved
from pruning_core.algorithms.layerwise import LayerProblem, LayerSolution, LayerwiseOptions, solve_layers
from pruning_core.algorithms.task import PruningTask, Selector, Step
from pruning_core.patterns import Block, Fixed, NofM, sweep_order
from pruning_core.solvers.elimination import eliminate
from pruning_core.solvers.group_elimination import eliminate_units

SUMMARY = (
    "Layer-wise optimal brain surgeon, exactly: always the weight whose loss the others can best make up for, each "
    "output row by itself, rows merged by cost. One trace serves every sparsity. Time grows with outputs times inputs "
    "cubed."
)
SOURCE = "Frantar & Alistarh, Optimal Brain Compression, NeurIPS 2022 (arXiv 2208.11580)"

#: Inverses that are worked on together take at most this many bytes.
BATCH_BYTES = 2**28


class Options(LayerwiseOptions):
    """Options of ExactOBS."""

    damping: float = Field(
        default=0.01, gt=0, le=10, description="Added to the Gram's diagonal, as a multiple of its mean."
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Measure the layers' Grams, then eliminate layer by layer. With dense inputs a layer's trace is made once."""
    traces: dict[str, Tensor] = {}

    def ranks(problem: LayerProblem, H: Tensor) -> Tensor:
        pattern = problem.pattern
        kind = f"{pattern.n}-{pattern.m}" if isinstance(pattern, NofM) else "weights"
        if isinstance(pattern, Block):
            kind = f"{pattern.shape[0]}x{pattern.shape[1]}"
        key = f"exact-obs/trace/{kind}/layer-{problem.index:03d}"
        if options.inputs == "pruned":
            return removal_ranks(problem, H)
        if key not in traces:
            saved = task.checkpoints.load(key)
            if saved is None:
                saved = Saved(tensors={"ranks": removal_ranks(problem, H)})
                task.checkpoints.save(key, saved)
            traces[key] = saved.tensors["ranks"].to(problem.weights.device)
        return traces[key]

    def solve(problem: LayerProblem) -> LayerSolution:
        H = problem.damped(options.damping)
        score = problem.weights if isinstance(problem.pattern, Fixed) else ranks(problem, H)
        mask = problem.pattern.keep(score.reshape(-1)).view(problem.weights.shape)
        # What the elimination's own updates amount to, without their rounding.
        return LayerSolution(mask=mask, weights=problem.refit(H, mask))

    return (yield from solve_layers(task, options, "exact-obs", solve))


def removal_ranks(problem: LayerProblem, H: Tensor) -> Tensor:
    """Return when each weight goes, (out, d) float64: the lower the earlier; infinite for those that never do.

    Rows are independent: only the pattern's count ties them together, and `merged` shares it among them. For an n:m
    pattern m - n weights of each group have a rank, for blocks all weights of one block the same.

    Args:
        problem: The layer.
        H: Its damped Gram, (groups, d, d) float64.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H)).to(problem.weights.dtype)
    pattern = problem.pattern
    if isinstance(pattern, NofM | Block):
        return _unit_ranks(problem, inverse)
    out, d = problem.weights.shape
    owner = torch.arange(out, device=H.device) // (out // len(H))
    order, costs = [], []
    for rows in torch.split(torch.arange(out, device=H.device), max(1, BATCH_BYTES // (4 * d * d))):
        found = eliminate(inverse[owner[rows]], problem.weights[rows])
        order.append(found.order)
        costs.append(found.costs)
    ranks = merged(torch.cat(costs))
    return torch.empty_like(ranks).scatter_(1, torch.cat(order), ranks)


def merged(costs: Tensor) -> Tensor:
    """Return the place of each removal, from 0, in the order that costs the layer least.

    Within a row the order is fixed. With a row's total cost replaced by its lower convex envelope, the cheapest next
    removal over all rows is always the right one; where no row stops between two corners of its envelope (all but one
    row never do) that is the optimum over all ways to share the count. The paper takes the costs as they are, with a
    heap; as a cheap removal may hide behind a dear one, that is up to about 1 % above. Ties: the lower row.

    Args:
        costs: (rows, t), in the order of each row.

    Returns:
        (rows, t) float64, to be used as scores.
    """
    # Slopes rise along a row; rounding must not change that, or a row would skip a removal.
    slopes = envelope_slopes(costs.double()).cummax(1).values.reshape(-1)
    places = torch.empty_like(slopes)
    places[torch.argsort(slopes, stable=True)] = torch.arange(len(slopes), dtype=slopes.dtype, device=slopes.device)
    return places.view(costs.shape)


def envelope_slopes(costs: Tensor) -> Tensor:
    """Return the slopes of the lower convex envelope of each row's running sum, (rows, t) -> (rows, t).

    A monotone chain for all rows at once: a corner goes when the way to it is steeper than the way on.
    """
    rows, steps = costs.shape
    total = torch.cat([costs.new_zeros(rows, 1), costs.cumsum(1)], 1)
    corners = torch.zeros(rows, steps + 1, dtype=torch.long, device=costs.device)
    top = torch.zeros(rows, 1, dtype=torch.long, device=costs.device)
    for j in range(1, steps + 1):
        while True:
            last, before = corners.gather(1, top), corners.gather(1, (top - 1).clamp_min(0))
            reached = total.gather(1, last)
            there, on = reached - total.gather(1, before), total[:, j : j + 1] - reached
            steeper = (top > 0) & (there * (j - last) >= on * (last - before))
            if not bool(steeper.any()):
                break
            top = top - steeper.long()
        top = top + 1
        corners.scatter_(1, top, j)
    index = torch.arange(steps + 1, device=costs.device)
    corners = corners.masked_fill(index > top, 0)
    marked = torch.zeros_like(corners, dtype=torch.bool).scatter_(1, corners, True)
    left = torch.where(marked, index, 0).cummax(1).values[:, :-1]
    right = torch.where(marked, index, steps).flip(1).cummin(1).values.flip(1)[:, 1:]
    return (total.gather(1, right) - total.gather(1, left)) / (right - left)


def _unit_ranks(problem: LayerProblem, inverse: Tensor) -> Tensor:
    """Return the ranks of single weights under the limit of their group, or of whole blocks."""
    pattern, shape = problem.pattern, problem.layer.shape
    out, d = problem.weights.shape
    if isinstance(pattern, NofM):
        r, c, width, limit = 1, 1, pattern.m, pattern.m - pattern.n
    else:
        assert isinstance(pattern, Block)
        (r, c), limit = pattern.shape, 1
        width = c
    columns = sweep_order(shape, width)[: shape[1] // width * width * (d // shape[1])].to(inverse.device)
    units, group_size = columns.view(-1, c), width // c
    ranks = torch.full((out, d), torch.inf, dtype=torch.float64, device=inverse.device)
    blocks = out // r
    if not blocks or not len(units):
        return ranks
    rows = torch.arange(blocks * r, device=inverse.device).view(blocks, r)
    owner = rows // (out // len(inverse))
    # Rows that share a Gram share its inverse; a block that lies across convolution groups needs one for each row.
    joint = r if bool((owner != owner[:, :1]).any()) else 1
    order, costs = [], []
    for part in torch.split(torch.arange(blocks, device=inverse.device), max(1, BATCH_BYTES // (4 * d * d * joint))):
        start = inverse[owner[part][:, :joint].reshape(-1)]
        weights = problem.weights[rows[part]].view(len(start), r // joint, d)
        steps, prices = eliminate_units(start, weights, units, group_size=group_size, limit=limit, joint=joint)
        order.append(steps)
        costs.append(prices)
    there = torch.full((blocks, len(units)), torch.inf, dtype=torch.float64, device=inverse.device)
    there.scatter_(1, torch.cat(order), merged(torch.cat(costs)))
    spread = there[:, :, None].expand(-1, -1, c).reshape(blocks, 1, -1).expand(-1, r, -1)
    ranks[: blocks * r, columns] = spread.reshape(blocks * r, -1)
    return ranks
