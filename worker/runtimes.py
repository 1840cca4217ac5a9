"""Latency, dense beside pruned: how it is timed, and the runtimes beside PyTorch's own operations that are there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning_core.report import RuntimeReport

_REPEATS = 15


def medians(dense: Callable[[], object], pruned: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return the median milliseconds of each; they take turns, so that a busy machine slows both."""
    runs = (dense, pruned)
    times: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        run()  # the first pays for caches
    end = time.monotonic() + seconds
    while not times[1] or (len(times[1]) < _REPEATS and time.monotonic() < end):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def onnx_runtime(dense: Path, pruned: Path, inputs: Sequence[Tensor], seconds: float) -> RuntimeReport | None:
    """Run a batch through both files in onnxruntime, in turns, on the CPU, with as many threads as PyTorch has.

    Args:
        dense: An ONNX file,
        pruned: and the one made of it.
        inputs: One batch.
        seconds: At most about so long.

    Returns:
        The medians; None where onnxruntime is not installed, or does not take these files.
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
        before, after = medians(runs[0], runs[1], seconds)
    except Exception:  # what it refuses is its own matter; the file was read and run by us
        return None
    return RuntimeReport(
        name="onnxruntime", version=str(onnxruntime.__version__), latency_ms=after, latency_ms_before=before
    )


def _feed(session: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    names = [found.name for found in session.get_inputs()]
    return {name: tensor.cpu().contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
