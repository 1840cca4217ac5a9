"""Server-sent events of one job: each change of state, stage and progress, and at last the outcome."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.documents import job_of
from api.errors import TooManyStreams
from api.jobs import known_job
from api.problems import responses
from api.services import Context, JobId, WithContext
from api.watching import Watched
from jobs.errors import NotFound, Unavailable
from jobs.history import changes
from jobs.records import JobView
from jobs.states import ENDED

router = APIRouter(prefix="/jobs", tags=["jobs"])

_RETRY_MS = 2000
#: The id of the last event. A client that comes back with it has everything.
_END = "end"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/{id}/events",
    summary="Follow a job",
    description="A stream of server-sent events. `state`: each change, told from the record, so that none is missed; "
    "`stage` and `progress` while it runs; `outcome`: the whole job, when it has ended; then the stream ends. A client "
    "that sends the `Last-Event-ID` it has seen gets what came after, at least the state of now; after `outcome` it "
    "gets 204, which tells a browser not to come again. Lines that begin with a colon are signs of life. A stream that "
    "ends without `outcome` (the service is restarted, or after an hour) is to be resumed.",
    operation_id="job_events",
    response_class=Response,
    responses={
        200: {
            "description": "Events.",
            "content": {
                "text/event-stream": {
                    "schema": {"description": "Server-sent events; `data` is JSON."},
                    "example": 'event: state\ndata: {"state": "running", "attempt": 1}\nid: 1\n\n',
                }
            },
        },
        204: {"description": "You have had the outcome; there is nothing more."},
        **responses(NotFound, TooManyStreams, Unavailable),
    },
)
async def follow(
    id: JobId,
    context: WithContext,
    last_event_id: Annotated[str | None, Header(description="The id of the last event that was seen.")] = None,
) -> Response:
    """Stream what happens to the job."""
    read = partial(context.service.get_job, id)
    view = known_job(id, await run_in_threadpool(read))
    if view.state in ENDED and last_event_id == _END:
        return Response(status_code=204)
    if not context.streams.room(context.service.tenant):
        raise TooManyStreams(
            "Too many clients follow or wait for jobs already.",
            advice="Close streams that you do not need, or poll GET /jobs/{id}.",
        )
    return EventSourceResponse(_stream(context, view, read, last_event_id), headers=_HEADERS)


async def _stream(context: Context, view: JobView, read: Any, last_event_id: str | None) -> AsyncIterator[bytes]:
    ends = time.monotonic() + context.api.stream_seconds
    with context.streams.taken(context.service.tenant):
        async with context.watcher.watching(view, read) as watched:
            yield format_sse_event(retry=_RETRY_MS)
            teller = _Teller(last_event_id)
            while True:
                version = watched.version
                for event in teller.news(watched):
                    yield event
                if watched.over or context.watcher.leaving or time.monotonic() >= ends:
                    return
                if not await watched.newer(version, context.api.stream_beat_seconds):
                    yield format_sse_event(comment="alive")


class _Teller:
    """Knows what one client has been told, and says the rest."""

    def __init__(self, last_event_id: str | None) -> None:
        number = (last_event_id or "").partition("-")[0]
        self._told = int(number) if number.isascii() and number.isdecimal() and len(number) < 7 else -1
        self._state: str | None = None
        self._step: tuple[int, str | None, float] = (0, None, 0.0)

    def news(self, watched: Watched) -> list[bytes]:
        """Return the events since the last call."""
        view, history = watched.view, changes(watched.view)
        here = len(history) - 1
        since = self._told + 1
        if view.state in ENDED or self._told > here or self._state not in (None, view.state):
            since = min(since, here)  # the end, whatever the client had; or the state of now, if it has gone back
        events = [_event("state", history[n].model_dump(mode="json"), str(n)) for n in range(since, here + 1)]
        self._told, self._state = here, view.state
        if view.state in ENDED:
            return [*events, _event("outcome", job_of(view).model_dump(mode="json"), _END)]
        now = (view.attempt, view.stage, view.progress)
        if view.state == "running" and view.stage is not None and now != self._step:
            where = {"attempt": view.attempt, "stage": view.stage, "progress": view.progress}
            mark = f"{here}-{view.progress:.4f}"
            if now[:2] != self._step[:2]:
                events.append(_event("stage", where, mark))
            events.append(_event("progress", {**where, "eta_seconds": view.eta_seconds}, mark))
            self._step = now
        return events


def _event(name: str, data: dict[str, Any], id: str) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False), id=id)
