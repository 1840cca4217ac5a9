"""The client that blocks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from client.connection import Connection
from client.effects import Answer, Effect, Emit, FileRange, Open, Operation, Read, Request, Send, Sleep, Work
from client.models import Algorithms, Artifact, Event, Job, JobState, Kind, Plan, ReportDocument, Upload
from client.operations import Operations, Recipe
from client.retries import Retry
from client.sending import PARTS_FROM_BYTES, FileToSend

T = TypeVar("T")
StrPath = str | os.PathLike[str]


def nothing(*_: object) -> None:
    """Ignore what is told."""


@dataclass(frozen=True)
class Done:
    """What an operation returned."""

    value: Any


class Client:
    """A client of one service; close it, or use it in a ``with`` block. Safe to share between threads.

    Args:
        url: Of the service; default: ``PRUNING_URL``, else ``http://127.0.0.1:8000``.
        key: API key; default: ``PRUNING_API_KEY``, else none.
        retry: How patiently to repeat what failed.
        http: Sends the requests, for proxies and certificates of your own; it is closed with this client.

    Each method raises `client.Problem` where the service refuses, and `client.Unreachable` where it does not answer.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        retry: Retry | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self._connection = Connection(url, key)
        self._calls = Operations(retry or Retry())
        self._http = http or httpx.Client()

    @property
    def url(self) -> str:
        """Of the service."""
        return self._connection.url

    def __repr__(self) -> str:
        """Return where it goes; never the key."""
        return f"{type(self).__name__}({self._connection.url!r})"

    def __enter__(self) -> Client:
        """Return this client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def upload(
        self,
        kind: Kind,
        path: StrPath,
        *,
        filename: str | None = None,
        sent: Callable[[int], None] = nothing,
        reuse: bool = False,
        resume: str | None = None,
        begun: Callable[[str], None] = nothing,
        parts_from: int = PARTS_FROM_BYTES,
        part_size: int | None = None,
    ) -> Upload:
        """Send a file; see `client.sending.FileToSend` for what the arguments mean."""
        return self._run(
            self._calls.upload(
                FileToSend(
                    kind=kind,
                    path=Path(path),
                    filename=filename,
                    sent=sent,
                    reuse=reuse,
                    resume=resume,
                    begun=begun,
                    parts_from=parts_from,
                    part_size=part_size,
                )
            )
        )

    def get_upload(self, kind: Kind, id: str) -> Upload:
        """Look at a model, dataset or mask."""
        return self._run(self._calls.get_upload(kind, id))

    def wait_upload(self, kind: Kind, id: str, *, timeout: float = 600.0) -> Upload:
        """Return an upload when a worker has inspected it; raises `Problem` if it is rejected."""
        return self._run(self._calls.wait_upload(kind, id, timeout))

    def list_uploads(self, kind: Kind, *, sha256: str | None = None) -> Iterator[Upload]:
        """Yield models, datasets or masks, newest first; or only those with these bytes."""
        return self._emitted(self._calls.list_uploads(kind, sha256))

    def delete_upload(self, kind: Kind, id: str) -> None:
        """Delete a model, dataset or mask with its bytes."""
        self._run(self._calls.delete(f"/{kind}s/{id}"))

    def algorithms(self) -> Algorithms:
        """Return what can be asked for."""
        return self._run(self._calls.algorithms())

    def plan(self, model: str, recipe: Recipe, *, calibration: str | None = None, masks: str | None = None) -> Plan:
        """Return what a job would do; nothing is queued. The model must be inspected."""
        return self._run(self._calls.plan(model, recipe, calibration, masks))

    def create_job(
        self,
        model: str,
        calibration: str,
        recipe: Recipe,
        *,
        validation: str | None = None,
        masks: str | None = None,
        labels: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Job:
        """Make a job, once, however often the request has to be sent.

        Args:
            model: Id of the model,
            calibration: of the data that the pruning looks at,
            recipe: how to prune,
            validation: id of the data to measure on,
            masks: and of the mask, for a recipe that takes one.
            labels: Your own names and values.
            key: The Idempotency-Key; the same one gives the same job. Default: a new one.
        """
        return self._run(
            self._calls.create_job(
                *(model, calibration, recipe), validation=validation, masks=masks, labels=labels, key=key
            )
        )

    def get_job(self, id: str) -> Job:
        """Look at a job."""
        return self._run(self._calls.get_job(id))

    def list_jobs(self, *, state: JobState | None = None, label: tuple[str, str] | None = None) -> Iterator[Job]:
        """Yield jobs, newest first."""
        return self._emitted(self._calls.list_jobs(state, label))

    def cancel_job(self, id: str) -> Job:
        """Cancel a job; cancelling again changes nothing."""
        return self._run(self._calls.cancel_job(id))

    def delete_job(self, id: str) -> None:
        """Delete a job that has ended, with all that it made."""
        self._run(self._calls.delete(f"/jobs/{id}"))

    def wait_job(self, id: str, *, timeout: float | None = None, told: Callable[[Event], None] = nothing) -> Job:
        """Return a job when it has ended, however it did (`Job.check` raises if it failed).

        Args:
            id: Of the job.
            timeout: Seconds after which `client.StillRunning` is raised.
            told: Called with each event.
        """
        return self._run(self._calls.wait_job(id, timeout), told)

    def events(self, id: str) -> Iterator[Event]:
        """Yield what happens to a job; the last one is its ``outcome``."""
        return self._emitted(self._calls.wait_job(id, None))

    def download(
        self,
        job: str,
        artifact: Artifact = "model",
        to: StrPath | None = None,
        *,
        sparsity: float | None = None,
        got: Callable[[int, int], None] = nothing,
    ) -> Path:
        """Fetch what a job made and return where it is; see `client.fetching.download`."""
        where = None if to is None else Path(to)
        return self._run(self._calls.download(job, artifact, where, sparsity, got))

    def report(self, job: str, media_type: str = "application/json") -> ReportDocument:
        """Fetch a report into memory; raises `client.NotOffered` if the service has none of this type."""
        return self._run(self._calls.report(job, media_type))

    def _run(self, operation: Operation[T], told: Callable[[Any], None] = nothing) -> T:
        for step in self._steps(operation):
            if isinstance(step, Done):
                value: T = step.value
                return value
            told(step)
        raise AssertionError  # the last step is `Done`

    def _emitted(self, operation: Operation[Any]) -> Iterator[Any]:
        for step in self._steps(operation):
            if not isinstance(step, Done):
                yield step

    def _steps(self, operation: Operation[Any]) -> Iterator[Any]:
        """Yield what an operation emits, and at last `Done`."""
        with _Exchange(self._http, self._connection) as exchange:
            result: Any = None
            failure: httpx.TransportError | None = None
            while True:
                try:
                    effect = operation.send(result) if failure is None else operation.throw(failure)
                except StopIteration as end:
                    yield Done(end.value)
                    return
                result = failure = None
                if isinstance(effect, Emit):
                    yield effect.value
                    continue
                try:
                    result = exchange.perform(effect)
                except httpx.TransportError as error:
                    failure = error


class _Exchange:
    """What one operation has open."""

    def __init__(self, http: httpx.Client, connection: Connection) -> None:
        self._http, self._connection = http, connection
        self._stream: httpx.Response | None = None
        self._blocks: Iterator[bytes] = iter(())

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def perform(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            response = self._http.send(self._built(effect.request))
            return Answer(status=response.status_code, headers=response.headers, body=response.content)
        if isinstance(effect, Open):
            return self._open(effect.request)
        if isinstance(effect, Read):
            return next(self._blocks, b"")
        if isinstance(effect, Sleep):
            return time.sleep(effect.seconds)
        assert isinstance(effect, Work)
        return effect.do()

    def _open(self, request: Request) -> Answer:
        self.__exit__()
        self._stream = self._http.send(self._built(request), stream=True)
        self._blocks = self._stream.iter_raw()
        body = b"" if self._stream.status_code < 300 else self._stream.read()
        return Answer(status=self._stream.status_code, headers=self._stream.headers, body=body)

    def _built(self, request: Request) -> httpx.Request:
        body = request.body
        return self._connection.request(self._http, request, body.blocks() if isinstance(body, FileRange) else body)
