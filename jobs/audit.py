"""Who did what: an append-only log in the bucket, for each tenant and day.

Entries are collected for a second and written as one object under a name that was never used, so nothing is written
over. Each entry is also a line of log at once. Whoever must not act unrecorded (changes of keys) writes its entry
first, and does not act if that fails; all others are kept while the bucket does not answer, and what can be kept no
longer is logged as lost.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import threading
from collections import deque
from datetime import date, datetime
from itertools import islice

from pydantic import BaseModel, ConfigDict, Field

from jobs import layout
from jobs.bucket import Bucket
from jobs.errors import Unavailable
from jobs.ids import new_ulid
from jobs.records import now
from pruning_core.errors import InputError

log = logging.getLogger("audit")

MAX_LIMIT = 1000
MAX_KEPT = 10_000
_BATCH = 500
_EVERY_SECONDS = 1.0
_CURSOR = re.compile(r"(\d{4}-\d\d-\d\d/[0-7][0-9A-HJKMNP-TV-Z]{25}\.json)#(\d{1,6})")


class Entry(BaseModel):
    """One thing that somebody did, or tried to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(default_factory=new_ulid)
    at: datetime = Field(default_factory=lambda: datetime.fromisoformat(now()))
    tenant: str
    by: str = Field(description="A key's id, `operator`, or `anonymous`.")
    peer: str | None = Field(default=None, description="The address it came from.")
    action: str = Field(description="The call, as the OpenAPI document names it (operationId).")
    target: str | None = Field(default=None, description="The id it was about, or that it made.")
    status: int | None = Field(default=None, description="How it was answered; null: it was about to be done.")
    request_id: str | None = None


class Audit:
    """The log of all tenants. Safe to share between threads."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._kept: deque[Entry] = deque()
        self._guard, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to write what is noted."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Write what is left; what cannot be written is logged."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        try:
            self.flush()
        except Unavailable:
            self._lose(list(self._kept))

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, entry: Entry) -> None:
        """Record an entry now.

        Raises:
            Unavailable: It could not be recorded; do not do what it says.
        """
        _tell(entry)
        self._put([entry])

    def note(self, entry: Entry) -> None:
        """Record an entry soon; never waits and never raises."""
        _tell(entry)
        with self._guard:
            self._kept.append(entry)
            lost = [self._kept.popleft() for _ in range(len(self._kept) - MAX_KEPT)]
        self._lose(lost)

    def flush(self) -> None:
        """Write what was noted.

        Raises:
            Unavailable: The bucket does not answer; nothing is forgotten.
        """
        with self._writing:
            while self._kept:
                with self._guard:
                    first = self._kept[0]
                    batch = [entry for entry in islice(self._kept, _BATCH) if _place(entry) == _place(first)]
                self._put(batch)
                written = {entry.id for entry in batch}
                with self._guard:
                    self._kept = deque(entry for entry in self._kept if entry.id not in written)

    def _put(self, entries: list[Entry]) -> None:
        document = {"entries": [entry.model_dump(mode="json", exclude_none=True) for entry in entries]}
        self._bucket.put_json(layout.audit(*_place(entries[0])) + f"{new_ulid()}.json", document)

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(_EVERY_SECONDS):
            try:
                self.flush()
                failing = False
            except Unavailable as error:
                if not failing:
                    log.warning("the audit log waits for the bucket: %s", error.detail)
                failing = True
            except Exception:
                # The next round tries again; a thread that ends would lose everything from here on.
                log.exception("the audit log could not be written")

    def _lose(self, entries: list[Entry]) -> None:
        for entry in entries:
            log.error("audit entry could not be kept; it stands here only: %s", entry.model_dump_json())

    # -- reading ---------------------------------------------------------------------------------------------------

    def page(
        self, tenant: str, since: date, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[Entry], str | None]:
        """Return a tenant's entries in the order in which they were written, and the cursor of the next page.

        Args:
            tenant: Whose.
            since: The day (UTC) to begin with.
            cursor: Where the page before ended.
            limit: How many at most.

        Raises:
            InputError: The cursor or the limit cannot be used.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise InputError("The limit is out of range.", expected=f"1 to {MAX_LIMIT}", received=limit)
        folder = layout.audit(tenant)
        name, skip = _decode(cursor) if cursor else (f"{since.isoformat()}/", 0)
        page: list[Entry] = []
        # The cursor's object comes again: it may have more than fitted.
        for key in [folder + name] * bool(cursor) + list(self._bucket.list(folder, folder + name, limit + 1)):
            here = key.removeprefix(folder)
            entries = (self._bucket.get_json(key) or {}).get("entries", [])
            start = skip if here == name else 0
            for number, entry in enumerate(entries[start:], start):
                if len(page) == limit:
                    return page, _encode(here, number)
                page.append(Entry.model_validate(entry))
        return page, None


def _tell(entry: Entry) -> None:
    log.info(
        "done action=%s tenant=%s by=%s target=%s status=%s peer=%s",
        *(entry.action, entry.tenant, entry.by, entry.target, entry.status, entry.peer),
    )


def _place(entry: Entry) -> tuple[str, str]:
    return entry.tenant, entry.at.date().isoformat()


def _encode(name: str, number: int) -> str:
    return base64.urlsafe_b64encode(f"{name}#{number}".encode()).decode()


def _decode(cursor: str) -> tuple[str, int]:
    try:
        match = _CURSOR.fullmatch(base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii"))
    except (ValueError, binascii.Error):
        match = None
    if match is None:
        raise InputError(
            "The cursor is not one of this service.",
            expected="the next cursor of the page before, unchanged",
            received=cursor[:128],
        )
    return match[1], int(match[2])
