"""Latency, dense beside pruned: how it is timed, and the runtimes beside PyTorch's own operations that are there."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning_core.network import Network
from pruning_core.report import Interval, RuntimeReport

_REPEATS = 15


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a batch took.

    Attributes:
        before: Median milliseconds of the dense one,
        after: and of the pruned one.
        ratio_interval: 95 % interval of the median of dense / pruned; None for fewer than six rounds.
    """

    before: float
    after: float
    ratio_interval: Interval | None


def run_batch(
    network: Network, inputs: Sequence[Tensor], weights: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Run a batch to its end, on a GPU too; with some weights replaced, as `Network.run` does."""
    with torch.no_grad():
        outputs = network.run(inputs, weights)
    if network.device.type == "cuda":
        torch.cuda.synchronize(network.device)
    return outputs


def compare(dense: Callable[[], object], pruned: Callable[[], object], seconds: float) -> Timing:
    """Run both in rounds, in turns and each first in every other round, so that a busy machine slows both.

    Args:
        dense: Runs a batch to its end.
        pruned: The same.
        seconds: No round begins later; there is at least one.
    """
    runs = (dense, pruned)
    times: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        run()  # the first pays for caches
    end = time.monotonic() + seconds
    while not times[1] or (len(times[1]) < _REPEATS and time.monotonic() < end):
        for which in (0, 1) if len(times[1]) % 2 else (1, 0):
            start = time.perf_counter()
            runs[which]()
            times[which].append(1000 * (time.perf_counter() - start))
    ratios = [before / after for before, after in zip(*times, strict=True)]
    return Timing(
        before=statistics.median(times[0]), after=statistics.median(times[1]), ratio_interval=median_interval(ratios)
    )


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return an interval that holds the median with a probability of at least 95 %, whatever the distribution.

    Its ends are order statistics: between the k-th smallest and the k-th largest of n values lies the median with
    probability 1 - 2 P(X < k), X ~ Binomial(n, 1/2).

    Returns:
        The narrowest such interval; None for fewer than six values, of which none is sure enough.

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (1.0, 6.0)
    >>> median_interval([float(i) for i in range(1, 16)])
    (4.0, 12.0)
    """
    count, ordered = len(values), sorted(values)
    below, depth = 0.0, 0
    while below + math.comb(count, depth) / 2**count <= 0.025:
        below += math.comb(count, depth) / 2**count
        depth += 1
    return (ordered[depth - 1], ordered[-depth]) if depth else None


def onnx_runtime(dense: Path, pruned: Path, inputs: Sequence[Tensor], seconds: float) -> RuntimeReport | None:
    """Run a batch through both files in onnxruntime, in turns, on the CPU, with as many threads as PyTorch has.

    Args:
        dense: An ONNX file,
        pruned: and the one made of it.
        inputs: One batch.
        seconds: At most about so long.

    Returns:
        What it took; None where onnxruntime is not installed, or does not take these files.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4
    try:
        sessions = [
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in (dense, pruned)
        ]
        runs = [partial(session.run, None, _feed(session, inputs)) for session in sessions]
        timing = compare(runs[0], runs[1], seconds)
    except Exception:  # what it refuses is its own matter; the file was read and run by us
        return None
    return runtime_report("onnxruntime", str(onnxruntime.__version__), timing)


def runtime_report(name: str, version: str, timing: Timing) -> RuntimeReport:
    """Return what was measured in a runtime, as the report has it."""
    return RuntimeReport(
        name=name,
        version=version,
        latency_ms=timing.after,
        latency_ms_before=timing.before,
        ratio_interval=timing.ratio_interval,
    )


def _feed(session: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    names = [found.name for found in session.get_inputs()]
    return {name: tensor.cpu().contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
