"""What is kept of webhooks and deliveries, and where in the bucket."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import Field

from jobs.ids import new_ulid
from jobs.records import View

EventName = Literal["job.succeeded", "job.failed", "job.cancelled"]
EVENTS: tuple[EventName, ...] = get_args(EventName)
TEST = "webhook.test"
DeliveryState = Literal["pending", "delivered", "failed", "abandoned"]

#: Deliveries that are still to be made: the rest of the key is that of the record.
DUE = "outbox/deliveries/"
_RECORDS = "deliveries/"
_WEBHOOKS = "webhooks/"
_ID = re.compile(r"whk_[0-7][0-9A-HJKMNP-TV-Z]{25}")
_NAME = re.compile(r"[a-z0-9-]+/whk_[0-9A-Z]{26}/[0-9a-f]{12}-msg_[0-9A-Z]{26}")
_MILLISECONDS = 2**48 - 1


class Secret(View):
    """A key that signs; until it expires, where another has taken its place."""

    secret: str = Field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None


class Webhook(View):
    """Where to tell what."""

    id: str
    tenant: str
    url: str = Field(repr=False, description="May hold a token of the receiver's.")
    events: tuple[EventName, ...]
    labels: dict[str, str] = Field(default={})
    secrets: tuple[Secret, ...]
    created_at: datetime
    disabled_at: datetime | None = None
    disabled_because: str | None = None

    def keys(self, at: datetime) -> list[str]:
        """Return the secrets that sign at this time, the newest first."""
        return [entry.secret for entry in self.secrets if entry.expires_at is None or entry.expires_at > at]

    def wants(self, event: str, labels: dict[str, str]) -> bool:
        """Return whether it is to be told."""
        return self.disabled_at is None and event in self.events and self.labels.items() <= labels.items()


class Try(View):
    """One attempt to deliver."""

    at: datetime
    status: int | None = None
    error: str | None = None
    seconds: float


class Delivery(View):
    """One message to one webhook."""

    id: str
    webhook: str
    tenant: str
    event: str
    body: str = Field(repr=False)
    state: DeliveryState = "pending"
    created_at: datetime
    next_at: datetime | None = None
    tries: tuple[Try, ...] = ()
    most_tries: int


def new_id() -> str:
    """Return a new id of a webhook."""
    return "whk_" + new_ulid()


def is_id(text: str) -> bool:
    """Return whether this is a well-formed id of a webhook.

    >>> is_id(new_id()), is_id("whk_../x")
    (True, False)
    """
    return _ID.fullmatch(text) is not None


def webhooks(tenant: str) -> str:
    """Return the prefix of a tenant's webhooks."""
    return f"{_WEBHOOKS}{tenant}/"


def webhook(tenant: str, id: str) -> str:
    """Return the key of a webhook."""
    return f"{webhooks(tenant)}{id}.json"


def deliveries(tenant: str, webhook: str) -> str:
    """Return the prefix of a webhook's deliveries, which are listed newest first."""
    return f"{_RECORDS}{tenant}/{webhook}/"


def name(delivery: Delivery) -> str:
    """Return what a delivery is called in the outbox; always the same for one message to one webhook."""
    milliseconds = int(delivery.created_at.timestamp() * 1000)
    return f"{delivery.tenant}/{delivery.webhook}/{_MILLISECONDS - milliseconds:012x}-{delivery.id}"


def is_name(text: str) -> bool:
    """Return whether this is what `name` makes."""
    return _NAME.fullmatch(text) is not None


def record(name: str) -> str:
    """Return the key of a delivery's record."""
    return f"{_RECORDS}{name}.json"


def time() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)


def json(view: View) -> dict[str, Any]:
    """Return a record as it is stored."""
    return view.model_dump(mode="json", exclude_none=True)
