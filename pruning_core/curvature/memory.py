"""How much memory there is, asked before a large matrix is made."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

from pruning_core.errors import LimitExceeded

#: The part of what is free that one large matrix and the work on it may take.
SHARE = 0.8


def available_bytes(device: torch.device) -> int:
    """Return the bytes this process can still allocate on this device.

    On the CPU the least of: what the kernel calls available, what the control group leaves, what the
    address-space limit leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo("/proc/meminfo", "MemAvailable:")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - _meminfo("/proc/self/status", "VmSize:"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(limits))


def limit_bytes(device: torch.device) -> int:
    """Return how much one large matrix and the work on it may take on this device."""
    return int(SHARE * available_bytes(device))


def check_fits(needed: int, device: torch.device, detail: str, advice: str) -> None:
    """Check that something large will fit.

    Args:
        needed: Bytes.
        device: Where.
        detail: What does not fit, if it does not; a sentence.
        advice: How to need less.

    Raises:
        LimitExceeded: It takes more than a safe share of what is free.
    """
    limit = limit_bytes(device)
    if needed > limit:
        raise LimitExceeded(
            detail,
            expected=f"at most {limit} bytes ({SHARE:.0%} of what is free)",
            received=f"{needed} bytes",
            advice=advice,
        )


def _meminfo(path: str, field: str) -> int:
    """Return a field of a /proc file in bytes; a terabyte where the platform does not say."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 2**40 if field == "MemAvailable:" else 0
