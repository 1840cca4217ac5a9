"""Cancelling a job: the bucket has the promise at once, whoever holds the job hears of it within seconds."""

from __future__ import annotations

from jobs import layout
from jobs.clock import Down
from jobs.errors import Conflict, NotFound
from jobs.items import Items
from jobs.ledger import Ledger
from jobs.reconciler import Reconciler
from jobs.records import JobView, now
from jobs.states import ENDED
from jobs.views import Views


class Cancellations:
    """The use case, for one tenant; `jobs.service.Service` offers it."""

    def __init__(self, ledger: Ledger, views: Views, items: Items, reconciler: Reconciler) -> None:
        self._ledger, self._views, self._items, self._reconciler = ledger, views, items, reconciler
        self._bucket, self._clock = ledger.bucket, ledger.clock

    def cancel(self, job: str) -> JobView:
        """Cancel a job; see `jobs.service.Service.cancel_job`."""
        found = self._items.find("job", job)
        if found is None:
            raise NotFound("There is no job of this id.", received=job[:64])
        if found.outcome is None:
            self._bucket.write_once(layout.cancel(job), {"cancelled_at": now()})
            try:
                self._clock.flag_cancel(job)
                token = self._clock.claim(job)
                if token is not None:
                    try:
                        self._ledger.resolve(job, token)
                    finally:
                        self._clock.release(job, token)
            except Down:
                self._reconciler.remember(job, self._items.tenant)
            found = self._ledger.read(job) or found
        view = self._views.job(found)
        if view.state in ENDED and view.state != "cancelled":
            raise Conflict(
                f"The job has already {view.state}; only a queued or running job can be cancelled.",
                expected="queued or running",
                received=view.state,
            )
        return view
