"""``Prefer: wait=N`` (RFC 7240): answer when the job has ended, or after N seconds, whichever is first."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from fastapi import Request, Response

from api.services import Context
from jobs.records import JobView
from jobs.states import ENDED

_PREFERENCES = re.compile(r'([^\s=;,]+)(?:\s*=\s*("[^"]*"|[^\s;,]*))?(?:\s*;[^,]*)?(?:,|$)')

HEADER_DOC = "`wait=N`: answer when the job has ended, or after N seconds (at most 60), whichever comes first."
APPLIED = {
    "Preference-Applied": {"description": "`wait=N`, if the service waited for that.", "schema": {"type": "string"}}
}


def wanted_seconds(request: Request) -> int | None:
    """Return N of the first ``wait=N``; None if there is none that can be understood (RFC 7240: then it is ignored)."""
    for header in request.headers.getlist("prefer"):
        for name, value in _PREFERENCES.findall(header[:1000]):
            if name.lower() == "wait":
                text = value.strip('"')
                return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
    return None


async def as_preferred(
    request: Request, response: Response, context: Context, view: JobView, read: Callable[[], JobView | None]
) -> JobView:
    """Wait for the end of a job, if the client prefers that and there is room for one more who waits.

    Args:
        request: Says how long; when its client leaves, so does this.
        response: Gets ``Preference-Applied``.
        context: Has the watcher and the limits.
        view: The job as it is.
        read: Reads it again.

    Returns:
        The job as it is at the end of the waiting.
    """
    asked = wanted_seconds(request)
    tenant = context.service.tenant
    if asked is None or not context.streams.room(tenant):
        return view
    seconds = min(asked, context.api.max_wait_seconds)
    response.headers["Preference-Applied"] = f"wait={seconds}"
    if view.state in ENDED:
        return view
    with context.streams.taken(tenant):
        async with context.watcher.watching(view, read) as watched, until_gone(request):
            with anyio.move_on_after(seconds):
                while not watched.over and not context.watcher.leaving:
                    await watched.newer(watched.version, seconds)
    return watched.view


@asynccontextmanager
async def until_gone(request: Request) -> AsyncIterator[None]:
    """Run the block, and break it off when the client closes the connection. The body must have been read."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_gone, request, tasks.cancel_scope)
        yield
        tasks.cancel_scope.cancel()


async def _gone(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
