"""What the produced file is worth: its sizes, its arithmetic, and how long one batch takes before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
import zstandard

from pruning_core.calibration import Dataset
from pruning_core.compact import LEVEL, Array, compress, expand
from pruning_core.errors import PruningError
from pruning_core.formats import model_format
from pruning_core.macs import macs
from pruning_core.network import Network
from pruning_core.report import FileReport, RuntimeReport
from worker.runtimes import compare, onnx_runtime, run_batch, runtime_report
from worker.semi_structured import semi_structured

_BATCH = 64
_BUDGET_SECONDS = 4.0
_CHUNK = 1 << 20


class Meter:
    """Compares produced files with the model file as it was sent.

    Args:
        path: The model file.
        dense: The network read from it.
        data: Where the batch is taken from: the network's fixed batch size, else up to 64 samples.
        device: Where the batch is run.
        files: How many files will be measured; they share the time there is for it.
    """

    def __init__(self, path: Path, dense: Network, data: Dataset, device: torch.device, *, files: int = 1) -> None:
        self._path, self._dense, self._device = path, dense.to(device), device
        self._size, self._compressed, _ = _sizes(path)
        self._batch = dense.batch or min(_BATCH, len(data))
        self._inputs = data.subset(torch.arange(self._batch) % len(data)).to(device).inputs
        self._seconds = _BUDGET_SECONDS / files

    def measure(self, path: Path, pruned: Network, compact: Path) -> FileReport:
        """Measure a produced file.

        Args:
            path: The file.
            pruned: The network read from it.
            compact: The same in its compact form.
        """
        size, compressed, digest = _sizes(path)
        networks = (self._dense, pruned.to(self._device))
        runs = [partial(run_batch, network, self._inputs) for network in networks]
        eager = compare(runs[0], runs[1], self._seconds)
        format_ = model_format(path)
        others = [semi_structured(*networks, self._inputs, self._seconds)]
        if format_ == "onnx":
            others.append(onnx_runtime(self._path, path, self._inputs, self._seconds))
        runtimes = tuple(other for other in others if other is not None)
        arithmetic = macs(networks[1], self._inputs)  # the dense count is of the shapes, the same for both
        packed = compact.stat().st_size
        return FileReport(
            format=format_,
            size_bytes=size,
            size_bytes_before=self._size,
            compressed_bytes=compressed,
            compressed_bytes_before=self._compressed,
            compact_bytes=packed,
            macs=arithmetic.needed,
            macs_before=arithmetic.dense,
            sha256=digest,
            latency_ms=eager.after,
            latency_ms_before=eager.before,
            ratio_interval=eager.ratio_interval,
            batch=self._batch,
            runtimes=runtimes,
            speedup=sentence(
                self._batch,
                (runtime_report(f"PyTorch, {self._device.type}", torch.__version__, eager), *runtimes),
                (self._size, packed),
            ),
        )


def compacted(path: Path, network: Network, names: Iterable[str]) -> bytes:
    """Return the compact form of a pruned file, from which the file itself was made again, to be sure.

    Args:
        path: The file.
        network: The network read from it.
        names: Of its pruned weights.
    """
    data = path.read_bytes()
    tensors = (network.weights[name].detach().contiguous() for name in names)
    raw = ((t.reshape(-1).view(torch.uint8).numpy().tobytes(), t.element_size()) for t in tensors)
    made = compress(data, (Array(data=numbers, itemsize=size) for numbers, size in raw))
    if expand(made) != data:
        raise PruningError("The compact form does not give the pruned file again.")
    return made


def _sizes(path: Path) -> tuple[int, int, str]:
    """Return size, size under zstd, and SHA-256, in one pass of constant memory."""
    packer = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=path.stat().st_size)
    digest, size, packed = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            packed += len(packer.compress(chunk))
    return size, packed + len(packer.flush()), digest.hexdigest()


def sentence(batch: int, runtimes: Sequence[RuntimeReport], sizes: tuple[int, int]) -> str:
    """Say plainly whether anything runs faster, and what was gained in size.

    Args:
        batch: Samples in a batch.
        runtimes: What each took.
        sizes: Bytes of the dense file and of the compact form of the pruned one.
    """
    faster = [runtime for runtime in runtimes if runtime.faster]
    if faster:
        told = " and ".join(f"{_ratio(runtime):.2f} times in {runtime.name}" for runtime in faster)
        verdict = f"Faster: {told}."
    else:
        verdict = "No speed-up here: these kernels multiply by zeros as by any number."
    measured = "; ".join(
        f"{runtime.name}: {runtime.latency_ms_before:.2f} ms dense, {runtime.latency_ms:.2f} ms pruned, ratio "
        f"{_ratio(runtime):.2f} ({_spread(runtime)})"
        for runtime in runtimes
    )
    size, packed = sizes
    return (
        f"{verdict} A batch of {batch} took, in {measured}. In size: in its compact form the file has {packed:,} "
        f"bytes where the dense one has {size:,} ({size / packed:.1f} times smaller)."
    )


def _ratio(runtime: RuntimeReport) -> float:
    return runtime.latency_ms_before / runtime.latency_ms


def _spread(runtime: RuntimeReport) -> str:
    if runtime.ratio_interval is None:
        return "too few rounds to tell it from noise"
    return "95 % interval {:.2f} to {:.2f}".format(*runtime.ratio_interval)
