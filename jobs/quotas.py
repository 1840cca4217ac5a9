"""Quotas of tenants: how much may be stored, queued and pruned.

Whether there is room is asked under a lock of the tenant, and the item is recorded under it too: of two requests that
would both just fit, the second counts the first. The lock is in Redis; while that is down, each api process has its
own, so that a tenant may go over by as many requests as there are processes, and no further.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Clock, Down
from jobs.errors import QuotaExceeded, StorageFull, Unavailable
from jobs.settings import Settings
from jobs.tenants import DEFAULT, is_tenant
from jobs.usage import Usage
from pruning_core.errors import InputError

_TRUSTED_SECONDS = 10.0
#: After so long it is worth asking again whether one of the open jobs has ended.
_OPEN_RETRY_SECONDS = 30


class Limits(BaseModel):
    """The limits of one tenant; null: none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stored_bytes: int | None = Field(default=None, ge=0, description="Of uploads and results.")
    open_jobs: int | None = Field(default=None, ge=0, description="Queued or running at one time.")
    jobs_per_day: int | None = Field(default=None, ge=0, description="Made since midnight UTC.")
    pruning_seconds_per_month: int | None = Field(
        default=None, ge=0, description="That workers were at its jobs, by wall clock; counted when a job ends."
    )


class Quotas:
    """Limits and the gate, for all tenants. Safe to share between threads."""

    def __init__(self, settings: Settings, bucket: Bucket, clock: Clock, usage: Usage) -> None:
        self._bucket, self._clock, self.usage = bucket, clock, usage
        self._defaults = Limits(**{name: getattr(settings, f"quota_{name}") for name in Limits.model_fields})
        self._known: dict[str, tuple[float, Limits]] = {}
        self._here: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    # -- limits ----------------------------------------------------------------------------------------------------

    def limits(self, tenant: str) -> Limits:
        """Return a tenant's limits: its own, over those of the settings. The default tenant has only those."""
        if tenant == DEFAULT:
            return self._defaults
        until, known = self._known.get(tenant, (0.0, self._defaults))
        if time.monotonic() < until:
            return known
        own = self._bucket.get_json(layout.quota(tenant)) or {}
        found = self._defaults.model_copy(update=Limits.model_validate(own).model_dump(include=set(own)))
        self._known[tenant] = (time.monotonic() + _TRUSTED_SECONDS, found)
        return found

    def set_limits(self, tenant: str, changes: Mapping[str, int | str]) -> Limits:
        """Set some of a tenant's limits: a number, ``none``, or ``default``: what the settings say.

        Raises:
            InputError: It is no tenant, or the default one, whose limits are the settings'.
        """
        if tenant == DEFAULT or not is_tenant(tenant):
            raise InputError(
                "Limits are set for tenants other than the default one.",
                received=tenant[:80],
                advice="For the default tenant, and as defaults of all: PRUNING_QUOTA_… of api and workers.",
            )
        own = {**(self._bucket.get_json(layout.quota(tenant)) or {}), **changes}
        own = {name: None if limit == "none" else limit for name, limit in own.items() if limit != "default"}
        self._bucket.put_json(layout.quota(tenant), Limits.model_validate(own).model_dump(include=set(own)))
        self._known.pop(tenant, None)
        return self.limits(tenant)

    def used(self, tenant: str) -> dict[str, float]:
        """Return what a tenant uses of each quota."""
        usage = self.usage
        return {
            "stored_bytes": usage.stored_bytes(tenant),
            "open_jobs": usage.open_jobs(tenant),
            "jobs_per_day": usage.jobs_today(tenant),
            "pruning_seconds_per_month": usage.pruning_seconds(tenant),
        }

    # -- the gate --------------------------------------------------------------------------------------------------

    def expect(self, tenant: str, *, stored: int | None = None) -> None:
        """Refuse early what would be refused in the end; see `admitted`."""
        self._check(tenant, self.limits(tenant), stored)

    @contextmanager
    def admitted(self, tenant: str, job: str | None = None, *, stored: int | None = None) -> Iterator[None]:
        """Run the block, which records one item, if there is room for it.

        Args:
            tenant: Whose.
            job: The id of a job that is to be recorded; else it is an upload.
            stored: The size of that upload.

        Raises:
            QuotaExceeded: There will be room later.
            StorageFull: There is none until something is deleted.
            Unavailable: The bucket does not answer, or others wait at this gate.
        """
        limits = self.limits(tenant)
        if limits == Limits():
            yield
            return
        self._check(tenant, limits, stored)  # what takes long to count is counted before others have to wait for it
        with self._locked(tenant):
            self._check(tenant, limits, stored)
            if job is not None and limits.jobs_per_day is not None:
                self.usage.begin(tenant, job)
            yield

    def _check(self, tenant: str, limits: Limits, stored: int | None) -> None:
        usage = self.usage
        _fits_store(limits.stored_bytes, lambda: usage.stored_bytes(tenant), 1 if stored is None else stored)
        if stored is not None:
            return
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        day = midnight + timedelta(days=1) - now
        month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1) - now
        _fits("open_jobs", limits.open_jobs, lambda: usage.open_jobs(tenant), _OPEN_RETRY_SECONDS)
        _fits("jobs_per_day", limits.jobs_per_day, lambda: usage.jobs_today(tenant), day.total_seconds())
        _fits(
            "pruning_seconds_per_month",
            limits.pruning_seconds_per_month,
            lambda: usage.pruning_seconds(tenant),
            month.total_seconds(),
        )

    @contextmanager
    def _locked(self, tenant: str) -> Iterator[None]:
        with self._here[tenant], ExitStack() as stack:
            try:
                locked = stack.enter_context(self._clock.lock(f"quota:{tenant}", wait=20))
            except Down:
                locked = True  # then this process's own lock must do
            if not locked:
                raise Unavailable("Others of your tenant are being recorded.", advice="Try again in a moment.")
            yield


def _fits(quota: str, limit: int | None, used: Callable[[], float], retry_after: float) -> None:
    if limit is not None and (there := used()) >= limit:
        raise QuotaExceeded(
            f"The quota {quota} is used up: {there:g} of {limit}.",
            advice="Wait, or ask the operator for more.",
            quota=quota,
            limit=limit,
            used=there,
            retry_after=int(retry_after) + 1,
        )


def _fits_store(limit: int | None, used: Callable[[], int], more: int) -> None:
    if limit is not None and (there := used()) + more > limit:
        raise StorageFull(
            f"There is no room: {there} of {limit} bytes are stored.",
            advice="Delete uploads or jobs that you do not need, or ask the operator for more.",
            quota="stored_bytes",
            limit=limit,
            used=there,
        )
