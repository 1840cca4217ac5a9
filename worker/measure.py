"""What the produced file is worth: its sizes, and how long one batch takes before and after."""

from __future__ import annotations

import hashlib
import statistics
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pruning_core.calibration import Dataset
from pruning_core.formats import model_format
from pruning_core.network import Network
from pruning_core.report import FileReport

_BATCH = 64
_REPEATS = 15
_BUDGET_SECONDS = 4.0
_CHUNK = 1 << 20


def measure_file(
    before: Path, after: Path, dense: Network, pruned: Network, data: Dataset, device: torch.device
) -> FileReport:
    """Measure both files and both networks.

    Args:
        before: The model file as it was sent.
        after: The file that was produced.
        dense: The network read from ``before``.
        pruned: The network read from ``after``.
        data: Where the batch is taken from: the network's fixed batch size, else up to 64 samples.
        device: Where the batch is run.
    """
    size, compressed, digest = _sizes(after)
    size_before, compressed_before, _ = _sizes(before)
    batch = dense.batch or min(_BATCH, len(data))
    inputs = data.subset(torch.arange(batch) % len(data)).to(device).inputs
    latency_before, latency = _latencies((dense.to(device), pruned.to(device)), inputs, device)
    return FileReport(
        format=model_format(after),
        size_bytes=size,
        size_bytes_before=size_before,
        compressed_bytes=compressed,
        compressed_bytes_before=compressed_before,
        sha256=digest,
        latency_ms=latency,
        latency_ms_before=latency_before,
        batch=batch,
        speedup=_sentence(batch, latency_before, latency, compressed_before, compressed, device),
    )


def _sizes(path: Path) -> tuple[int, int, str]:
    """Return size, size under zlib level 6, and SHA-256, in one pass of constant memory."""
    packer, digest, size, packed = zlib.compressobj(6), hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            packed += len(packer.compress(chunk))
    return size, packed + len(packer.flush()), digest.hexdigest()


def _latencies(
    networks: tuple[Network, Network], inputs: Sequence[Tensor], device: torch.device
) -> tuple[float, float]:
    """Return the median milliseconds of one batch for each; they take turns, so that a busy machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for network in networks:
            network.run(inputs)  # the first run pays for caches
        end = time.monotonic() + _BUDGET_SECONDS
        while not times[1] or (len(times[1]) < _REPEATS and time.monotonic() < end):
            for network, taken in zip(networks, times, strict=True):
                _synchronize(device)
                start = time.perf_counter()
                network.run(inputs)
                _synchronize(device)
                taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sentence(batch: int, before: float, after: float, packed_before: int, packed: int, device: torch.device) -> str:
    return (
        f"No speed-up is to be expected: dense kernels multiply by zeros as by any number. A batch of {batch} took "
        f"{before:.2f} ms before and {after:.2f} ms after (measured ratio {before / after:.2f}, {device.type}); a "
        f"difference is noise unless it repeats. The gain is in size: compressed, the file has {packed:,} bytes where "
        f"it had {packed_before:,} ({packed_before / packed:.1f} times smaller)."
    )
