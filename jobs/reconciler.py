"""The reconciler: every item without an outcome has, again and again, either a worker or a message in the queue.

It runs in every api and every worker; a short lock lets one at a time through. One tick costs in proportion to the
open items, not to all items that ever were, and reads the bucket only for those that seem to be nobody's.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from jobs.clock import Clock, Down
from jobs.errors import Unavailable
from jobs.ids import KINDS, Kind, kind_of
from jobs.index import Index
from jobs.ledger import Ledger
from jobs.queue import QUEUES, Queue, QueueName, queue_of
from jobs.tenants import DEFAULT

logger = logging.getLogger(__name__)

#: Items looked at in the bucket per tick and queue; the rest waits for the next tick.
BATCH = 200


@dataclass
class Counts:
    """What one tick did."""

    elected: bool = False
    rescanned: bool = False
    open: int = 0
    enqueued: list[str] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)  # cancelled, exhausted, or found ended


class Reconciler:
    """Puts right what crashes, wipes and lost messages left."""

    def __init__(self, ledger: Ledger, clock: Clock, index: Index, queue: Queue) -> None:
        self._ledger, self._clock, self._index, self._queue = ledger, clock, index, queue
        self._overdue: dict[str, str] = {}
        self._guard = threading.Lock()

    def remember(self, item: str, tenant: str = DEFAULT) -> None:
        """Keep in mind an item, and whose it is, that could not be noted in Redis, until it can."""
        with self._guard:
            self._overdue[item] = tenant

    def tick(self) -> Counts:
        """Do one round; does nothing if another process is at it, or if Redis or the bucket does not answer."""
        counts = Counts()
        try:
            overdue = self._note_overdue()
            # Should this process die now, the next one begins as soon as it would for a job.
            with self._clock.lock("reconcile", seconds=self._clock.settings.lease_seconds, wait=0) as elected:
                counts.elected = elected
                if elected:
                    counts.rescanned = self._index.refresh()
                    if not self._index.settling():
                        for queue in QUEUES:
                            self._round(queue, overdue, counts)
        except (Down, Unavailable) as error:
            logger.warning("reconcile skipped error=%s", type(error).__name__)
            self._clock.metrics.add("pruning_reconciler_ticks_total", result="skipped")
        else:
            self._clock.metrics.add("pruning_reconciler_ticks_total", result="done" if counts.elected else "passed")
        self._clock.metrics.flush()
        return counts

    def _note_overdue(self) -> set[str]:
        with self._guard:
            overdue = dict(self._overdue)
        for item, tenant in overdue.items():
            self._index.add(item, tenant)
        with self._guard:
            for item in overdue:
                self._overdue.pop(item, None)
        return set(overdue)

    def _round(self, queue: QueueName, overdue: set[str], counts: Counts) -> None:
        kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if queue_of(kind) == queue)
        items = sorted((item for kind in kinds for item in self._index.open(kind)), key=lambda item: item[4:])
        counts.open += len(items)
        held = self._clock.leased(items)
        idle = [item for item in items if item not in held]
        # As many messages as idle items: then each has one, or will have once duplicates ahead of it are used up.
        # So duplicates never outnumber the items, however long the queue is.
        suspects = [item for item in idle if item in overdue]
        if self._queue.length(queue) < len(idle):
            queued = self._queue.waiting(queue)
            suspects += [item for item in idle if item not in queued and item not in overdue]
        for item in suspects[:BATCH]:
            self._look(item, counts)

    def _look(self, item: str, counts: Counts) -> None:
        found = self._ledger.read(item)
        if found is not None and found.outcome is None:
            exhausted = found.counted >= self._ledger.settings.max_attempts
            if not found.cancelled and not exhausted:
                if self._queue.enqueue(item, begun=bool(found.attempts)):
                    counts.enqueued.append(item)
                    self._clock.metrics.add("pruning_requeued_total", kind=kind_of(item))
                    logger.info("enqueued again item=%s kind=%s attempts=%d", item, kind_of(item), found.counted)
                return
        token = self._clock.claim(item)
        if token is None:
            return
        try:
            if self._ledger.resolve(item, token) is None:
                counts.settled.append(item)
                logger.info("settled item=%s", item)
        finally:
            self._clock.release(item, token)
