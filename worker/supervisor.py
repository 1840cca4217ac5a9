"""One attempt at one item: claim, fetch, run in the sandbox, store, publish, release.

The supervisor sees bytes and problem documents, never a tensor. Whatever it does before the outcome is published has
no effect on anybody, so it may be killed at any line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from jobs import layout, logs, tracing
from jobs.blobs import Blobs, bytes_of
from jobs.clock import Down
from jobs.errors import Unavailable
from jobs.holder import Holder
from jobs.ids import kind_of
from jobs.ledger import Item
from jobs.queue import queue_of
from jobs.records import Attempt
from jobs.service import Service
from jobs.tenants import owner
from pruning_core.errors import PruningError
from pruning_core.report import Progress
from worker import sandbox
from worker.courier import Courier
from worker.limits import no_space
from worker.plans import Plan, TaskName, Unusable, fetch, plan_of
from worker.room import wait_for_room
from worker.scratch import scratch

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: The user's name of an artifact of each level -> the file that the sandbox wrote.
_OF_LEVEL = {"model": "pruned-{}", "masks": "masks-{}.safetensors", "compact": "compact-{}"}
_PAUSE_SECONDS = 0.5
#: How often an item is handed back because the disk was full. After that it may be the item that fills it: it counts.
_DISK_PATIENCE = 10


class Runner(Protocol):
    """What `worker.sandbox.run` is; tests put something else in its place."""

    def __call__(
        self,
        task: TaskName,
        folder: Path,
        arguments: dict[str, Any],
        *,
        limits: sandbox.Limits,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], str | None],
    ) -> sandbox.Result:
        """Run one task."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The attempt must stop; the argument is the reason: ``lost``, ``cancel``, ``shutdown`` or ``disk-full``."""


class Supervisor:
    """Takes items up, one at a time."""

    def __init__(
        self,
        service: Service,
        *,
        worker: str,
        stopping: Callable[[], bool],
        runner: Runner = sandbox.run,
    ) -> None:
        """Make a supervisor.

        Args:
            service: The bucket, the clock and the queue.
            worker: Who this is, for the record.
            stopping: Whether this worker was told to stop.
            runner: Runs a task in the sandbox.
        """
        self._service, self._worker, self._stopping, self._runner = service, worker, stopping, runner
        self._ledger, self._clock, self._bucket = service.ledger, service.clock, service.bucket

    def supervise(self, item: str) -> str:
        """Take an item up, if nobody has it and it has no outcome.

        Returns:
            How that went, for the log: ``duplicate``, ``settled``, ``succeed``, ``fail``, ``cancel``, ``released``,
            ``died``, ``disk-full``, ``superseded`` or ``unavailable``.
        """
        with logs.bound(item=item, worker=self._worker):
            return self._supervise(item)

    def _supervise(self, item: str) -> str:
        try:
            self._clock.unhint(item)
            token = self._clock.claim(item)
            if token is None:
                how = "duplicate"
            else:
                how, again = self._hold(item, token)
                if again:
                    self._service.queue.enqueue(item, begun=True)
        except (Down, Unavailable) as error:
            # Nothing is lost: the reconciler finds the item without a lease.
            logger.warning("gave up item=%s error=%s", item, error)
            how = "unavailable"
        logger.info("done item=%s worker=%s result=%s", item, self._worker, how)
        self._clock.metrics.add("pruning_attempts_total", queue=queue_of(kind_of(item)), result=how)
        self._clock.metrics.flush()
        if how == sandbox.DISK_FULL:
            # The item is in the queue again: another worker may have the room.
            settings = self._service.settings
            wait_for_room(settings.work_dir, settings.min_free_bytes, self._stopping)
        return how

    def _hold(self, item: str, token: str) -> tuple[str, bool]:
        """Return how it went, and whether the item should be taken up again at once."""
        with Holder(self._ledger, item, token) as holder:
            found = self._ledger.resolve(item, token)
            if found is None:
                return "settled", False
            attempt = self._ledger.begin(found, token, self._worker)
            with (
                logs.bound(request_id=found.request.get("request_id"), attempt=attempt.number),
                tracing.span(
                    f"attempt {found.kind}",
                    parent=found.request.get("traceparent"),
                    kind="consumer",
                    item=item,
                    attempt=attempt.number,
                    worker=self._worker,
                ) as span,
            ):
                how, again = self._try(found, attempt, holder)
                holder.finish()
                tracing.note(span, result=how, failed=how if how == "died" else None)
                return how, again

    def _try(self, found: Item, attempt: Attempt, holder: Holder) -> tuple[str, bool]:
        """Return how it went, and whether the item should be taken up again at once."""
        item = found.id
        logger.info("begin item=%s attempt=%d worker=%s", item, attempt.number, self._worker)
        try:
            return self._attempt(found, attempt, holder), False
        except Interrupted as interrupted:
            return self._interrupted(found, attempt, holder, str(interrupted))
        except _Lost as lost:
            problem = lost.args[0]
        except (Down, Unavailable):
            raise
        except PruningError as error:
            # Such as a digest that differs after the download: another attempt may well succeed.
            problem = error.problem()
        except Exception as error:
            logger.exception("attempt failed item=%s attempt=%d", item, attempt.number)
            if no_space(error):
                return self._interrupted(found, attempt, holder, sandbox.DISK_FULL)
            problem = PruningError(f"The worker failed with {type(error).__name__}.").problem()
        logger.warning("lost item=%s attempt=%d detail=%s", item, attempt.number, problem.get("detail"))
        with suppress(Interrupted):  # unrecorded, the attempt counts as one that ended without a word
            self._patiently(holder, partial(self._ledger.lost, item, attempt, problem))
        return "died", self._ledger.resolve(item, holder.token) is not None

    def _attempt(self, item: Item, attempt: Attempt, holder: Holder) -> str:
        holder.progress(Progress(stage="fetch", done=0, total=1, fraction=0.0))
        try:
            plan = self._patiently(holder, partial(plan_of, item, self._ledger))
        except PruningError as error:
            if error.status >= 500:
                raise
            return self._publish(item, attempt, holder, "fail", problem=error.problem())
        with scratch(self._service.settings.work_dir) as folder:
            try:
                fetch(plan, self._bucket, folder, partial(self._patiently, holder))
            except Unusable as unusable:
                none = None if item.kind == "job" else {"blob": None}
                return self._publish(item, attempt, holder, "fail", problem=unusable.args[0], artifacts=none)
            settled = self._settled(item, holder)
            size = sum((folder / name).stat().st_size for name in plan.files)
            self._clock.metrics.add("pruning_worker_bytes_total", size, direction="fetched")
            holder.stage("start")
            result = self._run(item, plan, holder, folder)
            if result.memory_peak_bytes:
                peak = result.memory_peak_bytes
                self._clock.metrics.observe("pruning_sandbox_memory_peak_bytes", peak, task=plan.task)
            logger.info("ran item=%s attempt=%d task=%s status=%s", item.id, attempt.number, plan.task, result.status)
            if result.status == "stopped":
                raise Interrupted(result.reason)
            if result.status == "died":
                raise _Lost(result.problem or {"detail": "The process ended without a word."})
            if result.status == "failed":
                return self._publish(item, attempt, holder, "fail", problem=result.problem, artifacts=settled)
            value = result.value or {}
            if item.kind != "job":
                return self._publish(item, attempt, holder, "succeed", result=value, artifacts=settled)
            holder.progress(Progress(stage="store", done=0, total=1, fraction=1.0))
            artifacts = self._store(item, attempt, holder, folder, value["levels"])
        return self._publish(item, attempt, holder, "succeed", result=value["summary"], artifacts=artifacts)

    def _run(self, item: Item, plan: Plan, holder: Holder, folder: Path) -> sandbox.Result:
        """Run the sandbox; a job goes on from the steps that earlier attempts finished, and its own are kept."""
        run = partial(
            self._runner,
            plan.task,
            folder,
            {**plan.arguments, **logs.origin()},
            limits=plan.limits,
            on_progress=holder.progress,
            stop=lambda: self._reason(holder),
        )
        if item.kind != "job":
            return run()
        settings = self._service.settings
        courier = Courier(
            self._bucket,
            item.id,
            folder / "checkpoints",
            max_bytes=settings.job_checkpoint_bytes,
            may_carry=lambda: holder.reason is None,
        )
        if item.attempts:
            names = self._patiently(holder, courier.known)
            fetched = [name for name in names if self._patiently(holder, partial(courier.fetch, name))]
            logger.info("resume item=%s checkpoints=%d", item.id, len(fetched))
        courier.start()
        goes_on = False
        try:
            result = run()
            goes_on = result.status == "died" or result.reason in ("shutdown", sandbox.DISK_FULL)
        finally:
            courier.stop(last_pass=goes_on, patience=settings.shutdown_seconds / 2)
        return result

    def _settled(self, item: Item, holder: Holder) -> dict[str, Any] | None:
        """Say where the bytes of an upload lie from now on, if that was not settled when it was sent."""
        if item.kind == "job" or item.request.get("verified", True):
            return None
        blobs = Blobs(self._ledger, owner(item.request))
        step = partial(blobs.settle, bytes_of(item), item.request["sha256"], item.id)
        return {"blob": self._patiently(holder, step)}

    def _store(self, item: Item, attempt: Attempt, holder: Holder, folder: Path, levels: list[float]) -> dict[str, Any]:
        def store(filename: str, content_type: str) -> dict[str, Any]:
            key = layout.artifact(item.id, attempt.number, attempt.token, filename)
            upload = partial(self._bucket.upload_file, key, folder / filename, content_type=content_type)
            stored = self._patiently(holder, upload)
            self._clock.metrics.add("pruning_worker_bytes_total", stored.size, direction="stored")
            return {"key": key, "size": stored.size, "sha256": stored.sha256}

        kept = []
        for i, sparsity in enumerate(levels):
            files = {name: store(file.format(i), "application/octet-stream") for name, file in _OF_LEVEL.items()}
            kept.append({"sparsity": sparsity, **files})
        return {"levels": kept, "report": store("report.json", "application/json")}

    def _publish(
        self,
        item: Item,
        attempt: Attempt,
        holder: Holder,
        event: Literal["succeed", "fail", "cancel"],
        *,
        problem: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        artifacts: dict[str, Any] | None = None,
    ) -> str:
        def publish() -> bool:
            return self._ledger.publish(
                item, holder.token, event, attempt=attempt, problem=problem, result=result, artifacts=artifacts
            )

        holder.stage("publish")
        # Once there is a result, only the loss of the lease or the end of this worker keeps it from being published.
        while True:
            try:
                written = publish()
                break
            except (Down, Unavailable) as error:
                logger.warning("publishing waits item=%s error=%s", item.id, type(error).__name__)
                if holder.reason == "lost" or self._stopping():
                    raise
                time.sleep(_PAUSE_SECONDS)
        if item.kind != "job" and artifacts is not None:
            with suppress(Down, Unavailable):  # then the sweeper does it
                Blobs(self._ledger, owner(item.request)).trim(item.id, {bytes_of(item), artifacts["blob"]})
        return event if written else "superseded"

    def _interrupted(self, item: Item, attempt: Attempt, holder: Holder, reason: str) -> tuple[str, bool]:
        logger.info("interrupted item=%s attempt=%d reason=%s", item.id, attempt.number, reason)
        if reason == "cancel":
            if item.kind != "job":
                return "superseded", False
            return self._publish(item, attempt, holder, "cancel"), False
        if reason == sandbox.DISK_FULL:
            return self._without_room(item, attempt, holder), True
        with suppress(Unavailable):  # then it counts
            self._ledger.give_back(item.id, attempt, reason)
        return "released", reason == "shutdown"

    def _without_room(self, item: Item, attempt: Attempt, holder: Holder) -> str:
        record = partial(self._ledger.give_back, item.id, attempt, sandbox.DISK_FULL)
        if sum(earlier.released == sandbox.DISK_FULL for earlier in item.attempts) >= _DISK_PATIENCE:
            detail = f"The disk of the worker was full, as in {_DISK_PATIENCE} attempts before."
            record = partial(self._ledger.lost, item.id, attempt, PruningError(detail).problem())
        with suppress(Interrupted):  # unrecorded, it counts
            self._patiently(holder, record)
        return sandbox.DISK_FULL

    def _reason(self, holder: Holder) -> str | None:
        return holder.reason or ("shutdown" if self._stopping() else None)

    def _patiently(self, holder: Holder, step: Callable[[], T]) -> T:
        """Do a step that needs bucket or Redis; wait while they do not answer, unless the attempt must stop."""
        while True:
            reason = self._reason(holder)
            if reason is not None:
                raise Interrupted(reason)
            try:
                return step()
            except (Down, Unavailable) as error:
                logger.warning("waiting item=%s error=%s", holder.item, error)
                time.sleep(_PAUSE_SECONDS)


class _Lost(Exception):  # noqa: N818
    """The sandboxed process died; the argument is the problem document."""
