"""What was written once need not be read twice: documents of the bucket that never change, kept in memory.

Only deletion ends such a document. Whoever deletes an item says so in Redis for longer than anything is kept here; a
kept document is handed out only after a look there. Without Redis nothing is handed out.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from jobs.bucket import Bucket
from jobs.clock import Clock, Down

MAX_BYTES = 64 * 2**20
MAX_AGE_SECONDS = 900.0
#: What one costs beside its text: key, tuple, entry.
_OVERHEAD_BYTES = 400


class Recall:
    """The write-once documents of the bucket, the most recently used ones in memory. Safe to share between threads."""

    def __init__(self, bucket: Bucket, clock: Clock) -> None:
        self._bucket, self._clock = bucket, clock
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._guard = threading.Lock()

    def usable(self, item: str) -> bool:
        """Return whether what is kept of this item may be handed out: it was not deleted, as far as Redis knows."""
        try:
            return not self._clock.deleted(item)
        except Down:
            return False

    def forget(self, item: str) -> None:
        """Let no process hand out what it keeps of this item, which is about to be deleted. Never raises."""
        with suppress(Down):
            self._clock.mark_deleted(item, seconds=2 * MAX_AGE_SECONDS)

    def get_json(self, key: str, *, usable: bool) -> dict[str, Any] | None:
        """Return a document that is never written again, or None if there is none yet.

        Args:
            key: Where it stands.
            usable: What `usable` said of its item.

        Raises:
            Unavailable: The bucket does not answer.
        """
        if usable and (text := self._find(key)) is not None:
            document: dict[str, Any] = json.loads(text)
            return document
        found = self._bucket.get_json(key)
        if found is not None and usable:
            self._keep(key, json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode())
        return found

    def _find(self, key: str) -> bytes | None:
        with self._guard:
            since, text = self._kept.get(key, (0.0, b""))
            if not text:
                return None
            if time.monotonic() - since > MAX_AGE_SECONDS:
                self._drop(key)
                return None
            self._kept.move_to_end(key)
            return text

    def _keep(self, key: str, text: bytes) -> None:
        with self._guard:
            self._drop(key)
            self._kept[key] = (time.monotonic(), text)
            self._bytes += len(text) + _OVERHEAD_BYTES
            while self._bytes > MAX_BYTES:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        if key in self._kept:
            self._bytes -= len(self._kept.pop(key)[1]) + _OVERHEAD_BYTES
