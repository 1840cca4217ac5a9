"""Scratch folders that never outlive their work for long, however the process ends."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.ids import new_ulid

_PREFIX = "attempt-"


@contextmanager
def scratch(work_dir: Path) -> Iterator[Path]:
    """Make a private folder, lock it while it is in use, and remove it afterwards."""
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = work_dir / f"{_PREFIX}{new_ulid().lower()}"
    # Made under another name and locked before it gets its own: `sweep` never sees it unlocked.
    hidden = folder.with_name(f".{folder.name}")
    hidden.mkdir(mode=0o700)
    handle = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        hidden.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(work_dir: Path) -> int:
    """Remove the folders that dead processes left, and return how many.

    The lock, not a process id, says who is alive: ids are reused, and containers have their own.
    """
    removed = 0
    for folder in work_dir.glob(f"{_PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
        finally:
            os.close(handle)
    return removed
