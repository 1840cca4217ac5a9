"""The layer-wise algorithms side by side: ResNet20, and a small vision transformer that is trained here.

Every algorithm runs as a recipe would run it, with its default options, on one job's shared Grams; a seed draws the
calibration images. Test images are only measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.measure import Meter, accuracy
from benchmarks.problems import resnet20
from benchmarks.small_vit import small_vit
from pruning_core.algorithms import REGISTRY, PruningTask, Selection
from pruning_core.calibration import Dataset
from pruning_core.curvature import Layout
from pruning_core.network import Network
from pruning_core.patterns import Fixed, NofM, Pattern, Unstructured
from pruning_core.pipeline import finish

SAMPLES = 512
#: Algorithm, options, and whether it is only to re-fit magnitude's mask.
METHODS: Mapping[str, tuple[str, Mapping[str, Any], bool]] = {
    "magnitude": ("magnitude", {}, False),
    "magnitude, re-fitted": ("alps", {}, True),
    "wanda": ("wanda", {}, False),
    "sparsegpt": ("sparsegpt", {}, False),
    "sparsegpt, pruned inputs": ("sparsegpt", {"inputs": "pruned"}, False),
    "alps": ("alps", {}, False),
    "exact-obs": ("exact-obs", {}, False),
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A trained network, its unlabelled calibration images by seed, its test images, and the patterns to ask for."""

    name: str
    network: Network
    layers: tuple[str, ...]
    calibration: Callable[[int], Dataset]
    test: Dataset
    scope: str
    sparsities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one level with one seed.

    ``error`` is the relative squared error of a layer's outputs on the calibration images, mean over layers (NaN for
    magnitude, which looks at no data); ``statistics`` the CPU seconds before the first mask (what is shared counts for
    the first method that needs it); ``seconds`` those of this level; ``memory`` the peak of resident bytes above what
    was there before, statistics and all levels so far together.
    """

    network: str
    method: str
    level: str
    accuracy: float
    seed: int = 0
    error: float = 0.0
    statistics: float = 0.0
    seconds: float = 0.0
    memory: int = 0


def run(seeds: int = 3) -> list[Row]:
    """Measure every method on both networks; the dense accuracy is the level ``'dense'``."""
    makers: Mapping[str, Callable[[], Problem]] = {"ResNet20": _resnet, "ViT": vit}
    rows: list[Row] = []
    for name, make in makers.items():
        problem = make()
        layout = Layout(tuple(layer for layer in problem.network.layers if layer.name in problem.layers))
        weights = layout.flatten(problem.network.weights)
        dense = accuracy(problem.network, layout.split(weights), problem.test)
        rows.append(Row(network=name, method="dense", level="dense", accuracy=dense))
        for seed in range(seeds):
            data = problem.calibration(seed)
            job = PruningTask(
                network=problem.network,
                calibration=data,
                held_out=data,
                layout=layout,
                weights=weights,
                seed=seed,
            )
            for method in METHODS:
                if seed and method == "magnitude":
                    continue  # looks at no data: the same with every seed
                for row in measure(problem, job, method, seed):
                    rows.append(row)
                    print(
                        f"{name} {seed} {method} {row.level}: {row.accuracy:.2f} %, error {row.error:.5f}, "
                        f"{row.statistics:.1f} + {row.seconds:.2f} s",
                        flush=True,
                    )
    return rows


def levels(problem: Problem, layout: Layout) -> dict[str, Pattern]:
    """Return the patterns of the table by name."""
    made: dict[str, Pattern] = {
        f"{s:g}": Unstructured.of(layout.sizes, s, scope=problem.scope) for s in problem.sparsities
    }
    return {**made, "2:4": NofM(tuple(layer.shape for layer in layout.layers), 2, 4)}


def measure(problem: Problem, job: PruningTask, method: str, seed: int) -> Iterator[Row]:
    """Run one method at every level, and test what it gives."""
    name, options, only_refit = METHODS[method]
    entry = REGISTRY[name]
    meter = Meter()
    select = finish(entry.run(job, entry.options.model_validate(options)))
    statistics = meter.seconds
    found: list[tuple[str, Selection, float, int]] = []
    for level, pattern in levels(problem, job.layout).items():
        asked = Fixed(pattern.keep(job.weights.abs())) if only_refit else pattern
        started = time.process_time()
        selection: Selection = finish(select(asked))
        seconds = time.process_time() - started
        if not pattern.accepts(selection.mask):
            raise AssertionError(f"{method} does not meet the pattern {level}")
        found.append((level, selection, seconds, meter.memory))
    for level, selection, seconds, memory in found:
        values = job.weights if selection.weights is None else selection.weights
        pruned = torch.where(selection.mask, values, torch.zeros_like(values))
        yield Row(
            network=problem.name,
            method=method,
            level=level,
            seed=seed,
            accuracy=accuracy(problem.network, job.layout.split(pruned), problem.test),
            error=selection.objective.get("end", float("nan")),
            statistics=statistics,
            seconds=seconds,
            memory=memory,
        )


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables: a line for each method, a column for each level."""
    lines = [
        f"{SAMPLES} unlabelled calibration images, default options, dense inputs where not said otherwise. Accuracy %: "
        "mean over seeds ± standard deviation; *error*: relative squared error of a layer's outputs on the calibration "
        "images, %, mean over layers; *s*: CPU seconds of the level on one thread. *statistics s*: before the first "
        "level (the Grams are shared: the first method that needs them pays; exact-obs makes its trace at its first "
        "level, further sparsities come from the same trace). *MB*: peak of resident memory above what was there "
        "before. ResNet20: one ranking of |w| over all layers gives each layer its count; ViT: the same sparsity in "
        "each layer.",
        "",
    ]
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        dense = next(row.accuracy for row in own if row.level == "dense")
        named = [level for level in dict.fromkeys(row.level for row in own) if level != "dense"]
        seeds = 1 + max(row.seed for row in own)
        lines += [f"### {network} (dense {dense:.2f} %; {seeds} seeds)", ""]
        lines += [
            "| method | " + " | ".join(f"{level}: acc, error, s" for level in named) + " | statistics s | MB |",
            "|---|" + "---|" * (len(named) + 2),
        ]
        for method in METHODS:
            mine = [row for row in own if row.method == method]
            cells = [_cell([row for row in mine if row.level == level]) for level in named]
            memory = max(row.memory for row in mine) / 1e6
            statistics = mean(row.statistics for row in mine)
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {statistics:.1f} | {memory:.0f} |")
        lines.append("")
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    values = [row.accuracy for row in rows]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    error = mean(row.error for row in rows)
    shown = "–" if error != error else f"{100 * error:.2f}"
    return f"{mean(values):.2f}{spread}, {shown}, {mean(row.seconds for row in rows):.2f}"


def _resnet() -> Problem:
    given = resnet20()

    def calibration(seed: int) -> Dataset:
        return Dataset(inputs=given.calibration(seed).subset(slice(0, SAMPLES)).inputs, labels=None)

    return Problem(
        name="ResNet20",
        network=given.network,
        layers=given.layers,
        calibration=calibration,
        test=given.test,
        scope="global",
        sparsities=(0.7, 0.8, 0.9),
    )


def vit() -> Problem:
    network, train, test = small_vit()

    def calibration(seed: int) -> Dataset:
        index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
        return Dataset(inputs=train.subset(index).inputs, labels=None)

    return Problem(
        name="ViT",
        network=network,
        layers=tuple(layer.name for layer in network.layers),
        calibration=calibration,
        test=test,
        scope="layer",
        sparsities=(0.5, 0.7, 0.8),
    )
