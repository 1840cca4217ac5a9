"""CHITA on the papers' two networks: accuracy, Q, seconds, memory, beside the authors' figures and a baseline.

The assets are looked for in $PRUNING_ASSETS, else in ../shared/assets. Solver time is CPU time of one thread, from
the gradients in our own storage to the weights; the baseline (``reference_chita``) runs on the same gradients in the
same run. Q is evaluated in float64, by one definition for all, with the ridge of the column.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean

import torch
from torch import Tensor

from benchmarks.measure import accuracy, measured
from benchmarks.problems import ROWS, Problem, mlpnet, resnet20
from benchmarks.reference_chita import ITERATIONS, TOLERANCE, reference_chita
from benchmarks.tables import AUTHORS
from pruning_core.algorithms.chita_curvature import free_first
from pruning_core.curvature import GradientRows, Layout, collect_columns, resolve_labels
from pruning_core.curvature.gram import BlockGram
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import (
    BlockQuadratic,
    LowRankModel,
    LowRankQuadratic,
    Refitter,
    solve_cardinality,
    swap_search,
)

COLUMNS = ("MP", "BSO", "LS", "CHITA", "swaps")
SWAPS = 20
#: Times faster than the authors' code, at least: column -> factor; and than one backward per sample: network -> factor.
FASTER = {"CHITA": 20.0, "LS": 1.2, "BSO": 4.0}
#: Bytes beyond G at most, as a part of G's.
MEMORY = 0.5
GRADIENTS_FASTER, GRADIENT_ERROR = {"MLPNet": 2.5, "ResNet20": 1.5}, 1e-5


def objective(columns: Tensor, move: Tensor, ridge: float) -> float:
    """Return Q in float64: columns (p, n), move w - w̄ (p,)."""
    residual = torch.zeros(columns.shape[1], dtype=torch.float64)
    for part in range(0, len(columns), 4096):
        residual += move[part : part + 4096].double() @ columns[part : part + 4096].double()
    return float(residual.square().sum() / (2 * len(residual)) + ridge / 2 * move.double().square().sum())


class Case:
    """One network with the gradients of one seed."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        network = problem.network
        self.layout = Layout(tuple(layer for layer in network.layers if layer.name in problem.layers))
        self.anchor = self.layout.flatten(network.weights)
        data = problem.calibration(seed)
        labels = resolve_labels(network, data, "auto", seed)
        self.rows = GradientRows(
            *(network, self.layout, data, labels), rows=ROWS, batch_size=problem.batch_size, seed=seed
        )
        started = time.process_time()
        self.columns = finish(collect_columns(self.rows)).values
        self.gradient_seconds = time.process_time() - started
        started = time.process_time()
        gram = BlockGram(self.layout.sizes, 500, network.device)
        for start in range(0, ROWS, 128):
            gram.add(self.columns[:, start : start + 128].T.contiguous())
        self.grams = gram.mean()
        self.gram_seconds = time.process_time() - started

    def accuracy(self, weights: Tensor) -> float:
        """Return per cent right on the test images."""
        return accuracy(self.problem.network, self.layout.split(weights), self.problem.test)

    def solve(self, column: str, k: int, ridge: float) -> Tensor:
        """Return the weights of one column of the table."""
        pattern = Unstructured((self.layout.size,), (k,))
        plain = pattern.keep(self.anchor.abs())
        zeros = torch.zeros_like(self.anchor)
        if column == "MP":
            return torch.where(plain, self.anchor, zeros)
        if column == "baseline":
            return reference_chita(self.columns.T.double(), self.anchor.double(), k, ridge).float()
        if column == "BSO":
            blocks = BlockQuadratic(self.grams, self.layout.sizes, self.anchor, ridge)
            return torch.cat(list(blocks.refit(plain)))
        if column == "LS":
            quadratic = LowRankQuadratic(self.columns, self.anchor, ridge)
            start = torch.where(plain, self.anchor, zeros)
            return Refitter(quadratic)(plain, start, quadratic.residual(start)).weights
        diagonal = torch.linalg.vector_norm(self.columns, dim=1).square_() / ROWS
        mask, anchor = free_first(self.anchor, diagonal, pattern)
        quadratic = LowRankQuadratic(self.columns, anchor, ridge)
        solution = finish(solve_cardinality(quadratic, pattern, mask))
        if column == "CHITA":
            return solution.value
        model = LowRankModel(quadratic, diagonal)
        start = model.refit(solution.mask, solution.value)
        return finish(swap_search(model, pattern, start, max_rounds=SWAPS)).weights


Row = tuple[float, float, float, int]  # accuracy, Q, seconds, bytes


def solve_all(case: Case, *, baseline: bool) -> Iterator[tuple[float, str, Row]]:
    """Yield (sparsity, column, what was measured) for every cell of the table."""
    ridges = case.problem.ridges
    for sparsity in case.problem.sparsities:
        k = math.floor(round((1 - sparsity) * case.layout.size, 6))
        for column in (*COLUMNS, *(("baseline",) if baseline else ())):
            ridge = ridges.get(column, ridges["CHITA"])
            run = measured(partial(case.solve, column, k, ridge))
            assert int((run.value != 0).sum()) <= k
            q = objective(case.columns, run.value - case.anchor, ridge)
            row = (case.accuracy(run.value), q, run.seconds, run.memory)
            print(case.problem.name, sparsity, column, *(f"{value:.5g}" for value in row), flush=True)
            yield sparsity, column, row


def table(problem: Problem, seeds: int, baseline_seeds: int) -> list[str]:
    """Run every column at every sparsity; return the table's lines."""
    found: dict[tuple[float, str], list[Row]] = {}
    gradient, gram, p = [], [], 0
    for seed in range(seeds):
        case = Case(problem, seed)
        p = case.layout.size
        gradient.append(case.gradient_seconds)
        gram.append(case.gram_seconds)
        for sparsity, column, row in solve_all(case, baseline=seed < baseline_seeds):
            found.setdefault((sparsity, column), []).append(row)
        del case
    lines = [
        f"### {problem.name}: p = {p}, n = {ROWS}, B = {problem.batch_size}",
        "",
        f"λ: {', '.join(f'{c} {r:g}' for c, r in problem.ridges.items())}. Accuracy: mean over {seeds} seeds of the "
        f"sample choice [lowest, highest]; Q and seconds of seed 0 beside the baseline of the same run. Gradients: "
        f"{mean(gradient):.1f} s for {ROWS} rows; block Grams, once for all sparsities: {mean(gram):.1f} s.",
        "",
        "| sparsity | column | accuracy % | authors' | Q | authors' | solver s | authors' s | times faster than theirs "
        "| than the baseline | MB | bar |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    room = MEMORY * 4 * ROWS * p
    for (sparsity, column), runs in found.items():
        lines.append(_line(problem.name, sparsity, column, runs, found.get((sparsity, "baseline")), room))
    return [*lines, ""]


def _line(network: str, sparsity: float, column: str, runs: list, baseline: list | None, room: float) -> str:
    theirs = (*AUTHORS[network][sparsity].get(column, ()), None, None, None)[:3]
    accuracies = [run[0] for run in runs]
    _, q, seconds, memory = runs[0]
    cells = [
        f"{sparsity:g}",
        column,
        f"{mean(accuracies):.2f} [{min(accuracies):.2f}, {max(accuracies):.2f}]",
        _number(theirs[0], ".2f"),
        f"{q:.5f}",
        _number(theirs[2], ".5f"),
        f"{seconds:.3f}",
        _number(theirs[1], "g"),
        _number(theirs[1] / seconds if theirs[1] and column != "MP" else None, ".0f"),
        _number(baseline[0][2] / seconds if baseline and column == "CHITA" else None, ".0f"),
        f"{memory / 1e6:.0f}",
        _verdict(column, runs[0], theirs, baseline, room),
    ]
    return "| " + " | ".join(cells) + " |"


def _verdict(column: str, run: Row, theirs: tuple, baseline: list | None, room: float) -> str:
    """Say whether a solver is as fast and lean as it should be, at a Q no higher than the slow one's."""
    _, q, seconds, memory = run
    if column not in FASTER or theirs[1] is None:
        return "–"
    short = []
    if theirs[1] / seconds < FASTER[column]:
        short.append(f"{theirs[1] / seconds:.1f} times faster, not {FASTER[column]:g}")
    if memory > room:
        short.append(f"{memory / 1e6:.0f} MB, not {room / 1e6:.0f}")
    if column == "CHITA" and baseline and q > baseline[0][1]:
        short.append("Q above the baseline's")
    return "not met: " + "; ".join(short) if short else "met"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def gradients(problem: Problem, count: int) -> str:
    """Compare per-sample gradients with one backward per sample."""
    layout = Layout(tuple(layer for layer in problem.network.layers if layer.name in problem.layers))
    data = problem.calibration(0).subset(slice(count))
    labels = resolve_labels(problem.network, data, "auto", 0)
    seconds, blocks = {True: math.inf, False: math.inf}, {}
    for vectorised in (True, False) * 3:
        rows = GradientRows(problem.network, layout, data, labels, rows=count, batch_size=1, seed=0)
        rows.vectorised = vectorised
        started = time.process_time()
        last = deque(rows, maxlen=1)[0]
        seconds[vectorised] = min(seconds[vectorised], time.process_time() - started)
        blocks[vectorised] = last.clone()
    error = float((blocks[True] - blocks[False]).norm() / blocks[False].norm())
    ratio = seconds[False] / seconds[True]
    bar = GRADIENTS_FASTER[problem.name]
    verdict = f"met (≥ {bar:g})" if ratio >= bar and error <= GRADIENT_ERROR else f"not met (≥ {bar:g})"
    times = f"{seconds[True]:.2f} | {seconds[False]:.2f}"
    return f"| {problem.name} | {count} | {times} | {ratio:.1f} | {error:.1e} | {verdict} |"


def run(networks: Sequence[str] = ("MLPNet", "ResNet20"), seeds: int = 3, baseline_seeds: int = 1) -> list[str]:
    """Measure every table; return its lines."""
    torch.set_num_threads(1)
    makers = {"MLPNet": mlpnet, "ResNet20": resnet20}
    lines = [
        "Columns as in the CHITA paper: MP magnitude, BSO block refit and LS global refit of the magnitude mask, CHITA "
        "the whole solver, *swaps* with the swap search after it; *baseline*: `reference_chita.py`, the paper's "
        "algorithm written plainly in float64. "
        "Authors' figures: their code on a machine of the same kind, other draws of the samples; no figure where none "
        "was recorded. MB: peak of resident memory beyond what the process held before the solve (Gᵀ is held). The "
        "baseline stops after "
        f"{ITERATIONS} steps or a relative fall of {TOLERANCE}, and its seconds include converting the gradients to "
        "float64.",
        "",
    ]
    for name in networks:
        lines += table(makers[name](), seeds, baseline_seeds)
    lines += [
        "### Per-sample gradients",
        "",
        "CPU seconds, best of three; error: relative difference over the last block of rows.",
        "",
    ]
    lines += [
        "| network | samples | ours s | one backward each s | times faster | error | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [gradients(makers[name](), 256 if name == "ResNet20" else 1000) for name in networks]
    lines.append("")
    return lines


def markdown(lines: Sequence[str]) -> str:
    """Return the section of what `run` measured."""
    return "\n".join(lines)
