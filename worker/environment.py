"""The environment of the sandboxed process: built from nothing, so no credential can slip in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pruning_core

_KEPT = ("PATH", "LANG", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")


def process_environment() -> dict[str, str]:
    """Return all the variables that it gets, but for those that name its folder (`folder_environment`)."""
    packages = (Path(__file__).parent, Path(pruning_core.__file__).parent)
    roots = dict.fromkeys(str(package.resolve().parent) for package in packages)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {
        **kept,
        "OMP_NUM_THREADS": str(available_cores()),
        # Threads that spin while they wait take the cores from the other workers' processes: a solve of many small
        # matrices took ten times as long beside two busy ones.
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(roots),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        # cuBLAS is deterministic only with a fixed workspace.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def folder_environment(folder: Path) -> dict[str, str]:
    """Return the variables of a process that works in this folder."""
    return {"HOME": str(folder), "TMPDIR": str(folder)}


def available_cores() -> int:
    """Return how many cores this process really has: affinity, cgroup quota, and the operator's OMP_NUM_THREADS.

    More threads than cores cost orders of magnitude.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = cgroup_cores(Path("/sys/fs/cgroup"))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    limits = [cores, *([quota] if quota else []), *([int(asked)] if asked.isdecimal() else [])]
    return max(1, min(limits))


def cgroup_cores(root: Path) -> int | None:
    """Return the whole cores of the cgroup's CPU quota (version 2 or 1), None where there is none."""
    try:
        quota, period = (root / "cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text("ascii").strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text("ascii").strip()
        except OSError:
            return None
    if quota in ("max", "-1") or not period.isdecimal():
        return None
    return max(1, int(quota) // int(period))
