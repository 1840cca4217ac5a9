"""The client that does not block: the same methods as `client.Client`, to be awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import anyio
import httpx
from anyio import to_thread

from client.connection import Connection
from client.effects import Answer, Effect, Emit, FileRange, Open, Operation, Read, Request, Send, Sleep, Work
from client.models import Algorithms, Artifact, Event, Job, JobState, Kind, Plan, ReportDocument, Upload
from client.operations import Operations, Recipe
from client.retries import Retry
from client.sending import PARTS_FROM_BYTES, FileToSend
from client.sync import Done, StrPath, nothing

T = TypeVar("T")


class AsyncClient:
    """A client of one service; close it, or use it in an ``async with`` block.

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
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._connection = Connection(url, key)
        self._calls = Operations(retry or Retry())
        self._http = http or httpx.AsyncClient()

    @property
    def url(self) -> str:
        """Of the service."""
        return self._connection.url

    def __repr__(self) -> str:
        """Return where it goes; never the key."""
        return f"{type(self).__name__}({self._connection.url!r})"

    async def __aenter__(self) -> AsyncClient:
        """Return this client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def upload(
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
        return await self._run(
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

    async def get_upload(self, kind: Kind, id: str) -> Upload:
        """Look at a model, dataset or mask."""
        return await self._run(self._calls.get_upload(kind, id))

    async def wait_upload(self, kind: Kind, id: str, *, timeout: float = 600.0) -> Upload:
        """Return an upload when a worker has inspected it; raises `Problem` if it is rejected."""
        return await self._run(self._calls.wait_upload(kind, id, timeout))

    def list_uploads(self, kind: Kind, *, sha256: str | None = None) -> AsyncIterator[Upload]:
        """Yield models, datasets or masks, newest first; or only those with these bytes."""
        return self._emitted(self._calls.list_uploads(kind, sha256))

    async def delete_upload(self, kind: Kind, id: str) -> None:
        """Delete a model, dataset or mask with its bytes."""
        await self._run(self._calls.delete(f"/{kind}s/{id}"))

    async def algorithms(self) -> Algorithms:
        """Return what can be asked for."""
        return await self._run(self._calls.algorithms())

    async def plan(
        self, model: str, recipe: Recipe, *, calibration: str | None = None, masks: str | None = None
    ) -> Plan:
        """Return what a job would do; nothing is queued. The model must be inspected."""
        return await self._run(self._calls.plan(model, recipe, calibration, masks))

    async def create_job(
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
        return await self._run(
            self._calls.create_job(
                *(model, calibration, recipe), validation=validation, masks=masks, labels=labels, key=key
            )
        )

    async def get_job(self, id: str) -> Job:
        """Look at a job."""
        return await self._run(self._calls.get_job(id))

    def list_jobs(self, *, state: JobState | None = None, label: tuple[str, str] | None = None) -> AsyncIterator[Job]:
        """Yield jobs, newest first."""
        return self._emitted(self._calls.list_jobs(state, label))

    async def cancel_job(self, id: str) -> Job:
        """Cancel a job; cancelling again changes nothing."""
        return await self._run(self._calls.cancel_job(id))

    async def delete_job(self, id: str) -> None:
        """Delete a job that has ended, with all that it made."""
        await self._run(self._calls.delete(f"/jobs/{id}"))

    async def wait_job(self, id: str, *, timeout: float | None = None, told: Callable[[Event], None] = nothing) -> Job:
        """Return a job when it has ended, however it did (`Job.check` raises if it failed).

        Args:
            id: Of the job.
            timeout: Seconds after which `client.StillRunning` is raised.
            told: Called with each event.
        """
        return await self._run(self._calls.wait_job(id, timeout), told)

    def events(self, id: str) -> AsyncIterator[Event]:
        """Yield what happens to a job; the last one is its ``outcome``."""
        return self._emitted(self._calls.wait_job(id, None))

    async def download(
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
        return await self._run(self._calls.download(job, artifact, where, sparsity, got))

    async def report(self, job: str, media_type: str = "application/json") -> ReportDocument:
        """Fetch a report into memory; raises `client.NotOffered` if the service has none of this type."""
        return await self._run(self._calls.report(job, media_type))

    async def _run(self, operation: Operation[T], told: Callable[[Any], None] = nothing) -> T:
        async with aclosing(self._steps(operation)) as steps:
            async for step in steps:
                if isinstance(step, Done):
                    value: T = step.value
                    return value
                told(step)
        raise AssertionError  # the last step is `Done`

    async def _emitted(self, operation: Operation[Any]) -> AsyncIterator[Any]:
        async with aclosing(self._steps(operation)) as steps:
            async for step in steps:
                if not isinstance(step, Done):
                    yield step

    async def _steps(self, operation: Operation[Any]) -> AsyncGenerator[Any, None]:
        """Yield what an operation emits, and at last `Done`."""
        async with _Exchange(self._http, self._connection) as exchange:
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
                    result = await exchange.perform(effect)
                except httpx.TransportError as error:
                    failure = error


class _Exchange:
    """What one operation has open."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection) -> None:
        self._http, self._connection = http, connection
        self._stream: httpx.Response | None = None
        self._blocks: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> _Exchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            await self._stream.aclose()

    async def perform(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            response = await self._http.send(self._built(effect.request))
            return Answer(status=response.status_code, headers=response.headers, body=response.content)
        if isinstance(effect, Open):
            return await self._open(effect.request)
        if isinstance(effect, Read):
            return b"" if self._blocks is None else await anext(self._blocks, b"")
        if isinstance(effect, Sleep):
            return await anyio.sleep(effect.seconds)
        assert isinstance(effect, Work)
        return await to_thread.run_sync(effect.do)

    async def _open(self, request: Request) -> Answer:
        await self.__aexit__()
        self._stream = await self._http.send(self._built(request), stream=True)
        self._blocks = self._stream.aiter_raw()
        body = b"" if self._stream.status_code < 300 else await self._stream.aread()
        return Answer(status=self._stream.status_code, headers=self._stream.headers, body=body)

    def _built(self, request: Request) -> httpx.Request:
        body = request.body
        return self._connection.request(self._http, request, _read(body) if isinstance(body, FileRange) else body)


async def _read(file: FileRange) -> AsyncIterator[bytes]:
    blocks = file.blocks()
    try:
        while block := await to_thread.run_sync(next, blocks, b""):
            yield block
    finally:
        blocks.close()
