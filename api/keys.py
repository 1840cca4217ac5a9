"""API keys of the caller's tenant: make, list, rotate, revoke. A token is shown once, when it is made."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.audit import RecordedFirst
from api.auth import ADMIN
from api.documents import Answer, Page, page_of
from api.errors import InvalidRequest, MalformedRequest, UnsupportedContentType
from api.json_bodies import read_as
from api.problems import responses
from api.services import Context, WithCaller, WithContext
from jobs.errors import Conflict, NotFound, TooLarge, Unavailable
from jobs.keys import MAX_GRACE, MAX_NAME_LENGTH
from jobs.keys import Key as StoredKey
from jobs.keys import Scope as KeyScope
from pruning_core.errors import InputError

router = APIRouter(prefix="/keys", tags=["keys"])

_KEY = "key_01JD3Z8Q9W3V6Y6T0B1C2D3E4F"
KeyId = Annotated[str, Path(description="Id of a key.", examples=[_KEY])]
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/KeyRequest"}}}
_DAY = int(timedelta(days=1).total_seconds())


class KeyRequest(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"name": "nightly build", "scope": "write"}]}
    )

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="What people call it.")
    scope: KeyScope = Field(description="What it may do; each of read, write, admin includes those before it.")
    expires_at: AwareDatetime | None = Field(default=None, description="When it ends; null: when it is revoked.")


class Key(Answer):
    """An API key, without its secret."""

    id: str = Field(examples=[_KEY])
    name: str
    scope: KeyScope
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    created_by: str = Field(description="A key's id, `operator`, or `anonymous`.")
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To a few seconds, as far as it is known.")
    links: dict[str, str]


class NewKey(Key):
    """An API key with its token."""

    token: str = Field(description="Send it as `Authorization: Bearer <token>`. It is never shown again.")


@router.post(
    "",
    summary="Make a key for your tenant",
    operation_id="create_key",
    dependencies=[RecordedFirst],
    status_code=201,
    response_model=NewKey,
    responses={
        201: {"headers": {"Location": {"description": "/keys/<id>", "schema": {"type": "string"}}}},
        **responses(
            *(MalformedRequest, Conflict, TooLarge, UnsupportedContentType, InvalidRequest, InputError, Unavailable)
        ),
    },
    openapi_extra={**ADMIN, "requestBody": {"required": True, "content": _BODY}},
)
async def create(request: Request, response: Response, context: WithContext, caller: WithCaller) -> NewKey:
    """Make a key; the answer is the only place where its token stands."""
    wanted = await read_as(request, context.api, KeyRequest)
    key, token = await run_in_threadpool(
        lambda: context.keys.create(
            caller.tenant, wanted.name, wanted.scope, by=caller.name, expires_at=wanted.expires_at
        )
    )
    response.headers["Location"] = f"/keys/{key.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewKey(**_fields(key, None), token=token)


@router.get(
    "",
    summary="List the keys of your tenant, oldest first",
    operation_id="list_keys",
    response_model=Page[Key],
    responses=responses(InvalidRequest, Unavailable),
    openapi_extra={**ADMIN},
)
def listed(
    context: WithContext,
    caller: WithCaller,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Page[Key]:
    """Return a page of keys, also of those that have ended."""
    found = context.keys.page(caller.tenant, cursor, limit + 1)
    shown = found[:limit]
    return page_of(_seen(context, shown), shown[-1].id if len(found) > limit else None)


@router.get(
    "/{id}",
    summary="Look at a key",
    operation_id="get_key",
    response_model=Key,
    responses=responses(NotFound, Unavailable),
    openapi_extra={**ADMIN},
)
def get(id: KeyId, context: WithContext, caller: WithCaller) -> Key:
    """Return the key."""
    return _seen(context, [context.keys.get(caller.tenant, id)])[0]


@router.post(
    "/{id}/rotate",
    summary="Give a key a new secret",
    description="The new token works at once; those before it go on for `grace_seconds`, so that clients can be "
    "changed one after the other. `grace_seconds=0` ends them within seconds.",
    operation_id="rotate_key",
    dependencies=[RecordedFirst],
    response_model=NewKey,
    responses=responses(NotFound, Conflict, InvalidRequest, Unavailable),
    openapi_extra={**ADMIN},
)
def rotate(
    id: KeyId,
    context: WithContext,
    caller: WithCaller,
    response: Response,
    grace_seconds: Annotated[int, Query(ge=0, le=int(MAX_GRACE.total_seconds()))] = _DAY,
) -> NewKey:
    """Make a new secret for the same key."""
    key, token = context.keys.rotate(caller.tenant, id, grace=timedelta(seconds=grace_seconds))
    response.headers["Cache-Control"] = "no-store"
    return NewKey(**_fields(key, None), token=token)


@router.post(
    "/{id}/revoke",
    summary="End a key for good",
    description="Takes effect within seconds in every process, also on streams that are open. Revoking again changes "
    "nothing. A key may revoke itself.",
    operation_id="revoke_key",
    dependencies=[RecordedFirst],
    response_model=Key,
    responses=responses(NotFound, Unavailable),
    openapi_extra={**ADMIN},
)
def revoke(id: KeyId, context: WithContext, caller: WithCaller) -> Key:
    """Revoke the key."""
    return _seen(context, [context.keys.revoke(caller.tenant, id, by=caller.name)])[0]


def _seen(context: Context, keys: list[StoredKey]) -> list[Key]:
    used = context.keys.last_used([key.id for key in keys])
    return [Key(**_fields(key, used.get(key.id))) for key in keys]


def _fields(key: StoredKey, used: datetime | None) -> dict[str, object]:
    links = {"self": f"/keys/{key.id}"}
    own = {name: getattr(key, name) for name in Key.model_fields if hasattr(key, name)}
    return {**own, "last_used_at": used, "links": links}
