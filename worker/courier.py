"""Carries the finished steps of a running job to the bucket, and back to the attempt that goes on from them.

The pruning process writes each finished step to a file of its own (`pruning_core.algorithms.checkpoints`); it has no
credentials, so its supervisor carries the files. A bucket that is slow, full or away costs nothing but the steps that
could not be carried: the work and its heartbeat never wait for it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

from jobs import layout, logs
from jobs.bucket import Bucket
from jobs.errors import NotFound, Unavailable
from pruning_core.errors import PruningError

logger = logging.getLogger(__name__)

_PASS_SECONDS = 0.5
#: After the bucket did not answer.
_PAUSE_SECONDS = 3.0
#: What the process may call a step. It is not trusted: the name becomes part of a key.
_NAME = re.compile(r"[0-9a-f]{32}\.checkpoint")
_MAX_STEPS = 10_000


class Courier:
    """The checkpoints of one job, between the folder of an attempt and the bucket.

    Args:
        bucket: Where they are kept between attempts.
        job: The job.
        folder: Where the process puts them; made when it is not there.
        max_bytes: What all steps of the job may take in the bucket; later ones are not carried.
        may_carry: Whether this attempt still has the job; asked before each file.
    """

    def __init__(
        self, bucket: Bucket, job: str, folder: Path, *, max_bytes: int, may_carry: Callable[[], bool]
    ) -> None:
        self._bucket, self._prefix, self._folder = bucket, layout.checkpoints(job), folder
        self._job, self._max_bytes, self._may_carry = job, max_bytes, may_carry
        self._carried: dict[str, tuple[int, int, int]] = {}
        self._sizes: dict[str, int] = {}
        self._ended = threading.Event()
        self._last_pass = False
        self._thread = threading.Thread(target=logs.carried(self._carry_on), name=f"courier-{job}", daemon=True)
        folder.mkdir(exist_ok=True)

    def known(self) -> list[str]:
        """Return the names of the steps in the bucket.

        Raises:
            Unavailable: The bucket does not answer.
        """
        keys = self._bucket.list(self._prefix, limit=_MAX_STEPS)
        return [name for key in keys if _NAME.fullmatch(name := key[len(self._prefix) :])]

    def fetch(self, name: str) -> bool:
        """Bring a step of an earlier attempt; one that is damaged, too large or gone is left out: it is done again.

        Returns:
            Whether it is there now.

        Raises:
            Unavailable: The bucket does not answer.
        """
        path = self._folder / name
        try:
            found = self._bucket.head(self._prefix + name)
            if found is None or not self._fits(name, found.size):
                return False
            self._bucket.download_to(found.key, path)
        except Unavailable:
            raise
        except PruningError as error:
            logger.warning("checkpoint left out job=%s name=%s detail=%s", self._job, name, error.detail)
            return False
        self._note(name, path)
        return True

    def start(self) -> None:
        """Begin to carry what appears in the folder."""
        self._thread.start()

    def stop(self, *, last_pass: bool, patience: float) -> None:
        """End.

        Args:
            last_pass: First carry what was finished in the last moment: another attempt will go on from it.
            patience: Seconds to wait for what is on its way.
        """
        self._last_pass = last_pass
        self._ended.set()
        self._thread.join(patience)
        if self._thread.is_alive():
            logger.warning("checkpoints may be incomplete job=%s", self._job)

    def _carry_on(self) -> None:
        pause = _PASS_SECONDS
        while not self._ended.wait(pause):
            pause = _PASS_SECONDS if self._pass() else _PAUSE_SECONDS
        if self._last_pass:
            self._pass()

    def _pass(self) -> bool:
        """Carry every new step; return False if the bucket does not answer."""
        try:
            for path in self._new():
                if not self._may_carry() or (self._ended.is_set() and not self._last_pass):
                    return True
                self._carry(path)
        except Unavailable as error:
            logger.warning("checkpoints wait job=%s error=%s", self._job, error.detail)
            return False
        except Exception:
            # A defect here must not cost more than the checkpoints.
            logger.exception("checkpoints could not be carried job=%s", self._job)
            return False
        return True

    def _new(self) -> list[Path]:
        """Return complete steps that are not in the bucket as they are here, oldest first."""
        found = []
        for path in self._folder.iterdir():
            about = path.lstat()
            if _NAME.fullmatch(path.name) and self._carried.get(path.name) != _identity(path):
                found.append((about.st_mtime_ns, path))
        return [path for _, path in sorted(found)][:_MAX_STEPS]

    def _carry(self, path: Path) -> None:
        identity, size = _identity(path), path.lstat().st_size
        if self._fits(path.name, size):
            try:
                self._bucket.upload_file(self._prefix + path.name, path)
            except (OSError, ValueError, NotFound) as error:
                logger.warning("no checkpoint job=%s name=%s error=%s", self._job, path.name, error)
            else:
                self._sizes[path.name] = size
        else:
            logger.warning("checkpoint not kept job=%s bytes=%d limit=%d", self._job, size, self._max_bytes)
        self._carried[path.name] = identity

    def _fits(self, name: str, size: int) -> bool:
        others = sum(self._sizes.values()) - self._sizes.get(name, 0)
        return others + size <= self._max_bytes and len(self._sizes) < _MAX_STEPS

    def _note(self, name: str, path: Path) -> None:
        self._carried[name], self._sizes[name] = _identity(path), path.lstat().st_size


def _identity(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is put in the place of another."""
    about = path.lstat()
    return about.st_ino, about.st_mtime_ns, about.st_size
