"""Room on the disk of this worker: without it nothing can be done here, and that is no item's fault."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

_LEAST_SECONDS = 2.0
_POLL_SECONDS = 0.5
_SAY_SECONDS = 60.0


def wait_for_room(work_dir: Path, free_bytes: int, stopping: Callable[[], bool]) -> None:
    """Return when there is room again, but not at once, or when this worker is told to stop.

    Args:
        work_dir: On the disk in question.
        free_bytes: How much there must be.
        stopping: Whether this worker was told to stop.
    """
    began, said = time.monotonic(), float("-inf")
    while not stopping():
        now, free = time.monotonic(), shutil.disk_usage(work_dir).free
        if free >= free_bytes and now - began >= _LEAST_SECONDS:
            return
        if now - said >= _SAY_SECONDS:
            logger.error("no room on the disk: this worker waits dir=%s free=%d wanted=%d", work_dir, free, free_bytes)
            said = now
        time.sleep(_POLL_SECONDS)
