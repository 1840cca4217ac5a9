"""The use cases of jobs. The api calls these, and nothing below them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from jobs.artifacts import ArtifactName
from jobs.bucket import Bucket
from jobs.cancelling import Cancellations
from jobs.clock import Clock, Down
from jobs.deletion import Deletions
from jobs.ids import UploadKind
from jobs.index import Index
from jobs.items import Items
from jobs.ledger import Ledger
from jobs.multipart import Multipart
from jobs.paging import Pager
from jobs.queue import Queue
from jobs.quotas import Quotas
from jobs.readiness import Load, Part, loads, parts
from jobs.reconciler import Counts, Reconciler
from jobs.records import JobView, UploadView
from jobs.results import Results
from jobs.s3 import Stored
from jobs.sessions import Sessions
from jobs.settings import Settings
from jobs.states import ENDED
from jobs.submission import Submissions
from jobs.sweeper import Sweeper, Swept
from jobs.tenants import DEFAULT
from jobs.uploads import PendingUpload, Uploads
from jobs.usage import Usage
from jobs.views import Views
from jobs.webhooks.outbox import Outbox
from jobs.webhooks.registry import Webhooks
from jobs.webhooks.sender import Sender


class Service:
    """Everything a user can do with jobs and uploads, as one tenant. Safe to share between threads; not across a fork.

    A new one acts for the default tenant; `of` gives the same service, on the same connections, to another.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.bucket = Bucket(self.settings)
        self.clock = Clock(self.settings)
        self.index = Index(self.bucket, self.clock)
        self.queue = Queue(self.settings, self.clock)
        self.ledger = Ledger(self.settings, self.bucket, self.clock, self.index)
        self.reconciler = Reconciler(self.ledger, self.clock, self.index, self.queue)
        self.outbox = Outbox(self.settings, self.bucket, self.clock, self.index, self.ledger)
        self.multipart = Multipart(self.settings, self.bucket)
        self.sweeper = Sweeper(self.ledger, self.multipart, self.of)
        self._views = Views(self.ledger, self.clock, self.index)
        # Reading a page of items is many small reads of the bucket; they overlap.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="jobs")
        usage = Usage(self.settings, self.bucket, self.clock, self.index, self._threads)
        self.quotas = Quotas(self.settings, self.bucket, self.clock, usage)
        self._bind(DEFAULT)

    def of(self, tenant: str) -> Service:
        """Return this service as a tenant sees it; light, and closed with this one."""
        bound = copy.copy(self)
        bound._bind(tenant)
        return bound

    def _bind(self, tenant: str) -> None:
        self.tenant = tenant
        self._items = Items(self.ledger, tenant, self.quotas, self._note)
        self._pager = Pager(self.bucket, self.index, self._threads, tenant)
        self._submissions = Submissions(self.ledger, self._views, self._items)
        self._cancellations = Cancellations(self.ledger, self._views, self._items, self.reconciler)
        self._results = Results(self.bucket, self._views, self._items)
        self.uploads = Uploads(self.ledger, self._views, self._pager, self._items)
        self.parts = Sessions(self.ledger, self._items, self.uploads, self.multipart)
        self._deletions = Deletions(self.ledger, self._items, self.outbox)
        self.webhooks = Webhooks(self.settings, self.bucket, self.clock, self.outbox, tenant)

    def close(self) -> None:
        """Close all connections, also those of every `of`."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.queue.close()
        self.bucket.close()
        self.clock.redis.close()

    # -- uploads ---------------------------------------------------------------------------------------------------

    def begin_upload(
        self,
        kind: UploadKind,
        *,
        filename: str | None = None,
        format_hint: str | None = None,
        expected_sha256: str | None = None,
    ) -> PendingUpload:
        """Begin to store an upload; see `PendingUpload`."""
        return self.uploads.begin(kind, filename, format_hint, expected_sha256)

    def create_upload(
        self,
        kind: UploadKind,
        stream: Iterator[bytes],
        *,
        filename: str | None = None,
        format_hint: str | None = None,
        expected_sha256: str | None = None,
    ) -> UploadView:
        """Store an upload from a stream; nothing is left if that fails.

        Raises:
            TooLarge: It is larger than the service accepts.
            DigestMismatch: The bytes do not have the expected SHA-256.
            InputError: There are no bytes.
            Unavailable: The bucket does not answer.
        """
        pending = self.begin_upload(kind, filename=filename, format_hint=format_hint, expected_sha256=expected_sha256)
        try:
            for chunk in stream:
                pending.write(chunk)
            return pending.finish()
        except BaseException:
            pending.abort()
            raise

    def expect_upload(self, size: int) -> None:
        """Refuse early an upload of so many bytes, if the tenant has no room for it.

        Raises:
            StorageFull: It has none.
        """
        self._items.expect(stored=size)

    def get_upload(self, upload: str) -> UploadView | None:
        """Return the upload, or None if there is none of this id."""
        return self.uploads.get(upload)

    def list_uploads(
        self, kind: UploadKind, cursor: str | None = None, limit: int = 50, *, sha256: str | None = None
    ) -> tuple[list[UploadView], str | None]:
        """Return a page of uploads, newest first, and the cursor of the next page if there is more.

        With ``sha256`` only those whose bytes have it; of one that came in parts that is known when it was inspected.

        Raises:
            InputError: The cursor or the limit cannot be used.
        """
        return self.uploads.page(kind, cursor, limit, sha256)

    def delete_upload(self, upload: str) -> None:
        """Delete an upload and its bytes.

        Raises:
            NotFound: There is none of this id.
            Conflict: A job that has not ended uses it.
        """
        self.uploads.delete(upload)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def create_job(
        self,
        model: str,
        calibration: str,
        validation: str | None,
        recipe: Any,
        labels: dict[str, str] | None = None,
        idempotency_key: str | None = None,
        masks: str | None = None,
    ) -> tuple[JobView, bool]:
        """Record a job and hint the workers. Works without Redis: the bucket has the job when this returns.

        Args:
            model: Id of a model.
            calibration: Id of a dataset.
            validation: Id of a dataset to measure quality on, or None.
            recipe: What the user sent under ``recipe``.
            labels: The user's own names and values.
            idempotency_key: Two calls with the same key and body make one job.
            masks: Id of an uploaded mask, for a recipe that takes its mask from one.

        Returns:
            The job, and whether this call made it.

        Raises:
            NotFound: An upload does not exist.
            RejectedUpload: An upload was found unusable.
            RecipeError: The recipe cannot be used, or needs a mask, or none where one is named.
            InputError: Labels or key cannot be used.
            Conflict: The key was used with another body.
            Unavailable: The bucket does not answer.
        """
        uploads = {"model": model, "calibration": calibration, "validation": validation, "masks": masks}
        return self._submissions.create(uploads, recipe, labels or {}, idempotency_key)

    def plan(
        self, model: str, recipe: Any, *, calibration: str | None = None, masks: str | None = None
    ) -> dict[str, Any]:
        """Say what a job would do: recipe with defaults, layers, counts, a rough estimate. Nothing is queued.

        Raises:
            NotFound: An upload does not exist.
            NotReady: The model is still being inspected.
            RejectedUpload: An upload was found unusable.
            RecipeError: The recipe cannot be used.
            NothingToPrune: No layer takes part.
            MaskError: The mask does not fit the model.
        """
        uploads = {"model": model, "calibration": calibration, "masks": masks}
        return self._submissions.plan(uploads, recipe)

    def _note(self, item: str, tenant: str) -> None:
        """Note a new item in Redis and hint the workers; if Redis is down, the reconciler does it later."""
        try:
            self.index.add(item, tenant)
            self.queue.enqueue(item)
        except Down:
            self.reconciler.remember(item, tenant)

    def get_job(self, job: str) -> JobView | None:
        """Return the job, or None if there is none of this id."""
        found = self._items.find("job", job)
        return None if found is None else self._views.job(found)

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 50,
        *,
        state: str | None = None,
        label: tuple[str, str] | None = None,
    ) -> tuple[list[JobView], str | None]:
        """Return a page of jobs, newest first, and the cursor of the next page if there may be more.

        With a filter a page may be shorter than ``limit``, even empty, and still have a next one.

        Args:
            cursor: From the page before, or None.
            limit: 1 to 200.
            state: Only jobs in this state.
            label: Only jobs with this label: name and value.

        Raises:
            InputError: The cursor or the limit cannot be used.
        """

        def wanted(summary: dict[str, Any]) -> bool:
            return (state is None or summary["state"] == state) and (
                label is None or summary["labels"].get(label[0]) == label[1]
            )

        def read(job: str) -> JobView | None:
            view = self.get_job(job)
            if view is None:
                with suppress(Down):
                    self.index.remove(job, self.tenant)
            elif view.state in ENDED:
                with suppress(Down):
                    self.index.summarise(job, _summary(view))
            return view

        return self._pager.page("job", cursor, limit, read, _summary, wanted)

    def cancel_job(self, job: str) -> JobView:
        """Cancel a job; cancelling a cancelled one changes nothing.

        A job that no worker holds is cancelled when this returns; a worker that holds it stops within seconds.

        Raises:
            NotFound: There is none of this id.
            Conflict: It has ended otherwise.
        """
        return self._cancellations.cancel(job)

    def delete_job(self, job: str) -> None:
        """Delete a job that has ended, with all that it made. Its idempotency key may then make a new job.

        Raises:
            NotFound: There is none of this id.
            Conflict: It has not ended.
            Unavailable: Bucket or Redis does not answer.
        """
        self._deletions.delete(job)

    def artifact(self, job: str, name: ArtifactName, sparsity: float | None = None) -> Stored:
        """Return the record of an artifact of a job that succeeded; its SHA-256 is always known.

        Args:
            job: Id of the job.
            name: What of it; there is one report for all levels.
            sparsity: Of the wanted level, as the job's result names it; may be left out where there is one level.

        Raises:
            NotFound: There is no such job, level or artifact.
            NotReady: The job has not succeeded (yet).
            LevelNeeded: There are several levels, and none was named.
        """
        return self._results.artifact(job, name, sparsity)

    # -- upkeep ----------------------------------------------------------------------------------------------------

    def reconcile(self) -> Counts:
        """Do one round of the reconciler; call it every ``settings.reconcile_seconds``."""
        return self.reconciler.tick()

    def sender(self) -> Sender:
        """Return what delivers webhooks; start it once per process."""
        return Sender(self.settings, self.clock, self.outbox)

    def sweep(self) -> Swept:
        """Remove what nobody needs, now; may take long. ``sweeper.tick`` does so every ``settings.sweep_seconds``."""
        return self.sweeper.sweep()

    def ready(self) -> list[Part]:
        """Return what the service needs, and whether it is there."""
        return list(parts(self.settings, self.bucket, self.clock))

    def load(self) -> list[Load]:
        """Return how the queues stand.

        Raises:
            Down: Redis does not answer.
        """
        return loads(self.clock, self.index)


def _summary(view: JobView) -> dict[str, Any]:
    return {"state": view.state, "labels": view.labels}
