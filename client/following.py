"""Waiting for a job: by its events, and where they do not come through by asking again and again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator

import httpx

from client.effects import Answer, Emit, Open, Operation, Read, Request, Sleep
from client.errors import Problem, StillRunning, problem_of
from client.models import Event, Job
from client.retries import Patience, Retry, pause_after, pause_before, reliably, repeatable

#: The service gives a sign of life every 15 seconds.
_SILENCE_SECONDS = 60.0
#: Short enough to show progress; the end is told at once all the same.
_ASK_SECONDS = 10.0
_PAUSE_SECONDS = 2.0
#: Streams in a row that ended without a word: something between here and the service does not let them through.
_EMPTY_STREAMS = 3
_LINE_BYTES = 64 * 2**20


def follow(id: str, retry: Retry, *, timeout: float | None = None) -> Operation[Job]:
    """Emit each `Event` of a job; return the job when it has ended.

    Args:
        id: Of the job.
        retry: For broken connections.
        timeout: Seconds after which it is given up.

    Raises:
        StillRunning: The time is over.
        Problem: There is no such job, or the service refuses.
        Unreachable: The service does not answer.
    """
    until = math.inf if timeout is None else time.monotonic() + timeout
    told = _Told(id)
    patience, empty = Patience(retry), 0
    while empty < _EMPTY_STREAMS and (left := until - time.monotonic()) > _ASK_SECONDS:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if told.last is not None:
            headers["Last-Event-ID"] = told.last
        request = Request(method="GET", url=f"/jobs/{id}/events", headers=headers, silence=min(_SILENCE_SECONDS, left))
        try:
            answer: Answer = yield Open(request)
            if answer.status == 204 or "text/event-stream" not in answer.headers.get("content-type", ""):
                if _no_streams(answer):
                    break
                yield from pause_before(answer, patience)
                continue
            stream, silent = EventStream(), True
            while block := (yield Read()):
                for event in stream.feed(block):
                    told.last, silent = event.id or told.last, False
                    patience.renew()
                    yield Emit(event)
                    if event.kind == "outcome":
                        return Job.model_validate(event.data)
        except httpx.ReadTimeout:
            empty = empty + 1 if told.last is None else 0  # not even the first one, which comes at once
        except httpx.TransportError as error:
            yield from pause_after(error, patience)
        else:
            empty = empty + 1 if silent else 0
            yield Sleep(min(stream.retry_seconds, _PAUSE_SECONDS))
    return (yield from _ask(told, retry, until))


def _no_streams(answer: Answer) -> bool:
    """Return whether there is no stream to be had, but perhaps the job itself.

    Raises:
        Problem: The service refuses.
    """
    if answer.status < 300 or answer.status in (405, 406):
        return True
    problem = problem_of(answer)
    if problem.slug in ("too-many-streams", "no-such-path"):
        return True
    if not repeatable(answer):
        raise problem
    return False


class _Told:
    """What the caller knows of the job."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.last: str | None = None
        self._state: str | None = None
        self._step: tuple[str | None, float] = (None, 0.0)

    def news(self, job: Job) -> Iterator[Event]:
        """Yield what is new, as the stream would have said it."""
        if job.state != self._state:
            self._state = job.state
            yield Event(kind="state", data={"state": job.state, "attempt": job.attempt})
        step = (job.stage, job.progress)
        if job.state == "running" and step != self._step:
            self._step = step
            where = {"attempt": job.attempt, "stage": job.stage, "progress": job.progress}
            yield Event(kind="progress", data={**where, "eta_seconds": job.eta_seconds})
        if job.ended:
            yield Event(kind="outcome", data=job.model_dump(mode="json"))


def _ask(told: _Told, retry: Retry, until: float) -> Operation[Job]:
    wait = 0  # the first answer at once: the caller wants to see something
    while True:
        request = Request(
            method="GET", url=f"/jobs/{told.id}", headers={"Prefer": f"wait={wait}"}, silence=_SILENCE_SECONDS + wait
        )
        answer = yield from reliably(request, retry)
        job = Job.of(answer.body)
        for event in told.news(job):
            yield Emit(event)
        if job.ended:
            return job
        left = until - time.monotonic()
        if left <= 0:
            raise StillRunning(f"The job {job.id} is {job.state} ({job.progress:.0%}); it goes on.")
        if wait and "preference-applied" not in answer.headers:
            yield Sleep(min(_PAUSE_SECONDS, left))
        wait = max(1, math.ceil(min(_ASK_SECONDS, left)))


class EventStream:
    r"""Reads server-sent events (WHATWG) from bytes as they come.

    >>> stream = EventStream()
    >>> list(stream.feed(b"event: state\r\nid: 1\r\ndata: {\"a\"")), list(stream.feed(b": 1}\n\n: alive\n\n"))
    ([], [Event(kind='state', data={'a': 1}, id='1')])
    """

    def __init__(self) -> None:
        self.retry_seconds = _PAUSE_SECONDS
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, block: bytes) -> Iterator[Event]:
        """Yield the events that are complete with these bytes.

        Raises:
            Problem: One has no end, or its data is no JSON object.
        """
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            raise Problem({"title": "The stream of events cannot be read", "detail": "A line has no end."})
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if not text:
                if "data" in self._fields:
                    yield self._event()
                self._fields = {}
                continue
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and "data" in self._fields:
                self._fields["data"] += "\n" + value
            elif name == "retry" and value.isdecimal():
                self.retry_seconds = int(value) / 1000
            elif name:
                self._fields[name] = value

    def _event(self) -> Event:
        try:
            data = json.loads(self._fields["data"])
            return Event(kind=self._fields.get("event", "message"), data=data, id=self._fields.get("id"))
        except ValueError:
            raise Problem({"title": "The stream of events cannot be read", "detail": "Its data is no JSON."}) from None
