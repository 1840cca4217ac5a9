"""How CHITA's solvers grow: CPU time and memory against the weights p and the gradient rows n.

Random problems, Gaussian rows of decaying scale, sparsity 0.8, λ = 0.1 of the mean diagonal. Memory is the peak of
resident memory beyond what the process held before the solve; the statistics themselves (Gᵀ, or the blocks) are held
and listed beside. The exponents are least-squares slopes in log-log coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import measured
from pruning_core.curvature import BlockGram
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import (
    BlockModel,
    BlockQuadratic,
    LowRankModel,
    LowRankQuadratic,
    Refitter,
    solve_cardinality,
    swap_search,
)

WEIGHTS, ROWS = (25_000, 50_000, 100_000, 200_000), (125, 250, 500, 1000)
FIXED_WEIGHTS, FIXED_ROWS, BLOCK, SWAPS = 100_000, 500, 500, 5
SPARSITY, RELATIVE_RIDGE = 0.8, 0.1
SOLVERS = ("IHT and refit", "refit of the magnitude mask", "swap search", "blocks", "blocks with swaps")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One solve: CPU seconds, bytes beyond the statistics, and the bytes of the statistics."""

    solver: str
    weights: int
    rows: int
    seconds: float
    memory: int
    statistics: int


def run(weights: Sequence[int] = WEIGHTS, rows: Sequence[int] = ROWS) -> list[Row]:
    """Measure every solver along both axes."""
    torch.set_num_threads(1)
    sizes = [(p, FIXED_ROWS) for p in weights] + [(FIXED_WEIGHTS, n) for n in rows if n != FIXED_ROWS]
    found = []
    for p, n in sizes:
        for row in _solves(p, n):
            print(row, flush=True)
            found.append(row)
    return found


def _solves(p: int, n: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(p, n, generator=generator) / torch.arange(1, n + 1).sqrt()
    anchor = torch.randn(p, generator=generator)
    diagonal = columns.square().mean(1)
    pattern = Unstructured((p,), (round((1 - SPARSITY) * p),))
    mask = pattern.keep(anchor.abs())
    ridge = RELATIVE_RIDGE * float(diagonal.mean())
    quadratic = LowRankQuadratic(columns, anchor, ridge)
    begun = LowRankModel(quadratic, diagonal)
    gram = BlockGram((p,), BLOCK, columns.device)
    gram.add(columns.T.contiguous())
    blocks = gram.mean()
    block = BlockModel(BlockQuadratic(blocks, (p,), anchor, ridge), diagonal)

    def refit() -> Tensor:
        weights = torch.where(mask, anchor, torch.zeros_like(anchor))
        return Refitter(quadratic)(mask, weights, quadratic.residual(weights)).weights

    def solve() -> Tensor:
        return finish(solve_cardinality(quadratic, pattern, mask)).value

    def swaps(model: LowRankModel | BlockModel) -> Tensor:
        return finish(swap_search(model, pattern, model.refit(mask), max_rounds=SWAPS)).weights

    stored, square = columns.nbytes, sum(part.nbytes for part in blocks)
    runs: dict[str, tuple[Callable[[], Tensor], int]] = {
        "IHT and refit": (solve, stored),
        "refit of the magnitude mask": (refit, stored),
        "swap search": (partial(swaps, begun), stored),
        "blocks": (lambda: block.refit(mask).weights, square),
        "blocks with swaps": (partial(swaps, block), square),
    }
    return [
        Row(solver=name, weights=p, rows=n, seconds=done.seconds, memory=done.memory, statistics=statistics)
        for name, (call, statistics) in runs.items()
        for done in [measured(call)]
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Return the two curves of every solver, with their exponents."""
    lines = [
        f"Sparsity {SPARSITY}; blocks of {BLOCK}; {SWAPS} rounds of swaps, which include the first refit. MB: beyond "
        "the statistics.",
        "",
    ]
    for axis, fixed in (("weights", f"n = {FIXED_ROWS}"), ("rows", f"p = {FIXED_WEIGHTS}")):
        part = [row for row in rows if (row.rows == FIXED_ROWS if axis == "weights" else row.weights == FIXED_WEIGHTS)]
        values = sorted({getattr(row, axis) for row in part})
        name = "p" if axis == "weights" else "n"
        lines += [
            f"### Against {name}, {fixed}",
            "",
            f"| solver | {' | '.join(f'{name} = {value}' for value in values)} | time grows as | statistics MB |",
            "|---" * (len(values) + 3) + "|",
        ]
        for solver in SOLVERS:
            mine = sorted((row for row in part if row.solver == solver), key=lambda row: getattr(row, axis))
            if not mine:
                continue
            cells = [f"{row.seconds:.3f} s, {row.memory / 1e6:.0f} MB" for row in mine]
            slope = _slope([getattr(row, axis) for row in mine], [row.seconds for row in mine])
            sizes = " to ".join(f"{row.statistics / 1e6:.0f}" for row in (mine[0], mine[-1]))
            lines.append(f"| {solver} | {' | '.join(cells)} | {name}^{slope:.2f} | {sizes} |")
        lines.append("")
    return "\n".join(lines)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) < 2:
        return math.nan
    a, b = torch.tensor(x).double().log(), torch.tensor(y).double().log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())
