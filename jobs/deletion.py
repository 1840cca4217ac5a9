"""Deleting a job: nothing with its id is left in the bucket but what quotas and the audit log count."""

from __future__ import annotations

from contextlib import AbstractContextManager

from jobs import layout
from jobs.blobs import Blobs
from jobs.errors import Conflict, NotFound, Unavailable
from jobs.items import Items
from jobs.ledger import Item, Ledger
from jobs.locks import alone
from jobs.webhooks.outbox import Outbox


class Deletions:
    """The use case, for one tenant; `jobs.service.Service` offers it."""

    def __init__(self, ledger: Ledger, items: Items, outbox: Outbox) -> None:
        self._ledger, self._items, self._outbox = ledger, items, outbox
        self._bucket = ledger.bucket

    def delete(self, job: str) -> None:
        """Delete a job that has ended; see `jobs.service.Service.delete_job`.

        Its outcome goes last, after its request: at no line does it look as if it could be taken up again, and until
        its request has gone the deletion can be repeated.
        """
        found = self._items.find("job", job)
        if found is None:
            raise NotFound("There is no job of this id.", received=job[:64])
        if found.outcome is None:
            raise Conflict(
                "The job has not ended.",
                expected="succeeded, failed or cancelled",
                received=found.state(leased=None),
                advice="Cancel it first (POST /jobs/{id}/cancel), or wait.",
            )
        # The key first: a request that comes again with it must not make the job anew under its old id.
        where = self._idempotency(found)
        with self._alone(f"idempotency:{where}" if where else f"delete:{job}"):
            self._ledger.recall.forget(job)
            if where:
                self._bucket.delete(where)
            self._outbox.forget(found)
            blobs = Blobs(self._ledger, self._items.tenant)
            for known in found.request.get("inputs", {}).values():
                blobs.release(known["blob"], job)
            for key in list(self._bucket.list(layout.prefix(job))):
                if key not in (layout.request(job), layout.outcome(job)):
                    self._bucket.delete(key)
            self._items.remove(job)

    def _idempotency(self, job: Item) -> str | None:
        if "idempotency" in job.request:
            where: str | None = job.request["idempotency"]
            return where
        # Of version 0.1: the job does not say with which key it was made.
        for key in self._bucket.list("idempotency/"):
            if (self._bucket.get_json(key) or {}).get("job") == job.id:
                return key
        return None

    def _alone(self, name: str) -> AbstractContextManager[None]:
        busy = Unavailable("The job is being made or deleted.", advice="Try again in a moment.")
        return alone(self._ledger.clock, name, busy=busy, down="Redis does not answer.", wait=20, seconds=300)
