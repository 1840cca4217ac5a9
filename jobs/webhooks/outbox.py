"""What is still to be told, and to whom. The bucket has all of it; Redis only says what is due.

A marker is written before a job is recorded. When the job has ended, a delivery is recorded for each webhook that
wants it, and only then is the marker deleted; each delivery has a marker of its own until it is settled. So a crash at
any line, or an empty Redis, leaves at least one marker to begin from again. What is done twice makes the same names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Clock, Down
from jobs.ids import is_id, milliseconds
from jobs.index import Index
from jobs.ledger import Item, Ledger
from jobs.settings import Settings
from jobs.tenants import owner
from jobs.webhooks import records
from jobs.webhooks.agenda import Agenda
from jobs.webhooks.records import Delivery, Webhook

_SWEPT = "pruning:webhooks:swept"
_SWEEP_SECONDS = 30
#: Jobs told of in one tick.
_BATCH = 200
#: A marker of a job that was never recorded is kept for so long: the job may be on its way.
_ORPHAN_SECONDS = 3600
#: Deliveries of one webhook that are remembered after they are settled.
KEPT = 200


class Outbox:
    """Reads and writes it."""

    def __init__(self, settings: Settings, bucket: Bucket, clock: Clock, index: Index, ledger: Ledger) -> None:
        self._settings, self._bucket, self._clock, self._index = settings, bucket, clock, index
        self._ledger = ledger
        self._redis, self.agenda = clock.redis, Agenda(clock.redis)

    # -- webhooks --------------------------------------------------------------------------------------------------

    def webhook(self, tenant: str, id: str) -> Webhook | None:
        """Return a webhook, or None."""
        found = self._bucket.get_json(records.webhook(tenant, id))
        return None if found is None else Webhook.model_validate(found)

    def webhooks(self, tenant: str) -> Iterator[Webhook]:
        """Yield the webhooks of a tenant."""
        for key in self._documents(records.webhooks(tenant)):
            found = self._bucket.get_json(key)
            if found is not None:
                yield Webhook.model_validate(found)

    def disable(self, webhook: Webhook, why: str) -> None:
        """Send it nothing more."""
        with self._clock.lock(f"webhook:{webhook.id}", wait=5):
            found = self.webhook(webhook.tenant, webhook.id)
            if found is not None:
                changed = found.model_copy(update={"disabled_at": records.time(), "disabled_because": why})
                self._bucket.put_json(records.webhook(webhook.tenant, webhook.id), records.json(changed))

    # -- deliveries ------------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery) -> None:
        """Record a delivery, unless it is recorded already; see that it is made unless it is settled."""
        name = records.name(delivery)
        if not self._bucket.write_once(records.record(name), records.json(delivery)):
            found = self.read(name)
            if found is None or found.state != "pending":
                return
        self._bucket.put_json(records.DUE + name, {"id": delivery.id})
        with suppress(Down):
            self.agenda.add([name])

    def read(self, name: str) -> Delivery | None:
        """Return a delivery, or None if its webhook was deleted."""
        found = self._bucket.get_json(records.record(name))
        return None if found is None else Delivery.model_validate(found)

    def update(self, delivery: Delivery) -> None:
        """Record how an attempt went, and when the next is due, if there is one."""
        name = records.name(delivery)
        if self._bucket.head(records.record(name)) is None:
            self.drop(name)  # its webhook was deleted meanwhile
            return
        self._bucket.put_json(records.record(name), records.json(delivery))
        if delivery.state == "pending" and delivery.next_at is not None:
            self.agenda.wait(name, delivery.next_at)
        else:
            self.drop(name)
            self._trim(delivery)

    def forget(self, job: Item) -> None:
        """Drop what was, or is still to be, told of a job that is being deleted.

        Raises:
            Down: Redis does not answer.
        """
        self._bucket.delete(layout.to_tell(job.id))
        if job.outcome is None:
            return
        for webhook in self.webhooks(owner(job.request)):
            name = records.name(_delivery(webhook, f"job.{job.outcome['state']}", job, 1))
            self._bucket.delete(records.record(name))
            self.drop(name)

    def drop(self, name: str) -> None:
        """Forget a delivery that is settled, or whose webhook was deleted."""
        self._bucket.delete(records.DUE + name)
        self.agenda.drop(name)

    def deliveries(self, tenant: str, webhook: str, limit: int) -> list[Delivery]:
        """Return the last deliveries of a webhook, newest first."""
        keys = islice(self._documents(records.deliveries(tenant, webhook)), limit)
        found = (self._bucket.get_json(key) for key in keys)
        return [Delivery.model_validate(document) for document in found if document is not None]

    def _documents(self, prefix: str) -> Iterator[str]:
        # nanio lists the files that it is still writing too.
        return (key for key in self._bucket.list(prefix) if key.endswith(".json"))

    def _trim(self, delivery: Delivery) -> None:
        keys = self._documents(records.deliveries(delivery.tenant, delivery.webhook))
        for key in list(islice(keys, KEPT, KEPT + 10)):
            found = self._bucket.get_json(key)
            if found is not None and found["state"] != "pending":
                self._bucket.delete(key)

    # -- ended jobs ------------------------------------------------------------------------------------------------

    def tell_ended(self) -> int:
        """Turn the markers of jobs that have ended into deliveries; one process at a time does that.

        Returns:
            How many jobs that was.
        """
        with self._clock.lock("webhooks", seconds=60, wait=0) as elected:
            if not elected:
                return 0
            jobs = self._clock.ended()
            if self._redis.set(_SWEPT, "1", nx=True, ex=_SWEEP_SECONDS):
                jobs |= self._sweep()
            now = sorted(jobs)[:_BATCH]
            for job in now:
                self._tell(job)
                self._clock.told(job)
            return len(now)

    def _sweep(self) -> set[str]:
        """Read every marker, and note what Redis does not know (any more)."""
        names = (key[len(records.DUE) :] for key in self._bucket.list(records.DUE))
        self.agenda.add(filter(records.is_name, names))
        marked = [key[len(layout.TO_TELL) :] for key in self._bucket.list(layout.TO_TELL)]
        jobs = [job for job in marked if is_id("job", job)]
        if not self._index.complete():
            # The list of open jobs is being rebuilt: look again at the next tick.
            self._redis.delete(_SWEPT)
            return set()
        ended = set(jobs) - self._index.opened("job", jobs)
        for job in ended:
            self._clock.note_ended(job)
        return ended

    def _tell(self, job: str) -> None:
        marker = layout.to_tell(job)
        if self._bucket.head(marker) is None:
            return
        item = self._ledger.read(job)
        if item is None:
            if time.time() - milliseconds(job) / 1000 > _ORPHAN_SECONDS:
                self._bucket.delete(marker)
            return
        if item.outcome is None:
            return
        event, labels = f"job.{item.outcome['state']}", item.request.get("labels", {})
        for webhook in self.webhooks(owner(item.request)):
            if webhook.wants(event, labels):
                self.put(_delivery(webhook, event, item, len(self._settings.webhook_schedule)))
        self._bucket.delete(marker)


def _delivery(webhook: Webhook, event: str, item: Item, most_tries: int) -> Delivery:
    request, outcome = item.request, item.outcome or {}
    error = outcome.get("problem")
    data = {
        "id": item.id,
        "state": outcome["state"],
        "labels": request.get("labels", {}),
        "model": request["model"],
        "calibration": request["calibration"],
        "attempt": outcome.get("attempt", 0),
        "created_at": request["created_at"],
        "started_at": outcome.get("started_at"),
        "ended_at": outcome["ended_at"],
        # Small: the whole document is the job's.
        "error": error and {name: error[name] for name in ("type", "title", "status", "detail") if name in error},
        "links": {"self": f"/jobs/{item.id}"},
    }
    return Delivery(
        id=f"msg_{item.id.removeprefix('job_')}",
        webhook=webhook.id,
        tenant=webhook.tenant,
        event=event,
        body=json.dumps({"type": event, "timestamp": outcome["ended_at"], "data": data}, ensure_ascii=False),
        created_at=outcome["ended_at"],
        most_tries=most_tries,
    )
