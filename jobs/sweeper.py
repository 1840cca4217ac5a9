"""The sweeper: what crashes, broken-off requests and outages of Redis left in the bucket, and nobody needs, is removed.

It runs in every api; a lock lets one at a time through. It only looks for suspects by their keys. Whether something is
really to go is asked again, for each, by what owns it: so it may run beside anything, and die at any line.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Protocol

from jobs import layout
from jobs.blobs import Blobs
from jobs.clock import Down
from jobs.errors import Conflict, NotFound, Unavailable
from jobs.ids import KINDS, is_id, milliseconds
from jobs.ledger import Item, Ledger
from jobs.multipart import Multipart
from jobs.sessions import Sessions
from jobs.tenants import is_tenant, owner

logger = logging.getLogger(__name__)

#: After this time another process may begin to sweep too; two do no harm.
_LOCK_SECONDS = 900
_SWEPT = "pruning:swept"
#: Quotas look at the day and the month that it is.
_USAGE_DAYS = 62
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


@dataclass
class Swept:
    """What one round removed."""

    elected: bool = False
    blobs: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)  # jobs and uploads that were kept long enough
    items: list[str] = field(default_factory=list)  # remains of items without a record
    markers: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    multiparts: list[str] = field(default_factory=list)


@dataclass
class _Known:
    """Which items there are."""

    recorded: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)


class Acting(Protocol):
    """What `jobs.service.Service` is to the sweeper: the use cases of one tenant."""

    @property
    def parts(self) -> Sessions:
        """Uploads in parts."""

    def delete_job(self, job: str) -> None:
        """Delete a job that has ended."""

    def delete_upload(self, upload: str) -> None:
        """Delete an upload that no open job uses."""


class Sweeper:
    """Removes what is left over."""

    def __init__(self, ledger: Ledger, multipart: Multipart, acting: Callable[[str], Acting]) -> None:
        """Make one.

        Args:
            ledger: The bucket and its items.
            multipart: What is being sent in parts.
            acting: The use cases of a tenant.
        """
        self._multipart, self._acting = multipart, acting
        self._ledger, self._bucket, self._clock = ledger, ledger.bucket, ledger.clock
        self._settings = ledger.settings
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Break off the running round, and do no other."""
        self._stopped.set()

    def tick(self) -> Swept:
        """Do a round if the last one, by whichever process, is ``settings.sweep_seconds`` ago."""
        try:
            due = self._clock.redis.set(_SWEPT, "1", nx=True, px=int(self._settings.sweep_seconds * 1000))
        except Down:
            due = False
        return self.sweep() if due else Swept()

    def sweep(self) -> Swept:
        """Do one round; does nothing if another process is at it, or if Redis or the bucket does not answer."""
        swept = Swept()
        try:
            with self._clock.lock("sweep", seconds=_LOCK_SECONDS, wait=0) as elected:
                swept.elected = elected
                if elected:
                    known = self._items(swept)
                    self._retire(known, swept)
                    self._markers(known, swept)
                    self._usage()
                    self._sessions(swept)
                    self._blobs(known, swept)
                    _tell(swept)
        except (Down, Unavailable) as error:
            logger.warning("sweep broken off error=%s", type(error).__name__)
        return swept

    def _items(self, swept: Swept) -> _Known:
        """Learn which items there are; remove what lies under an id that was never recorded, or is deleted."""
        known = _Known()
        for kind in KINDS:
            folder = layout.folder(kind)
            for item, keys in self._walk(folder, 1):
                names = {key.rpartition("/")[2] for key in keys if key.count("/") == 2}
                if not is_id(kind, item):
                    continue
                if "request.json" in names:
                    known.recorded.add(item)
                    if "outcome.json" in names:
                        known.ended.add(item)
                elif self._old(item) and self._bucket.head(layout.request(item)) is None:
                    self._bucket.delete_prefix(layout.prefix(item))
                    swept.items.append(item)
        return known

    def _retire(self, known: _Known, swept: Swept) -> None:
        """Delete jobs and uploads that were kept as long as the settings say; jobs first: they use uploads."""
        for item in sorted(known.recorded, key=lambda item: not is_id("job", item)):
            is_job = is_id("job", item)
            days = self._settings.retention_jobs_days if is_job else self._settings.retention_uploads_days
            if days is None or self._stopped.is_set() or (is_job and item not in known.ended):
                continue
            oldest = datetime.now(UTC) - timedelta(days=days)
            if milliseconds(item) / 1000 > oldest.timestamp():
                continue  # without reading it: it is younger than its id says at best
            found = self._ledger.read(item)
            since = None if found is None else (found.outcome or {}).get("ended_at") if is_job else _came(found)
            if found is None or since is None or datetime.fromisoformat(since) > oldest:
                continue
            acting = self._acting(owner(found.request))
            with suppress(NotFound, Conflict):  # somebody was quicker; an open job uses it
                (acting.delete_job if is_job else acting.delete_upload)(item)
                swept.retired.append(item)

    def _markers(self, known: _Known, swept: Swept) -> None:
        for key in self._bucket.list(layout.MARKERS):
            found = layout.marked(key)
            if found is None or found[0] in known.recorded or not self._old(found[0]):
                continue
            if self._bucket.head(layout.request(found[0])) is None:
                self._bucket.delete(key)
                swept.markers.append(found[0])

    def _usage(self) -> None:
        """Forget what tenants used in months that no quota looks at any more: it names jobs."""
        oldest = (datetime.now(UTC) - timedelta(days=_USAGE_DAYS)).strftime("%Y-%m")
        for key in self._bucket.list(layout.USAGE):
            when = key.removeprefix(layout.USAGE).split("/")[2:3]
            if when and when[0][:7] < oldest and not self._stopped.is_set():
                self._bucket.delete(key)

    def _sessions(self, swept: Swept) -> None:
        """Remove expired uploads in parts, and what was begun in the store and forgotten by whoever began it."""
        # First what is under way, then what is known of: a session is written after its multipart upload began.
        unfinished = list(self._multipart.unfinished())
        live: set[str] = set()
        for key in self._bucket.list(layout.SESSIONS):
            tenant, _, upload = key.removeprefix(layout.SESSIONS).removesuffix(".json").partition("/")
            found = self._bucket.get_json(key) if key.endswith(".json") else None
            if found is None or self._stopped.is_set():
                continue
            if datetime.fromisoformat(found["expires_at"]) <= datetime.now(UTC) and self._acting(tenant).parts.collect(
                upload
            ):
                swept.sessions.append(upload)
            else:
                live.add(found["multipart"])
        if self._stopped.is_set():
            return
        oldest = datetime.now(UTC) - timedelta(seconds=self._settings.abandoned_seconds)
        for begun in unfinished:
            # Other programs may use the same bucket.
            ours = begun.key.startswith((layout.BLOBS, *map(layout.folder, KINDS)))
            if ours and begun.id not in live and max(begun.began, _named(begun.key)) < oldest:
                self._multipart.abort(begun.key, begun.id)
                swept.multiparts.append(begun.key)

    def _blobs(self, known: _Known, swept: Swept) -> None:
        """Free bytes that nothing refers to, or that only what has gone or ended refers to."""
        needed = {item for item in known.recorded if item not in known.ended or not is_id("job", item)}
        for owned, keys in self._walk(layout.BLOBS, 2):
            tenant, _, name = owned.partition("/")
            rests = [key.removeprefix(f"{layout.BLOBS}{owned}/") for key in keys]
            users = {rest.removeprefix("refs/") for rest in rests if rest.startswith("refs/")}
            settled = "unverified" not in rests or not users & known.ended
            if (users and users <= needed and settled) or not is_tenant(tenant):
                continue
            blob = layout.blob(tenant, name)
            if Blobs(self._ledger, tenant).free(blob):
                swept.blobs.append(blob)

    def _old(self, item: str) -> bool:
        return milliseconds(item) / 1000 < time.time() - self._settings.abandoned_seconds

    def _walk(self, prefix: str, depth: int) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder that lies so deep under a prefix, by its path from there, with its keys."""

        def folder(key: str) -> str:
            return "/".join(key.removeprefix(prefix).split("/", depth)[:depth])

        for name, members in groupby(self._bucket.list(prefix), folder):
            if self._stopped.is_set():
                return
            yield name, list(members)


def _named(key: str) -> datetime:
    """Return the time that the ULIDs in a key tell: moto says of every multipart upload that it began in 2010."""
    times = [milliseconds(ulid) / 1000 for ulid in _ULID.findall(key.upper())]
    return datetime.fromtimestamp(max(times, default=0), UTC)


def _came(upload: Item) -> str:
    created: str = upload.request["created_at"]
    return created


def _tell(swept: Swept) -> None:
    counts = {name: len(found) for name, found in vars(swept).items() if isinstance(found, list)}
    logger.info(
        "swept blobs=%d retired=%d items=%d markers=%d sessions=%d multiparts=%d",
        *(counts[name] for name in ("blobs", "retired", "items", "markers", "sessions", "multiparts")),
    )
