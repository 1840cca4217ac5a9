"""The classical methods on the papers' two networks: accuracy, CPU seconds and memory beside the published columns.

Every method runs as a recipe would run it, with its default options, on one job's shared statistics; choices are made
on training images that are not among those the gradients were taken from. Test images are only measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from benchmarks.measure import Meter
from benchmarks.problems import Problem, mlpnet, resnet20
from benchmarks.tables import AUTHORS
from pruning_core.algorithms import REGISTRY, PruningTask, Selection, weights_of
from pruning_core.calibration import Dataset
from pruning_core.curvature import Layout
from pruning_core.evaluate import compare
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish

#: What runs on each network, in this order: the first to need a statistic pays for it.
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "MLPNet": {
        "magnitude": {},
        "obd": {},
        "woodfisher": {},
        "obs": {},
        "mfac": {},
        "cbs": {},
    },
    "ResNet20": {
        "magnitude": {},
        "woodfisher": {"samples": 250, "batch_size": 16, "ridge": None},
        "obs": {"samples": 250, "batch_size": 16},
    },
}
#: Accuracy % on MLPNet, from ALGORITHMS.md, section 2 (M-FAC and WoodFisher as published in the CHITA paper).
PUBLISHED: Mapping[tuple[str, str], Mapping[float, float]] = {
    ("MLPNet", "mfac"): {0.7: 93.66, 0.9: 91.31, 0.95: 84.27, 0.98: 36.79},
    ("MLPNet", "woodfisher"): {0.7: 93.69, 0.9: 91.22, 0.95: 84.99, 0.98: 38.63},
}
HELD_OUT = 250


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one sparsity with one seed.

    ``statistics`` are the CPU seconds before the first mask (what is shared counts for the first method that needs
    it), ``seconds`` those of this mask, ``memory`` the method's peak of resident bytes above what was there before.
    """

    network: str
    method: str
    sparsity: float
    seed: int
    accuracy: float
    statistics: float
    seconds: float
    memory: int
    chosen: str


def run(seeds: int = 3) -> list[Row]:
    """Measure every method on both networks."""
    makers: Mapping[str, Callable[[], Problem]] = {"MLPNet": mlpnet, "ResNet20": resnet20}
    rows = []
    for name, methods in METHODS.items():
        problem = makers[name]()
        for seed in range(seeds):
            job = task(problem, seed)
            for method, options in methods.items():
                rows += measure(problem, job, method, options)
                print(*rows[-len(problem.sparsities) :], sep="\n", flush=True)
    return rows


def task(problem: Problem, seed: int) -> PruningTask:
    """Return the job of one seed: the table's images to fit on, others held out."""
    layout = Layout(tuple(layer for layer in problem.network.layers if layer.name in problem.layers))
    calibration = problem.calibration(seed)
    return PruningTask(
        network=problem.network,
        calibration=calibration,
        held_out=_others(problem.calibration(seed + 10_000), calibration),
        layout=layout,
        weights=layout.flatten(problem.network.weights),
        seed=seed,
    )


def _others(data: Dataset, taken: Dataset) -> Dataset:
    """Return the first samples that are not among those taken."""
    known = {x.numpy().tobytes() for x in taken.inputs[0]}
    fresh = [i for i, x in enumerate(data.inputs[0][: 2 * HELD_OUT]) if x.numpy().tobytes() not in known]
    return data.subset(torch.tensor(fresh[:HELD_OUT]))


def measure(problem: Problem, job: PruningTask, method: str, options: Mapping[str, Any]) -> list[Row]:
    """Run one method at all sparsities of the table."""
    entry = REGISTRY[method]
    meter = Meter()
    select = finish(entry.run(job, entry.options.model_validate(options)))
    statistics = meter.seconds
    made: dict[float, tuple[Selection, float]] = {}
    for sparsity in problem.sparsities:
        started = time.process_time()
        pattern = Unstructured.of([job.layout.size], sparsity)
        selection = finish(select(pattern))
        made[sparsity] = (selection, time.process_time() - started)
        assert pattern.accepts(selection.mask)
    memory = meter.memory
    candidates = {str(sparsity): weights_of(job, selection) for sparsity, (selection, _) in made.items()}
    found = compare(job.network, candidates, problem.test)
    return [
        Row(
            network=problem.name,
            method=method,
            sparsity=sparsity,
            seed=job.seed,
            accuracy=100 * (found[str(sparsity)].accuracy or 0.0),
            statistics=statistics,
            seconds=seconds,
            memory=memory,
            chosen=str(selection.options.get("update", "")),
        )
        for sparsity, (selection, seconds) in made.items()
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables, one for each network."""
    lines: list[str] = []
    for network in dict.fromkeys(row.network for row in rows):
        part = [row for row in rows if row.network == network]
        methods = list(dict.fromkeys(row.method for row in part))
        sparsities = list(dict.fromkeys(row.sparsity for row in part))
        seeds = len({row.seed for row in part})
        lines += [
            f"### {network}",
            "",
            f"Accuracy % on the test images: mean of {seeds} seeds [lowest, highest]. In brackets behind: M-FAC's and "
            "WoodFisher's published figure, for magnitude the one of the authors' code. One shot, default options"
            + ("." if network == "MLPNet" else "; 250 rows of 16 images, WoodFisher's ridge by the rule.")
            + " Statistics: CPU s before the first mask; what methods share counts for the first of them.",
            "",
            "| method | "
            + " | ".join(f"{s:g}" for s in sparsities)
            + " | statistics s | s a mask (first, later) | MB |",
            "|---|" + "---|" * (len(sparsities) + 3),
        ]
        lines += [
            _line(network, method, [row for row in part if row.method == method], sparsities) for method in methods
        ]
        lines += ["", *_verdicts(network, part), ""]
    return "\n".join(lines)


def _line(network: str, method: str, rows: Sequence[Row], sparsities: Sequence[float]) -> str:
    cells = [method]
    for sparsity in sparsities:
        reached = [row.accuracy for row in rows if row.sparsity == sparsity]
        theirs = _theirs(network, method, sparsity)
        spread = f" [{min(reached):.2f}, {max(reached):.2f}]" if max(reached) > min(reached) else ""
        cells.append(f"{mean(reached):.2f}{spread}" + (f" ({theirs:.2f})" if theirs else ""))
    first = mean(row.seconds for row in rows if row.sparsity == sparsities[0])
    later = mean(row.seconds for row in rows if row.sparsity != sparsities[0])
    cells.append(f"{mean(row.statistics for row in rows):.2f}")
    cells.append(f"{first:.2f}, {later:.2f}")
    cells.append(f"{mean(row.memory for row in rows) / 1e6:.0f}")
    return "| " + " | ".join(cells) + " |"


def _theirs(network: str, method: str, sparsity: float) -> float | None:
    if method == "magnitude":
        return AUTHORS[network][sparsity]["MP"][0]
    return PUBLISHED.get((network, method), {}).get(sparsity)


def _verdicts(network: str, rows: Sequence[Row]) -> list[str]:
    """Say for each published figure whether it is reached."""
    lines = []
    for (where, method), figures in PUBLISHED.items():
        if where != network or method not in {row.method for row in rows}:
            continue
        for sparsity, figure in figures.items():
            own = mean(row.accuracy for row in rows if (row.method, row.sparsity) == (method, sparsity))
            word = "met" if own >= figure else f"missed by {figure - own:.2f}"
            lines.append(f"- {method} at {sparsity:g}: {own:.2f} against {figure:.2f}: {word}")
    return lines
