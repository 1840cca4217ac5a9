"""CHITA as a job runs it (every choice on held-out data), one-shot and multi-stage: accuracy against the bars.

    OMP_NUM_THREADS=1 python -m benchmarks.chita_accuracy [--networks MLPNet ResNet20] [--methods ...] [--seeds 3]
        [--record FILE] [--write FILE]

A seed draws which train images serve as calibration and which are held out for the choices (ridge, structure,
first-order step); test images are only measured on. ``--record`` appends each row to a file of JSON lines, so that
parts may run at different times; ``--write`` writes the tables of all that is recorded there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import ASSETS, Problem, mlpnet, resnet20
from benchmarks.tables import BARS, MULTI_STAGE
from pruning_core.algorithms import PruningTask
from pruning_core.algorithms.chita import Options
from pruning_core.algorithms.chita import run as chita
from pruning_core.calibration import Dataset
from pruning_core.curvature import Layout, predict
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish


@dataclass(frozen=True, kw_only=True)
class Method:
    """Options, calibration samples, and the sparsities to measure at."""

    options: Mapping[str, Any]
    samples: int
    sparsities: tuple[float, ...]


_STAGES: Mapping[str, Any] = {"stages": 15, "samples": 1000, "batch_size": 10, "swaps": 20}
METHODS: Mapping[str, Mapping[str, Method]] = {
    "MLPNet": {
        "one shot, n = 1000": Method(
            options={"samples": 1000, "batch_size": 1}, samples=1000, sparsities=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
        ),
        "one shot, defaults": Method(options={}, samples=10_000, sparsities=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98)),
        "multi-stage BSO": Method(options={**_STAGES, "structure": "block"}, samples=50_000, sparsities=(0.98, 0.95)),
        "LS++": Method(
            options={**_STAGES, "structure": "global", "swaps": 0, "max_rounds": 0},
            samples=50_000,
            sparsities=(0.98, 0.95),
        ),
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


def run(
    networks: Sequence[str] = tuple(METHODS), methods: Sequence[str] | None = None, seeds: Sequence[int] = (0, 1, 2)
) -> Iterator[Row]:
    """Yield every row as it is measured."""
    torch.set_num_threads(1)
    for network in networks:
        problem = MAKERS[network]()
        for name, method in METHODS[network].items():
            if methods is None or name in methods:
                for seed in seeds:
                    yield from measure(problem, name, method, seed)


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
            accuracy=accuracy(problem, layout, weights),
            seconds=seconds,
            shared=shared,
            chosen={key: selection.options[key] for key in ("structure", "ridge", "samples", "batch_size")},
        )


def accuracy(problem: Problem, layout: Layout, weights: Tensor) -> float:
    """Return per cent right on the test images."""
    test: Dataset = problem.test
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), 128):
            part = test.subset(slice(start, start + 128))
            output = predict(problem.network, part.inputs, layout.split(weights))
            right += int((output.argmax(1) == part.labels).sum())
    return 100 * right / len(test)


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables: mean and spread over the seeds beside the bars and the authors' figures."""
    lines = [
        "# CHITA as a job runs it",
        "",
        "Generated by `OMP_NUM_THREADS=1 python -m benchmarks.chita_accuracy --record FILE --write FILE`; do not edit. "
        "Ridge, structure and first-order step chosen on held-out train images; accuracy on the test images: mean over "
        "the seeds [lowest, highest]. Seconds: CPU, one thread; *shared* serves all sparsities of a one-shot run.",
        "",
    ]
    for network, methods in METHODS.items():
        mine = [row for row in rows if row.network == network]
        if not mine:
            continue
        lines += [
            f"## {network}",
            "",
            "| method | sparsity | seeds | accuracy % | authors' best | bar | | shared s | s | structure chosen |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for method in methods:
            for sparsity in sorted(methods[method].sparsities):
                found = [row for row in mine if (row.method, row.sparsity) == (method, sparsity)]
                if found:
                    lines.append(_line(network, method, sparsity, found))
        lines.append("")
    return "\n".join(lines)


def _line(network: str, method: str, sparsity: float, rows: Sequence[Row]) -> str:
    accuracies = [row.accuracy for row in rows]
    kind = "one shot" if method.startswith("one shot") else "multi-stage"
    bar = BARS[network][kind].get(sparsity)
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


def recorded(path: Path) -> list[Row]:
    """Return the rows of a record; of the same cell measured twice the last."""
    rows = [Row(**json.loads(line)) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return list({(row.network, row.method, row.sparsity, row.seed): row for row in rows}.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--methods", nargs="+", help="some of the methods, by name")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="append each row to this file")
    parser.add_argument("--write", type=Path, help="write the tables into this file")
    chosen = parser.parse_args()
    if not ASSETS.is_dir():
        print(f"No assets at {ASSETS}; set PRUNING_ASSETS. Nothing was measured.")
        return 0
    rows = []
    for row in run(chosen.networks, chosen.methods, range(chosen.first_seed, chosen.first_seed + chosen.seeds)):
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
        if chosen.record:
            with chosen.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    text = markdown(recorded(chosen.record) if chosen.record else rows)
    print(text)
    if chosen.write:
        chosen.write.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
