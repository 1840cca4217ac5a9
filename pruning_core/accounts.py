"""What a run cost and where it ran."""

from __future__ import annotations

import platform
import resource
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from pruning_core.report import StageReport


class Clock:
    """Wall and CPU seconds of each stage, and the peak of resident memory."""

    def __init__(self) -> None:
        self._stages: dict[str, StageReport] = {}
        self.skip()

    def skip(self) -> None:
        """Count nothing that happened since the last call: the caller's time between two steps."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """Add what happened since the last call to this stage."""
        before = self._stages.get(stage)
        self._stages[stage] = StageReport(
            name=stage,
            seconds=time.perf_counter() - self._wall + (before.seconds if before else 0.0),
            cpu_seconds=time.process_time() - self._cpu + (before.cpu_seconds if before else 0.0),
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        )
        self.skip()

    @property
    def stages(self) -> tuple[StageReport, ...]:
        """Every stage in the order of its first lap."""
        return tuple(self._stages.values())


def device_name(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Return what the result depends on."""
    try:
        own = version("pruning-service")
    except PackageNotFoundError:  # used from a source tree that is not installed
        own = "unknown"
    return {"pruning-service": own, "torch": str(torch.__version__), "python": platform.python_version()}
