"""What a process uses, read from ``/proc``; zero where the platform has none."""

from __future__ import annotations

import os
from pathlib import Path


def group_memory_bytes(group: int) -> int:
    """Return the resident memory of all processes of a group, in bytes."""
    pages = 0
    for process in _processes():
        try:
            fields = _stat(process)
            if int(fields[2]) == group:
                pages += int((process / "statm").read_text("ascii").split()[1])
        except (OSError, IndexError):
            continue  # it has just ended
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process, in seconds; one that has ended counts until it is reaped."""
    try:
        fields = _stat(Path("/proc", str(pid)))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _processes() -> list[Path]:
    try:
        return [Path("/proc", name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - ten times a second
    except OSError:
        return []


def _stat(process: Path) -> list[str]:
    """Return the fields of ``stat`` after the command's name, which may hold anything: state, parent, group, ..."""
    return (process / "stat").read_text("latin-1").rpartition(")")[2].split()
