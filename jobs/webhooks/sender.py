"""The sender: makes the deliveries that are due. It runs in every api and worker; each delivery is one process's."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from jobs.clock import Clock, Down
from jobs.errors import Unavailable
from jobs.settings import Settings
from jobs.webhooks import records, signing
from jobs.webhooks.addresses import Resolver
from jobs.webhooks.outbox import Outbox
from jobs.webhooks.posting import Failed, post
from jobs.webhooks.records import Delivery, Try, Webhook

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_THREADS = 8
#: A slow receiver, and all of one tenant's, take no more threads than these.
_PER_WEBHOOK, _PER_TENANT = 2, 4
#: Beyond the time of one attempt, a delivery that a dead process held is free again after so long.
_MARGIN_SECONDS = 10
_LONGEST_RETRY_AFTER = 86400.0
_GONE = 410


class Sender:
    """A thread that looks what is due, and a few that deliver."""

    def __init__(self, settings: Settings, clock: Clock, outbox: Outbox, resolver: Resolver | None = None) -> None:
        """Make one; nothing is sent before `start` or `tick`.

        Args:
            settings: Schedule, timeout, allowed networks.
            clock: For the locks.
            outbox: What is to be delivered.
            resolver: Resolves host names; tests put their own in its place.
        """
        self._settings, self._clock, self._outbox, self._resolver = settings, clock, outbox, resolver
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._in_flight: set[str] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhooks")
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Start, unless the operator wants nothing sent from here."""
        if self._settings.webhook_sender:
            self._thread.start()

    def stop(self, seconds: float) -> None:
        """Let what is on its way end, for at most so long."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            try:
                self.tick()
            except (Down, Unavailable) as error:
                logger.warning("webhooks wait error=%s", type(error).__name__)
            except Exception:
                # A defect here must not end all deliveries.
                logger.exception("webhooks failed; they go on")

    def tick(self) -> None:
        """Record the deliveries of jobs that have ended, and begin those that are due."""
        self._outbox.tell_ended()
        for name in self._outbox.agenda.due(_PER_WEBHOOK):
            if self._taken(name):
                self._threads.submit(self._guarded, name)

    def _taken(self, name: str) -> bool:
        tenant, webhook, _ = name.split("/")
        with self._guard:
            busy = Counter(part for other in self._in_flight for part in other.split("/")[:2])
            full = len(self._in_flight) >= _THREADS or busy[tenant] >= _PER_TENANT or busy[webhook] >= _PER_WEBHOOK
            if full or name in self._in_flight:
                return False
            self._in_flight.add(name)
            return True

    def _guarded(self, name: str) -> None:
        try:
            self.deliver(name)
        except (Down, Unavailable) as error:
            logger.warning("a delivery waits error=%s", type(error).__name__)
        except Exception:
            logger.exception("a delivery failed; it is tried again")
        finally:
            with self._guard:
                self._in_flight.discard(name)

    def deliver(self, name: str) -> None:
        """Make one attempt, if nobody else is at it and it is due."""
        seconds = self._settings.webhook_timeout_seconds + _MARGIN_SECONDS
        with self._clock.lock(f"delivery:{name}", seconds=seconds, wait=0) as held:
            if not held:
                return
            delivery = self._outbox.read(name)
            if delivery is None or delivery.state != "pending":
                self._outbox.drop(name)
                return
            if delivery.next_at is not None and delivery.next_at > records.time():
                self._outbox.agenda.wait(name, delivery.next_at)
                return
            webhook = self._outbox.webhook(delivery.tenant, delivery.webhook)
            if webhook is None:
                self._outbox.drop(name)
            elif webhook.disabled_at is not None:
                self._outbox.update(delivery.model_copy(update={"state": "abandoned", "next_at": None}))
            else:
                self._attempt(delivery, webhook)

    def _attempt(self, delivery: Delivery, webhook: Webhook) -> None:
        at, started = records.time(), time.monotonic()
        body, status, error, pause = delivery.body.encode(), None, None, None
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "pruning-service-webhooks",
            **signing.headers(delivery.id, int(at.timestamp()), body, webhook.keys(at)),
        }
        try:
            status, pause = post(webhook.url, body, headers, self._settings, self._resolver)
        except Failed as failed:
            error = str(failed)
        done = Try(at=at, status=status, error=error, seconds=round(time.monotonic() - started, 3))
        changed = self._after(delivery, done, pause)
        self._outbox.update(changed)
        result = changed.state if changed.state != "pending" else "retry"
        self._clock.metrics.add("pruning_webhook_attempts_total", result=result)
        logger.info(
            "webhook tried webhook=%s message=%s try=%d status=%s error=%s state=%s",
            *(webhook.id, delivery.id, len(changed.tries), status, error, changed.state),
        )
        if status == _GONE:
            self._outbox.disable(webhook, "The receiver answered 410 Gone.")

    def _after(self, delivery: Delivery, done: Try, pause: float | None) -> Delivery:
        tries = (*delivery.tries, done)
        change: dict[str, object] = {"tries": tries, "next_at": None}
        if done.status is not None and 200 <= done.status < 300:
            change["state"] = "delivered"
        elif done.status == _GONE or len(tries) >= delivery.most_tries:
            change["state"] = "failed"
        else:
            schedule = self._settings.webhook_schedule
            wait = schedule[min(len(tries), len(schedule) - 1)] * random.uniform(1.0, 1.2)  # noqa: S311 - jitter
            wait = max(wait, min(pause or 0.0, _LONGEST_RETRY_AFTER))
            change["next_at"] = records.time() + timedelta(seconds=wait)
        return delivery.model_copy(update=change)
