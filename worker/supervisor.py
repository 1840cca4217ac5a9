"""One attempt at one item: claim, fetch, run in the sandbox, store, publish, release.

The supervisor sees bytes and problem documents, never a tensor. Whatever it does before the outcome is published has
no effect on anybody, so it may be killed at any line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from jobs import layout, logs
from jobs.clock import Down
from jobs.errors import NotFound, Unavailable
from jobs.holder import Holder
from jobs.ids import UploadKind
from jobs.ledger import Item
from jobs.records import Attempt
from jobs.service import Service
from jobs.settings import Settings
from jobs.submission import rejection
from jobs.uploads import USES
from pruning_core.errors import PruningError
from pruning_core.report import Progress
from worker import sandbox
from worker.courier import Courier
from worker.scratch import scratch

logger = logging.getLogger(__name__)

T = TypeVar("T")
TaskName = Literal["prune", "inspect_model", "inspect_dataset", "inspect_mask"]

_INSPECTIONS: dict[UploadKind, TaskName] = {
    "model": "inspect_model",
    "dataset": "inspect_dataset",
    "mask": "inspect_mask",
}

#: The user's name of an artifact of each level -> the file that the sandbox wrote.
_OF_LEVEL = {"model": "pruned-{}", "masks": "masks-{}.safetensors"}
_PAUSE_SECONDS = 0.5


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
    """The attempt must stop; the argument is the reason: ``lost``, ``cancel`` or ``shutdown``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to fetch and what to run."""

    task: TaskName
    files: dict[str, tuple[str, str]]  # name in the folder -> (key, SHA-256)
    arguments: dict[str, Any]
    limits: sandbox.Limits


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
            ``died``, ``superseded`` or ``unavailable``.
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
        return how

    def _hold(self, item: str, token: str) -> tuple[str, bool]:
        """Return how it went, and whether the item should be taken up again at once."""
        with Holder(self._ledger, item, token) as holder:
            found = self._ledger.resolve(item, token)
            if found is None:
                return "settled", False
            attempt = self._ledger.begin(found, token, self._worker)
            with logs.bound(request_id=found.request.get("request_id"), attempt=attempt.number):
                return self._try(found, attempt, holder)

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
            problem = PruningError(f"The worker failed with {type(error).__name__}.").problem()
        logger.warning("lost item=%s attempt=%d detail=%s", item, attempt.number, problem.get("detail"))
        with suppress(Interrupted):  # unrecorded, the attempt counts as one that ended without a word
            self._patiently(holder, partial(self._ledger.lost, item, attempt, problem))
        return "died", self._ledger.resolve(item, holder.token) is not None

    def _attempt(self, item: Item, attempt: Attempt, holder: Holder) -> str:
        holder.progress(Progress(stage="fetch", done=0, total=1, fraction=0.0))
        try:
            plan = self._patiently(holder, partial(self._plan, item))
        except PruningError as error:
            if error.status >= 500:
                raise
            return self._publish(item, attempt, holder, "fail", problem=error.problem())
        with scratch(self._service.settings.work_dir) as folder:
            for name, (key, sha256) in plan.files.items():
                self._patiently(holder, partial(self._bucket.download_to, key, folder / name, sha256))
            result = self._run(item, plan, holder, folder)
            logger.info("ran item=%s attempt=%d task=%s status=%s", item.id, attempt.number, plan.task, result.status)
            if result.status == "stopped":
                raise Interrupted(result.reason)
            if result.status == "died":
                raise _Lost(result.problem or {"detail": "The process ended without a word."})
            if result.status == "failed":
                return self._publish(item, attempt, holder, "fail", problem=result.problem)
            value = result.value or {}
            if item.kind != "job":
                return self._publish(item, attempt, holder, "succeed", result=value)
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
            goes_on = result.status == "died" or result.reason == "shutdown"
        finally:
            courier.stop(last_pass=goes_on, patience=settings.shutdown_seconds / 2)
        return result

    def _plan(self, item: Item) -> Plan:
        settings = self._service.settings
        if item.kind != "job":
            return _inspection(settings, item, item.kind)
        files = {field: self._usable(field, item.request[field]) for field in USES if item.request.get(field)}
        return Plan(
            task="prune",
            files=files,
            arguments={
                "recipe": item.request["recipe"],
                "device": settings.device,
                "sha256": {name: sha256 for name, (_, sha256) in files.items()},
            },
            limits=sandbox.Limits(
                memory_bytes=settings.job_memory_bytes,
                cpu_seconds=settings.job_cpu_seconds,
                file_bytes=settings.job_file_bytes,
                wall_seconds=settings.job_wall_seconds,
            ),
        )

    def _usable(self, field: str, upload: str) -> tuple[str, str]:
        found = self._ledger.read(upload)
        if found is None:
            raise NotFound(f"{field}: the upload was deleted before the job began.", received=upload, field=field)
        if found.outcome is not None and found.outcome["state"] == "rejected":
            raise rejection(field, upload, found.outcome.get("problem"))
        return layout.file(upload), found.request["sha256"]

    def _store(self, item: Item, attempt: Attempt, holder: Holder, folder: Path, levels: list[float]) -> dict[str, Any]:
        def store(filename: str, content_type: str) -> dict[str, Any]:
            key = layout.artifact(item.id, attempt.number, attempt.token, filename)
            upload = partial(self._bucket.upload_file, key, folder / filename, content_type=content_type)
            stored = self._patiently(holder, upload)
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

        # Once there is a result, only the loss of the lease or the end of this worker keeps it from being published.
        while True:
            try:
                return event if publish() else "superseded"
            except (Down, Unavailable) as error:
                logger.warning("publishing waits item=%s error=%s", item.id, type(error).__name__)
                if holder.reason == "lost" or self._stopping():
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _interrupted(self, item: Item, attempt: Attempt, holder: Holder, reason: str) -> tuple[str, bool]:
        logger.info("interrupted item=%s attempt=%d reason=%s", item.id, attempt.number, reason)
        if reason == "cancel":
            if item.kind != "job":
                return "superseded", False
            return self._publish(item, attempt, holder, "cancel"), False
        with suppress(Unavailable):  # then it counts
            self._ledger.give_back(item.id, attempt, reason)
        return "released", reason == "shutdown"

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


def _inspection(settings: Settings, item: Item, kind: UploadKind) -> Plan:
    return Plan(
        task=_INSPECTIONS[kind],
        files={kind: (layout.file(item.id), item.request["sha256"])},
        arguments={"device": "cpu", "sha256": {kind: item.request["sha256"]}},
        limits=sandbox.Limits(
            memory_bytes=settings.inspection_memory_bytes,
            cpu_seconds=settings.inspection_cpu_seconds,
            file_bytes=settings.inspection_file_bytes,
            wall_seconds=settings.inspection_wall_seconds,
        ),
    )
