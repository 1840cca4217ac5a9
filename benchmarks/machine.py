"""What a benchmark ran on."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch


def machine() -> str:
    """Return date, processors, threads and versions in words."""
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    cpu = models[0].split(":")[1].strip() if models else platform.processor()
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}; python {platform.python_version()}"
    threads = torch.get_num_threads()
    return f"{datetime.now(UTC).date()}; {len(models)} × {cpu}{gpu}; {threads} thread{'s'[: threads != 1]}; {versions}"
