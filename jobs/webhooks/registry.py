"""The use cases of webhooks, as one tenant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta

from jobs.bucket import Bucket
from jobs.clock import Clock
from jobs.errors import Conflict, NotFound
from jobs.ids import new_ulid
from jobs.locks import alone
from jobs.settings import Settings
from jobs.webhooks import records
from jobs.webhooks.addresses import addresses, target
from jobs.webhooks.outbox import Outbox
from jobs.webhooks.records import TEST, Delivery, EventName, Secret, Webhook
from jobs.webhooks.signing import new_secret


class Webhooks:
    """A tenant's webhooks; others' are as if they were not there."""

    def __init__(self, settings: Settings, bucket: Bucket, clock: Clock, outbox: Outbox, tenant: str) -> None:
        self._settings, self._bucket, self._clock, self._outbox = settings, bucket, clock, outbox
        self._tenant = tenant

    def create(self, url: str, events: Sequence[EventName], labels: dict[str, str]) -> Webhook:
        """Record a webhook; it is told of every job that ends from now on.

        Raises:
            Refused: The URL cannot be used.
            Conflict: The tenant has too many.
        """
        self._check(url)
        if len(list(self._bucket.list(records.webhooks(self._tenant)))) >= self._settings.max_webhooks:
            raise Conflict(
                "There are too many webhooks.",
                expected=f"at most {self._settings.max_webhooks}",
                advice="Delete one that is not needed.",
            )
        made = Webhook(
            id=records.new_id(),
            tenant=self._tenant,
            url=url,
            events=tuple(dict.fromkeys(events)),
            labels=labels,
            secrets=(Secret(secret=new_secret(), created_at=records.time()),),
            created_at=records.time(),
        )
        self._bucket.write_once(records.webhook(self._tenant, made.id), records.json(made))
        return made

    def get(self, id: str) -> Webhook:
        """Return a webhook.

        Raises:
            NotFound: There is none.
        """
        found = self._outbox.webhook(self._tenant, id) if records.is_id(id) else None
        if found is None:
            raise NotFound("There is no webhook of this id.", received=id[:64], advice="GET /webhooks lists them.")
        return found

    def all(self) -> list[Webhook]:
        """Return all webhooks, newest first."""
        return sorted(self._outbox.webhooks(self._tenant), key=lambda webhook: webhook.id, reverse=True)

    def delete(self, id: str) -> None:
        """Delete a webhook; what was to be delivered to it is dropped.

        Raises:
            NotFound: There is none.
        """
        self.get(id)
        self._bucket.delete(records.webhook(self._tenant, id))
        self._bucket.delete_prefix(records.deliveries(self._tenant, id))

    def rotate(self, id: str) -> Webhook:
        """Give it a new secret; the one before signs too, for the time of grace.

        Raises:
            NotFound: There is none.
        """
        with self._held(id):
            found, at = self.get(id), records.time()
            expires = at + timedelta(seconds=self._settings.webhook_grace_seconds)
            before = found.secrets[0].model_copy(update={"expires_at": expires})
            changed = found.model_copy(update={"secrets": (Secret(secret=new_secret(), created_at=at), before)})
            self._bucket.put_json(records.webhook(self._tenant, id), records.json(changed))
        return changed

    def enable(self, id: str) -> Webhook:
        """Enable a webhook that was disabled.

        Raises:
            NotFound: There is none.
        """
        with self._held(id):
            changed = self.get(id).model_copy(update={"disabled_at": None, "disabled_because": None})
            self._bucket.put_json(records.webhook(self._tenant, id), records.json(changed))
        return changed

    def test(self, id: str) -> Delivery:
        """Send a test message, once; its delivery will say how that went.

        Raises:
            NotFound: There is none.
        """
        found, at = self.get(id), records.time()
        body = {"type": TEST, "timestamp": at.isoformat(), "data": {"webhook": found.id}}
        delivery = Delivery(
            id=f"msg_{new_ulid()}",
            webhook=found.id,
            tenant=self._tenant,
            event=TEST,
            body=json.dumps(body),
            created_at=at,
            most_tries=1,
        )
        self._outbox.put(delivery)
        return delivery

    def deliveries(self, id: str, limit: int) -> list[Delivery]:
        """Return the last deliveries, newest first.

        Raises:
            NotFound: There is no such webhook.
        """
        self.get(id)
        return self._outbox.deliveries(self._tenant, id, limit)

    def _check(self, url: str) -> None:
        wanted = target(url, self._settings)
        with suppress(OSError):  # it may resolve one day; every attempt looks again
            addresses(wanted, self._settings)

    def _held(self, id: str) -> AbstractContextManager[None]:
        busy = Conflict("Another request changes this webhook.", advice="Try again.")
        return alone(
            self._clock, f"webhook:{id}", busy=busy, down="Redis does not answer; nothing was changed.", wait=5
        )
