"""CHITA as a job runs it (every choice on held-out data), one-shot and multi-stage: accuracy against the bars.

A seed draws which train images serve as calibration and which are held out for the choices (ridge, structure,
first-order step); test images are only measured on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from benchmarks.measure import accuracy
from benchmarks.problems import Problem, mlpnet, resnet20
from benchmarks.tables import BARS, MULTI_STAGE
from pruning_core.algorithms import PruningTask
from pruning_core.algorithms.chita import Options
from pruning_core.algorithms.chita import run as chita
from pruning_core.curvature import Layout
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish


@dataclass(frozen=True, kw_only=True)
class Method:
    """Options, calibration samples, and the sparsities to measure at."""

    options: Mapping[str, Any]
    samples: int
    sparsities: tuple[float, ...]


_STAGES: Mapping[str, Any] = {"stages": 15, "samples": 1000, "batch_size": 50, "swaps": 5, "max_rounds": 5}
#: Of the paper's kind: a new mask by refit alone.
_REFIT: Mapping[str, Any] = {**_STAGES, "structure": "global", "swaps": 0, "max_rounds": 0}
METHODS: Mapping[str, Mapping[str, Method]] = {
    "MLPNet": {
        "one shot, n = 1000": Method(
            options={"samples": 1000, "batch_size": 1}, samples=1000, sparsities=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
        ),
        "one shot, defaults": Method(options={}, samples=10_000, sparsities=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98)),
        "multi-stage BSO": Method(options={**_STAGES, "structure": "block"}, samples=50_000, sparsities=(0.98, 0.95)),
        "LS++, B = 10": Method(options={**_REFIT, "batch_size": 10}, samples=50_000, sparsities=(0.98, 0.95)),
        "LS++": Method(options=_REFIT, samples=50_000, sparsities=(0.98, 0.95)),
        "CHITA++": Method(options={**_STAGES, "structure": "global"}, samples=50_000, sparsities=(0.98, 0.95)),
    },
    "ResNet20": {
        "one shot": Method(
            options={"samples": 1000, "batch_size": 16, "structure": "block", "swaps": 10},
            samples=16_000,
            sparsities=(0.8, 0.9, 0.7, 0.6, 0.5),
        ),
        "multi-stage BSO": Method(
            options={"stages": 8, "samples": 250, "batch_size": 16, "structure": "block", "swaps": 5},
            samples=16_000,
            sparsities=(0.7, 0.9),
        ),
    },
}
MAKERS = {"MLPNet": mlpnet, "ResNet20": resnet20}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: its accuracy on the test images in per cent, and the CPU seconds of one thread it took.

    ``shared`` are the seconds of the statistics, which serve every level of a one-shot run.
    """

    network: str
    method: str
    sparsity: float
    seed: int
    accuracy: float
    seconds: float
    shared: float
    chosen: Mapping[str, Any]


def run(seeds: int = 3) -> list[Row]:
    """Measure every method on both networks."""
    rows = []
    for network, methods in METHODS.items():
        problem = MAKERS[network]()
        for name, method in methods.items():
            for seed in range(seeds):
                for row in measure(problem, name, method, seed):
                    rows.append(row)
                    print(row, flush=True)
    return rows


def measure(problem: Problem, name: str, method: Method, seed: int) -> Iterator[Row]:
    """Yield the rows of one method and seed."""
    network = problem.network
    layout = Layout(tuple(layer for layer in network.layers if layer.name in problem.layers))
    fit, held_out = problem.parts(seed, method.samples)
    task = PruningTask(
        network=network,
        calibration=fit,
        held_out=held_out,
        layout=layout,
        weights=layout.flatten(network.weights),
        seed=seed,
    )
    options = Options(**method.options)
    started = time.process_time()
    select = finish(chita(task, options))
    shared = time.process_time() - started
    for sparsity in method.sparsities:
        kept = math.floor(round((1 - sparsity) * layout.size, 6))
        pattern = Unstructured((layout.size,), (kept,))
        started = time.process_time()
        selection = finish(select(pattern))
        seconds = time.process_time() - started
        assert pattern.accepts(selection.mask)
        assert selection.weights is not None
        weights = torch.where(selection.mask, selection.weights, 0.0)
        yield Row(
            network=problem.name,
            method=name,
            sparsity=sparsity,
            seed=seed,
            accuracy=accuracy(network, layout.split(weights), problem.test),
            seconds=seconds,
            shared=shared,
            chosen={key: selection.options[key] for key in ("structure", "ridge", "samples", "batch_size")},
        )


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables: mean and spread over the seeds beside the bars and the authors' figures."""
    lines = [
        "Ridge, structure and first-order step chosen on held-out train images; accuracy on the test images: mean over "
        "the seeds [lowest, highest]. Seconds: CPU, one thread; *shared* serves all sparsities of a one-shot run. "
        "Bars are for the best method of their kind: they stand in its row, and where others meet them, too.",
        "",
    ]
    for network, methods in METHODS.items():
        mine = [row for row in rows if row.network == network]
        if not mine:
            continue
        lines += [
            f"### {network}",
            "",
            "| method | sparsity | seeds | accuracy % | authors' best | bar | | shared s | s | structure chosen |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for method in methods:
            for sparsity in sorted(methods[method].sparsities):
                found = [row for row in mine if (row.method, row.sparsity) == (method, sparsity)]
                if found:
                    rivals = [row for row in mine if (_kind(row.method), row.sparsity) == (_kind(method), sparsity)]
                    lines.append(_line(network, method, sparsity, found, method == _best(rivals)))
        lines.append("")
    return "\n".join(lines)


def _kind(method: str) -> str:
    return "one shot" if method.startswith("one shot") else "multi-stage"


def _best(rows: Sequence[Row]) -> str:
    """Return the method with the highest mean accuracy."""
    methods = dict.fromkeys(row.method for row in rows)
    return max(methods, key=lambda method: mean(row.accuracy for row in rows if row.method == method))


def _line(network: str, method: str, sparsity: float, rows: Sequence[Row], best_of_kind: bool) -> str:
    accuracies, kind = [row.accuracy for row in rows], _kind(method)
    bar = BARS[network][kind].get(sparsity)
    if bar is not None and mean(accuracies) < bar and not best_of_kind:
        bar = None
    theirs = MULTI_STAGE[network].get(sparsity, {}) if kind == "multi-stage" else {}
    best = max(theirs.items(), key=lambda item: item[1], default=None)
    verdict = "–" if bar is None else "met" if mean(accuracies) >= bar else f"short by {bar - mean(accuracies):.1f}"
    cells = [
        method,
        f"{sparsity:g}",
        str(len(rows)),
        f"{mean(accuracies):.2f} [{min(accuracies):.2f}, {max(accuracies):.2f}]",
        "–" if best is None else f"{best[1]:.2f} ({best[0]})",
        "–" if bar is None else f"{bar:g}",
        verdict,
        f"{mean(row.shared for row in rows):.0f}",
        f"{mean(row.seconds for row in rows):.0f}",
        ", ".join(sorted({str(row.chosen["structure"]) for row in rows})),
    ]
    return "| " + " | ".join(cells) + " |"
