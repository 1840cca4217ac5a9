"""Gradual select-refine: the whole curve from one run, and N:M, on ResNet20; and beside others on a small transformer.

A seed draws the calibration images (random crop and flip, no labels): FIT of them are fitted to, HELD_OUT more serve
the choices (whether and how far the global step goes). Test images are only measured on. Default options.
Seconds are CPU seconds of one thread, from the dense network on, cumulated over the levels of one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor

from benchmarks.layerwise import vit
from benchmarks.measure import Meter, accuracy
from benchmarks.problems import inner_convolutions, resnet20
from pruning_core.algorithms import REFINERS, REGISTRY, PruningTask, Selection, gradual
from pruning_core.calibration import Dataset
from pruning_core.curvature import Layout
from pruning_core.network import Network
from pruning_core.patterns import NofM, Pattern, Unstructured
from pruning_core.pipeline import finish

FIT, HELD_OUT = 1024, 256
PARTS = ("unstructured", "n:m", "ViT")
SPARSITIES = (0.6, 0.7, 0.8, 0.9, 0.95)
#: Test accuracy % to reach, mean over seeds, and CPU seconds of the whole curve (ALGORITHMS, section 3).
BARS: Mapping[str, float] = {"0.6": 91.0, "0.7": 90.5, "0.8": 89.5, "0.9": 84.0, "0.95": 68.0, "1:4": 88.5}
STRETCH: Mapping[str, float] = {"0.9": 86.0}
SECONDS = 300.0
#: The best figures known before (one seed), and those of the authors' SNOWS from a magnitude mask.
BEFORE: Mapping[str, float] = {"0.8": 90.2, "0.9": 84.4, "0.95": 69.3, "2:4": 91.7, "1:4": 88.8}
SNOWS: Mapping[str, float] = {"0.7": 89.5, "0.8": 85.9, "0.9": 27.2, "2:4": 91.3, "1:4": 80.1}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One level of one run.

    ``seconds``: CPU seconds since the run began. ``memory``: peak of resident bytes above what was there before it.
    """

    part: str
    method: str
    level: str
    seed: int
    accuracy: float
    seconds: float
    memory: int


def run(seeds: int = 3) -> list[Row]:
    """Measure; the dense accuracies are the method ``'dense'``."""
    rows: list[Row] = []
    for part in PARTS:
        for row in _transformer(seeds) if part == "ViT" else _resnet(part, seeds):
            rows.append(row)
            print(row, flush=True)
    return rows


def _resnet(part: str, seeds: int) -> Iterator[Row]:
    problem = resnet20()
    network = problem.network
    layout = Layout(inner_convolutions(network) if part == "n:m" else network.layers)
    shapes = tuple(layer.shape for layer in layout.layers)
    if part == "n:m":
        patterns: dict[str, Pattern] = {"2:4": NofM(shapes, 2, 4), "1:4": NofM(shapes, 1, 4)}
    else:
        patterns = {f"{s:g}": Unstructured.of(layout.sizes, s) for s in SPARSITIES}
    weights = layout.flatten(network.weights)
    dense = accuracy(network, layout.split(weights), problem.test)
    yield Row(part=part, method="dense", level="dense", seed=0, accuracy=dense, seconds=0, memory=0)
    for seed in range(seeds):
        images = problem.calibration(seed).inputs[0]
        fit, held_out = images[:FIT].clone(), images[FIT : FIT + HELD_OUT].clone()
        del images
        task = _task(network, layout, fit, held_out, seed)
        yield from _levels(part, "gradual", task, patterns, problem.test)


def _transformer(seeds: int) -> Iterator[Row]:
    problem = vit()
    layout = Layout(problem.network.layers)
    shapes = tuple(layer.shape for layer in layout.layers)
    patterns: dict[str, Pattern] = {f"{s:g}": Unstructured.of(layout.sizes, s) for s in (0.7, 0.8, 0.9)}
    patterns |= {"2:4": NofM(shapes, 2, 4), "1:4": NofM(shapes, 1, 4)}
    weights = layout.flatten(problem.network.weights)
    dense = accuracy(problem.network, layout.split(weights), problem.test)
    yield Row(part="ViT", method="dense", level="dense", seed=0, accuracy=dense, seconds=0, memory=0)
    for seed in range(seeds):
        images = problem.calibration(seed).inputs[0]
        aside = len(images) // 5
        task = _task(problem.network, layout, images[aside:], images[:aside], seed)
        for method in ("magnitude", "snows", "gradual"):
            if seed == 0 or method != "magnitude":
                yield from _levels("ViT", method, task, patterns, problem.test)


def _task(network: Network, layout: Layout, fit: Tensor, held_out: Tensor, seed: int) -> PruningTask:
    return PruningTask(
        network=network,
        calibration=Dataset(inputs=(fit,), labels=None),
        held_out=Dataset(inputs=(held_out,), labels=None),
        layout=layout,
        weights=layout.flatten(network.weights),
        seed=seed,
    )


def _levels(part: str, method: str, task: PruningTask, patterns: Mapping[str, Pattern], test: Dataset) -> Iterator[Row]:
    """Run all levels, sparser ones later, then test; ``'snows'`` re-fits the magnitude mask."""
    meter = Meter()
    name = "gradual" if method == "gradual" else "magnitude"
    select = finish(REGISTRY[name].run(task, REGISTRY[name].options()))
    found: list[tuple[str, Selection, float, int]] = []
    for level, pattern in patterns.items():
        selection: Selection = finish(select(pattern))
        if method == "snows":
            selection = finish(REFINERS["snows"].run(task, REFINERS["snows"].options(), selection))
        if not pattern.accepts(selection.mask):
            raise AssertionError(f"{method} does not meet the pattern {level}")
        found.append((level, selection, meter.seconds, meter.memory))
        print(part, method, level, f"{meter.seconds:.1f} s", *selection.notes[-1:], flush=True)
    for level, selection, seconds, memory in found:
        values = task.weights if selection.weights is None else selection.weights
        pruned = torch.where(selection.mask, values, torch.zeros_like(values))
        yield Row(
            part=part,
            method=method,
            level=level,
            seed=task.seed,
            accuracy=accuracy(task.network, task.layout.split(pruned), test),
            seconds=seconds,
            memory=memory,
        )


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables, with each bar and whether it is met."""
    options = gradual.Options()
    lines = [
        f"{FIT} unlabelled calibration images with crop and flip, and {HELD_OUT} held out for choices; default options "
        f"(global step: {options.joint_steps} steps at 0.9). Accuracy %: mean over seeds ± standard deviation; *s*: "
        "CPU seconds of one thread since the run began: one run gives the whole curve. *MB*: peak of resident memory "
        "above what was there before. Unstructured: all prunable weights are pruned and counted, the shortcuts' 1×1 "
        "convolutions too; n:m: the layers of SNOWS' table, the 3×3 convolutions but the stem.",
        "",
    ]
    for part in dict.fromkeys(row.part for row in rows):
        own = [row for row in rows if row.part == part]
        lines += [*(_compared(own) if part == "ViT" else _curve(part, own)), ""]
    return "\n".join(lines)


def _curve(part: str, rows: Sequence[Row]) -> list[str]:
    dense = next(row.accuracy for row in rows if row.method == "dense")
    found = [row for row in rows if row.method == "gradual"]
    levels = dict.fromkeys(row.level for row in found)
    lines = [
        f"### ResNet20, {part} (dense {dense:.2f} %; {len({row.seed for row in found})} seeds)",
        "",
        "| level | accuracy | bar | | best before (one seed) | authors' SNOWS | s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for level in levels:
        mine = [row for row in found if row.level == level]
        middle = mean(row.accuracy for row in mine)
        cells = [
            level,
            _spread([row.accuracy for row in mine]),
            f"{BARS[level]:g}" if level in BARS else "–",
            _verdict(middle, BARS[level]) if level in BARS else "–",
            f"{BEFORE[level]:g}" if level in BEFORE else "–",
            f"{SNOWS[level]:g}" if level in SNOWS else "–",
            f"{mean(row.seconds for row in mine):.0f}",
            f"{max(row.memory for row in mine) / 1e6:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        if level in STRETCH:
            lines.append(f"| | | {STRETCH[level]:g} (stretch) | {_verdict(middle, STRETCH[level])} | | | | |")
    if part == "unstructured":
        last = list(levels)[-1]
        seconds = mean(row.seconds for row in found if row.level == last)
        verdict = "met" if seconds < SECONDS else f"missed by {seconds - SECONDS:.0f} s"
        lines += ["", f"Whole curve in under {SECONDS:g} CPU s: {seconds:.0f} s, {verdict}."]
    return lines


def _compared(rows: Sequence[Row]) -> list[str]:
    dense = next(row.accuracy for row in rows if row.method == "dense")
    found = [row for row in rows if row.method != "dense"]
    levels = list(dict.fromkeys(row.level for row in found))
    lines = [
        f"### A transformer trained here on MNIST (dense {dense:.2f} %; {len({row.seed for row in found})} seeds)",
        "",
        "512 unlabelled images, a fifth of them held out. *snows*: magnitude's mask, re-fitted.",
        "",
        "| method | " + " | ".join(levels) + " | s | MB |",
        "|---|" + "---|" * (len(levels) + 2),
    ]
    for method in dict.fromkeys(row.method for row in found):
        mine = [row for row in found if row.method == method]
        cells = [_spread([row.accuracy for row in mine if row.level == level]) for level in levels]
        seconds = mean(row.seconds for row in mine if row.level == levels[-1])
        memory = max(row.memory for row in mine) / 1e6
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {seconds:.0f} | {memory:.0f} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _verdict(value: float, bar: float) -> str:
    return "met" if value >= bar else f"missed by {bar - value:.2f}"
