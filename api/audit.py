"""The audit log: what is recorded of a request, and how administrators read it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import ADMIN, Caller, is_reading, needed
from api.documents import Page, page_of
from api.errors import InvalidRequest
from api.problems import responses
from api.services import Context, WithCaller, WithContext
from jobs import logs
from jobs.audit import MAX_LIMIT, Entry
from jobs.errors import Unavailable

router = APIRouter(prefix="/audit", tags=["keys"])

_DOWNLOAD = "download_"


class Auditing:
    """Notes each change and each download of a caller who is somebody."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch one request; note it when it has ended, however that was."""
        caller: Caller | None = scope.get("state", {}).get("caller")
        if caller is None or caller.key is None:
            await self.app(scope, receive, send)
            return
        status, location = 500, ""

        async def sending(message: Message) -> None:
            nonlocal status, location
            if message["type"] == "http.response.start":
                status = message["status"]
                location = Headers(raw=message.get("headers", [])).get("location", "")
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            if _is_audited(scope):
                context: Context = scope["app"].state.context
                made = location.rpartition("/")[2] or None
                context.audit.note(_entry(scope, caller, target=_target(scope) or made, status=status))


def _is_audited(scope: Scope) -> bool:
    route, method = scope.get("route"), scope["method"]
    if is_reading(method):
        return method == "GET" and _action(scope).startswith(_DOWNLOAD)
    return route is not None and needed(route, method) != "read"


def _entry(scope: Scope, caller: Caller, **more: Any) -> Entry:
    peer = scope["client"][0] if scope.get("client") else None
    return Entry(
        tenant=caller.tenant,
        by=caller.name,
        peer=peer,
        action=_action(scope),
        request_id=logs.current("request_id"),
        **more,
    )


def _action(scope: Scope) -> str:
    route = scope.get("route")
    return str(getattr(route, "operation_id", None) or getattr(route, "name", ""))


def _target(scope: Scope) -> str | None:
    # Of PUT /models/{id} it is a file name: the id that was made says more.
    named = scope.get("path_params", {}).get("id")
    return None if named is None or scope["method"] == "PUT" else str(named)[:64]


def record_first(request: Request, caller: WithCaller, context: WithContext) -> None:
    """Record that something is about to be done; if that fails, it is not done.

    Raises:
        Unavailable: The bucket does not answer.
    """
    context.audit.write(_entry(request.scope, caller, target=_target(request.scope)))


#: A dependency of calls that must not happen unrecorded.
RecordedFirst = Depends(record_first)


@router.get(
    "",
    summary="Read the audit log of your tenant",
    description="Every change and every download of your tenant's keys, oldest first, some seconds after it happened. "
    "A change of keys has two entries: one with `status` null, written before it is done, and one with its result.",
    operation_id="list_audit",
    response_model=Page[Entry],
    responses=responses(InvalidRequest, Unavailable),
    openapi_extra={**ADMIN},
)
def listed(
    context: WithContext,
    caller: WithCaller,
    since: Annotated[
        str | None, Query(pattern=r"^\d{4}-\d\d-\d\d$", description="The day (UTC) to begin with; default: today.")
    ] = None,
    cursor: Annotated[str | None, Query(max_length=128, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
) -> Page[Entry]:
    """Return a page of entries."""
    try:
        day = datetime.now(UTC).date() if since is None else date.fromisoformat(since)
    except ValueError:
        raise InvalidRequest("There is no such day.", expected="2026-11-21", received=since) from None
    return page_of(*context.audit.page(caller.tenant, day, cursor, limit))
