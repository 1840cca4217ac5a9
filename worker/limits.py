"""What one sandboxed process may use, and the problem a user sees when it was not enough."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Literal

from pruning_core.errors import LimitExceeded, PruningError

LimitName = Literal["memory_bytes", "cpu_seconds", "file_bytes", "wall_seconds"]

_WORDS: dict[LimitName, tuple[str, str]] = {
    "memory_bytes": (
        "more memory than its limit of {:,} bytes",
        "Send fewer or smaller calibration samples, or ask the operator for more memory.",
    ),
    "cpu_seconds": (
        "more CPU time than its limit of {:,} seconds",
        "Send fewer calibration samples or ask the operator for more CPU time.",
    ),
    "file_bytes": (
        "to write a file larger than its limit of {:,} bytes",
        "Send a smaller model or ask the operator for a larger file size.",
    ),
    "wall_seconds": (
        "longer than its limit of {:,} seconds",
        "Send fewer calibration samples or ask the operator for more time.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one process: bytes of memory and of each file it writes, seconds of CPU and on the clock."""

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    wall_seconds: float


class Died(PruningError):  # noqa: N818
    """The sandboxed process ended without a result; a retry may help."""

    slug = "process-died"
    title = "The pruning process died"


def limit_exceeded(limits: Limits, name: LimitName) -> LimitExceeded:
    """Return the error that names the limit, its value and the way out.

    >>> limits = Limits(memory_bytes=1 << 30, cpu_seconds=60, file_bytes=1 << 20, wall_seconds=90)
    >>> limit_exceeded(limits, "cpu_seconds").detail
    'The work needed more CPU time than its limit of 60 seconds.'
    """
    words, advice = _WORDS[name]
    value = getattr(limits, name)
    return LimitExceeded(
        f"The work needed {words.format(value)}.", expected=f"at most {value}", advice=advice, limit=name, value=value
    )


def no_space(error: BaseException) -> bool:
    """Return whether the error says that the disk, or this user's part of it, is full.

    >>> no_space(OSError(28, "No space left on device")), no_space(OSError(2, "No such file or directory"))
    (True, False)
    """
    if isinstance(error, PruningError):
        return False  # its text may quote the user
    # Libraries in C++ and Rust pass on the system's words only.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)
    )
