"""What is measured the same way in every benchmark: test accuracy, CPU seconds, peak memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pruning_core.calibration import Dataset
from pruning_core.curvature import predict
from pruning_core.network import Network

T = TypeVar("T")


class Meter:
    """CPU seconds, and peak of resident bytes above what was there, since it was made.

    Resets the kernel's peak counter of this process: one meter at a time.
    """

    def __init__(self) -> None:
        # What the allocator kept of earlier work goes back first, or what reuses it would seem to need none.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS:")
        self._started = time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self._started

    @property
    def memory(self) -> int:
        """Peak so far, bytes."""
        return max(0, _status("VmHWM:") - self._before)


@dataclass(frozen=True)
class Run(Generic[T]):
    """One call: what it returned, CPU seconds, bytes above what was resident before."""

    value: T
    seconds: float
    memory: int


def measured(call: Callable[[], T]) -> Run[T]:
    """Call and measure."""
    meter = Meter()
    value = call()
    return Run(value, meter.seconds, meter.memory)


def accuracy(network: Network, weights: Mapping[str, Tensor], test: Dataset) -> float:
    """Return per cent right on the test samples, with some of the network's tensors replaced."""
    assert test.labels is not None
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), 128):
            part = test.subset(slice(start, start + 128))
            output = predict(network, part.inputs, weights)
            right += int((output.argmax(1) == test.labels[start : start + 128]).sum())
    return 100 * right / len(test)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
