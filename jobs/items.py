"""The items of one tenant: where they are looked up, recorded and removed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobs import layout
from jobs.clock import Down
from jobs.ids import Kind, is_id, kind_of
from jobs.ledger import Item, Ledger
from jobs.quotas import Quotas
from jobs.tenants import DEFAULT, is_tenant, owner


class Items:
    """What every use case of a tenant goes through; what is another's does not come out of here.

    An item's ``request.json`` says whose it is. A marker under the tenant's own prefix, written before it, lets the
    tenant's list be rebuilt from keys alone. The default tenant has none: its items cost no further request.
    """

    def __init__(self, ledger: Ledger, tenant: str, quotas: Quotas, announce: Callable[[str, str], None]) -> None:
        if not is_tenant(tenant):
            raise ValueError(f"not the name of a tenant: {tenant[:80]!r}")
        self.tenant = tenant
        self._ledger, self._quotas, self._announce = ledger, quotas, announce
        self._bucket, self._index = ledger.bucket, ledger.index

    def read(self, item: str) -> Item | None:
        """Return the item (a well-formed id), or None if there is none or it is another tenant's."""
        found = self._ledger.read(item, recall=True)
        return found if found is not None and owner(found.request) == self.tenant else None

    def find(self, kind: Kind, text: str) -> Item | None:
        """Return the item of this kind and id; None too if the text is no such id."""
        return self.read(text) if is_id(kind, text) else None

    def record(self, item: str, request: dict[str, Any]) -> bool:
        """Record a new item: from now on it exists. A crash half-way leaves a marker that nothing shows.

        Returns:
            Whether this call recorded it.

        Raises:
            QuotaExceeded: The tenant may make no further job now.
            StorageFull: The tenant may store no more.
        """
        is_job = kind_of(item) == "job"
        with self._quotas.admitted(self.tenant, *((item,) if is_job else ()), stored=request.get("size")):
            if is_job:
                # Webhooks are told of its end whatever happens from here on (jobs.webhooks.outbox).
                self._bucket.put_json(layout.to_tell(item), {"id": item})
            if self.tenant != DEFAULT:
                self._bucket.put_json(layout.marker(self.tenant, item), {"id": item})
                request = {**request, "tenant": self.tenant}
            return self._bucket.write_once(layout.request(item), request)

    def expect(self, *, stored: int | None = None) -> None:
        """Refuse early what `record` would refuse: a job, or an upload of so many bytes."""
        self._quotas.expect(self.tenant, stored=stored)

    def announce(self, item: str) -> None:
        """Note a new item in Redis and hint the workers."""
        self._announce(item, self.tenant)

    def remove(self, item: str) -> None:
        """Remove an item with everything under it, and then its traces.

        The request goes first: a crash half-way must leave no item that looks as if it had not begun.
        """
        self._ledger.recall.forget(item)
        self._bucket.delete(layout.request(item))
        self._bucket.delete_prefix(layout.prefix(item))
        if self.tenant != DEFAULT:
            self._bucket.delete(layout.marker(self.tenant, item))
        with suppress(Down):
            self._index.remove(item, self.tenant)
            self._ledger.clock.forget(item)
