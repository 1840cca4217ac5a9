"""Webhooks of the caller's tenant: make, list, rotate, test, delete, and what became of each message."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.auth import SCOPE
from api.documents import Answer, LabelName, LabelValue, Page, page_of
from api.errors import InvalidRequest, MalformedRequest, UnsupportedContentType
from api.json_bodies import read_as
from api.problems import responses
from api.services import WithContext, WithService
from jobs.errors import Conflict, NotFound, TooLarge, Unavailable
from jobs.submission import MAX_LABELS
from jobs.webhooks import records
from jobs.webhooks.addresses import MAX_URL_LENGTH, Refused
from jobs.webhooks.records import DeliveryState, EventName

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

_ID = "whk_01JD3Z8Q9W3V6Y6T0B1C2D3E4F"
WebhookId = Annotated[str, Path(description="Id of a webhook.", examples=[_ID])]
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/WebhookRequest"}}}
# Also to read: a URL may hold a token of the receiver's.
_WRITE = {SCOPE: "write"}


class WebhookRequest(BaseModel):
    """Where to tell what."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"url": "https://ci.example/hooks/pruning"},
                {"url": "https://ci.example/hook", "events": ["job.failed"], "labels": {"team": "vision"}},
            ]
        },
    )

    url: str = Field(
        min_length=1, max_length=MAX_URL_LENGTH, description="https, of a public host; redirects are not followed."
    )
    events: list[EventName] = Field(
        default=list(records.EVENTS), min_length=1, max_length=len(records.EVENTS), description="Default: all."
    )
    labels: dict[LabelName, LabelValue] = Field(
        default={}, max_length=MAX_LABELS, description="Only jobs that have all these labels."
    )


class Webhook(Answer):
    """A webhook, without its secret."""

    id: str = Field(examples=[_ID])
    url: str
    events: list[EventName]
    labels: dict[str, str]
    state: Literal["enabled", "disabled"]
    disabled_because: str | None = Field(description="Such as that the receiver answered 410.")
    created_at: datetime
    rotated_at: datetime | None = Field(description="When the secret was made that signs now, if not with the webhook.")
    links: dict[str, str]


class NewWebhook(Webhook):
    """A webhook with its secret."""

    secret: str = Field(description="Verifies the signatures (Standard Webhooks). It is never shown again.")


class Try(Answer):
    """One attempt to deliver."""

    at: datetime
    status: int | None = Field(description="What the receiver answered.")
    error: str | None = Field(description="Why there was no answer.")
    seconds: float


class Delivery(Answer):
    """One message to one webhook."""

    id: str = Field(description="The `webhook-id` of the message, the same for every attempt.")
    event: str = Field(description="One of the events, or `webhook.test`.")
    state: DeliveryState = Field(
        description="`failed`: all attempts are used up, or the receiver answered 410; `abandoned`: the webhook was "
        "disabled before."
    )
    created_at: datetime
    next_at: datetime | None = Field(description="When it is tried again.")
    tries: list[Try]


@router.post(
    "",
    summary="Be told when jobs end",
    description="The URL gets a POST with a JSON document `{type, timestamp, data}` for each job that ends from now "
    "on, at least once, signed after Standard Webhooks (`webhook-id`, `webhook-timestamp`, `webhook-signature`). An "
    "answer 2xx settles it, 410 disables the webhook; all else, redirects too, is tried again over three days.",
    operation_id="create_webhook",
    status_code=201,
    response_model=NewWebhook,
    responses={
        201: {"headers": {"Location": {"description": "/webhooks/<id>", "schema": {"type": "string"}}}},
        **responses(
            *(MalformedRequest, Conflict, TooLarge, UnsupportedContentType, InvalidRequest, Refused, Unavailable)
        ),
    },
    openapi_extra={**_WRITE, "requestBody": {"required": True, "content": _BODY}},
)
async def create(request: Request, response: Response, context: WithContext) -> NewWebhook:
    """Make a webhook; the answer is the only place where its secret stands."""
    wanted = await read_as(request, context.api, WebhookRequest)
    made = await run_in_threadpool(context.service.webhooks.create, wanted.url, wanted.events, dict(wanted.labels))
    response.headers["Location"] = f"/webhooks/{made.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewWebhook(**_fields(made), secret=made.secrets[0].secret)


@router.get(
    "",
    summary="List webhooks, newest first",
    operation_id="list_webhooks",
    response_model=Page[Webhook],
    responses=responses(Unavailable),
    openapi_extra=_WRITE,
)
def listed(service: WithService) -> Page[Webhook]:
    """Return all webhooks; there are few."""
    return page_of([Webhook(**_fields(webhook)) for webhook in service.webhooks.all()], None)


@router.get(
    "/{id}",
    summary="Look at a webhook",
    operation_id="get_webhook",
    response_model=Webhook,
    responses=responses(NotFound, Unavailable),
    openapi_extra=_WRITE,
)
def get(id: WebhookId, service: WithService) -> Webhook:
    """Return the webhook."""
    return Webhook(**_fields(service.webhooks.get(id)))


@router.delete(
    "/{id}",
    summary="Delete a webhook",
    description="What was still to be delivered to it is dropped.",
    operation_id="delete_webhook",
    status_code=204,
    responses=responses(NotFound, Unavailable),
)
def delete(id: WebhookId, service: WithService) -> None:
    """Delete the webhook."""
    service.webhooks.delete(id)


@router.post(
    "/{id}/rotate",
    summary="Give a webhook a new secret",
    description="Messages are signed with both for a day, so that the receiver can be changed in between.",
    operation_id="rotate_webhook",
    response_model=NewWebhook,
    responses=responses(NotFound, Conflict, Unavailable),
)
def rotate(id: WebhookId, service: WithService, response: Response) -> NewWebhook:
    """Make a new secret for the same webhook."""
    changed = service.webhooks.rotate(id)
    response.headers["Cache-Control"] = "no-store"
    return NewWebhook(**_fields(changed), secret=changed.secrets[0].secret)


@router.post(
    "/{id}/enable",
    summary="Enable a disabled webhook",
    operation_id="enable_webhook",
    response_model=Webhook,
    responses=responses(NotFound, Conflict, Unavailable),
)
def enable(id: WebhookId, service: WithService) -> Webhook:
    """Tell it of jobs again that end from now on."""
    return Webhook(**_fields(service.webhooks.enable(id)))


@router.post(
    "/{id}/test",
    summary="Send a test message",
    description="One attempt, of the event `webhook.test`; `GET /webhooks/{id}/deliveries` says how it went.",
    operation_id="test_webhook",
    status_code=202,
    response_model=Delivery,
    responses=responses(NotFound, Unavailable),
)
def test(id: WebhookId, service: WithService) -> Delivery:
    """Record a message that is sent within a second."""
    return _shown(service.webhooks.test(id))


@router.get(
    "/{id}/deliveries",
    summary="What became of the messages, newest first",
    description="The last 200 are kept.",
    operation_id="list_deliveries",
    response_model=Page[Delivery],
    responses=responses(NotFound, InvalidRequest, Unavailable),
    openapi_extra=_WRITE,
)
def deliveries(id: WebhookId, service: WithService, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Page[Delivery]:
    """Return the last deliveries with their attempts."""
    return page_of([_shown(delivery) for delivery in service.webhooks.deliveries(id, limit)], None)


def _shown(delivery: records.Delivery) -> Delivery:
    return Delivery(**delivery.model_dump(include=set(Delivery.model_fields)))


def _fields(webhook: records.Webhook) -> dict[str, Any]:
    here, newest = f"/webhooks/{webhook.id}", webhook.secrets[0]
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": list(webhook.events),
        "labels": webhook.labels,
        "state": "enabled" if webhook.disabled_at is None else "disabled",
        "disabled_because": webhook.disabled_because,
        "created_at": webhook.created_at,
        "rotated_at": newest.created_at if len(webhook.secrets) > 1 else None,
        "links": {"self": here, "test": f"{here}/test", "deliveries": f"{here}/deliveries"},
    }
