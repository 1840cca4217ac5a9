"""How much memory there is.

Two questions, two answers: whether a large matrix can be made now (`check_fits`: what is free), and which of two ways
to take (`roomy`: what there is at most, whoever uses it now, so that the same job takes the same way every time and
ends with the same bytes).
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

from pruning_core.errors import LimitExceeded

#: The part of what is free that one large matrix and the work on it may take.
SHARE = 0.8
#: The part of all memory that the way which needs more may take; others may need the rest.
CHOICE_SHARE = 0.5


_GROUP = Path("/sys/fs/cgroup")
#: A limit of this process, and the field of its status that says how much of it is used.
_LIMITS = {resource.RLIMIT_AS: "VmSize:", resource.RLIMIT_DATA: "VmData:"}


def available_bytes(device: torch.device) -> int:
    """Return the bytes this process can still allocate on this device.

    On the CPU the least of: what the kernel calls available, what the control group leaves, what the limits of this
    process leave.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo("/proc/meminfo", "MemAvailable:")]
    for limit, field in _LIMITS.items():
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - _meminfo("/proc/self/status", field))
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        limits.append(int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
    return max(0, min(limits))


def capacity_bytes(device: torch.device) -> int:
    """Return the bytes this process could have on this device if nobody else used any."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [_meminfo("/proc/meminfo", "MemTotal:")]
    limits += [soft for limit in _LIMITS if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):
        limits.append(int((_GROUP / "memory.max").read_text()))
    return min(limits)


def roomy(needed: int, device: torch.device) -> bool:
    """Return whether the way that needs so many bytes is to be taken; the same on a machine however busy it is."""
    return needed <= CHOICE_SHARE * capacity_bytes(device)


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
    limit = int(SHARE * available_bytes(device))
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
    return 2**40 if field.startswith("Mem") else 0
