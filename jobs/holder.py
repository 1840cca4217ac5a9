"""Holding an item while working on it: a thread renews the lease, passes progress on, and hears of a cancel."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from jobs import logs
from jobs.clock import Down
from jobs.errors import Unavailable
from jobs.ids import kind_of
from jobs.ledger import Ledger
from jobs.stages import Stages
from pruning_core.report import Progress

logger = logging.getLogger(__name__)

Reason = Literal["lost", "cancel"]

_TICK_SECONDS = 0.25
#: Every so many heartbeats the bucket is asked for a cancel too: a flag in Redis may have been wiped.
_BUCKET_EVERY = 5


class Holder:
    """The lease of one item, kept alive while the ``with`` block runs, and released at its end.

    An outage of Redis does not end it: when Redis is back the lease is taken again, unless another worker has it.
    """

    def __init__(self, ledger: Ledger, item: str, token: str) -> None:
        self.item, self.token = item, token
        self._ledger, self._clock = ledger, ledger.clock
        self._reason: Reason | None = None
        self._latest: Progress | None = None
        self._started = time.time()
        self._stages = Stages(ledger.clock.metrics)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=logs.carried(self._beat_on), name=f"lease-{item}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._stages.end()
        with suppress(Down):  # it runs out by itself
            self._clock.release(self.item, self.token)

    @property
    def reason(self) -> Reason | None:
        """Why to stop: another worker has the lease, or the user cancelled; None: go on."""
        return self._reason

    def progress(self, progress: Progress) -> None:
        """Take note of a step; never blocks. The newest is published a few times a second."""
        self._latest = progress
        self.stage(progress.stage)

    def finish(self) -> None:
        """Take note that nothing more is being done."""
        self._stages.end()

    def stage(self, name: str) -> None:
        """Take note of what is being done, for metrics and traces only."""
        self._stages.enter(name)

    def beat(self, *, ask_bucket: bool = False) -> None:
        """Renew the lease once, and look for a cancel.

        Args:
            ask_bucket: Ask the bucket even if Redis has no cancel flag.
        """
        try:
            answer = self._clock.renew(self.item, self.token)
        except Down as error:
            logger.warning("heartbeat missed item=%s error=%s", self.item, type(error).__name__)
            answer, ask_bucket = "held", True
        if answer == "lost":
            if self._reason != "lost":
                self._clock.metrics.add("pruning_lease_losses_total", kind=kind_of(self.item))
            self._reason = "lost"
        elif self._reason is None and (answer == "cancelling" or ask_bucket):
            with suppress(Unavailable):
                if self._ledger.cancelled(self.item):
                    self._reason = "cancel"

    def _beat_on(self) -> None:
        beats, due, shown = 0, 0.0, None
        while not self._ended.wait(_TICK_SECONDS if beats else 0):
            if time.monotonic() >= due:
                beats += 1
                self.beat(ask_bucket=beats % _BUCKET_EVERY == 0)
                due = time.monotonic() + self._ledger.settings.heartbeat_seconds
                self._clock.metrics.flush()
            if self._latest is not shown:
                shown = self._latest
                with suppress(Down):
                    if shown is not None:
                        self._clock.report(self.item, shown, started=self._started)
