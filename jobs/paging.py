"""Pages of items, newest first: from the index in Redis, or from the bucket when that cannot be trusted."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import Any, TypeVar

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Down
from jobs.ids import Kind, is_id
from jobs.index import Index
from jobs.records import JobView, UploadView
from jobs.tenants import DEFAULT
from pruning_core.errors import InputError

V = TypeVar("V", JobView, UploadView)

MAX_LIMIT = 200
#: Items one call looks at when a filter lets few through.
MAX_SCANNED = 2000


class Pager:
    """Cuts a tenant's list of items of a kind into pages."""

    def __init__(self, bucket: Bucket, index: Index, threads: Executor, tenant: str = DEFAULT) -> None:
        self._bucket, self._index, self._threads, self._tenant = bucket, index, threads, tenant

    def page(
        self,
        kind: Kind,
        cursor: str | None,
        limit: int,
        read: Callable[[str], V | None],
        summary: Callable[[V], dict[str, Any]] | None = None,
        wanted: Callable[[dict[str, Any]], bool] | None = None,
        among: Iterable[str] | None = None,
    ) -> tuple[list[V], str | None]:
        """Return a page and the cursor of the next.

        Args:
            kind: What to list.
            cursor: Where the page before ended, or None.
            limit: How many at most.
            read: Id -> view, or None if it is gone, or another tenant's.
            summary: View -> what the filter judges; None: no filter.
            wanted: The filter; items that ended may be judged by a noted summary, without being read.
            among: Only these; None: all there are.

        Raises:
            InputError: The cursor or the limit cannot be used.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise InputError("The limit is out of range.", expected=f"1 to {MAX_LIMIT}", received=limit)
        before = None if cursor is None else _decode(kind, cursor)
        ids = self._ids(kind, before) if among is None else _older(kind, before, among)
        page: list[V] = []
        last, scanned = "", 0
        while scanned < MAX_SCANNED:
            batch = list(islice(ids, limit))
            if not batch:
                return page, None
            noted = self._noted(batch) if wanted else {}
            candidates = [item for item in batch if item not in noted or (wanted and wanted(noted[item]))]
            views = dict(zip(candidates, self._threads.map(read, candidates), strict=True))
            for item in batch:
                view = views.get(item)
                if view is not None and (not wanted or not summary or wanted(summary(view))):
                    if len(page) == limit:
                        return page, _encode(last)
                    page.append(view)
                last, scanned = item, scanned + 1
        return page, _encode(last)

    def _noted(self, items: list[str]) -> dict[str, dict[str, Any]]:
        try:
            return self._index.summaries(items)
        except Down:
            return {}

    def _ids(self, kind: Kind, before: str | None) -> Iterator[str]:
        try:
            while self._index.complete():
                batch = self._index.newest(kind, before, MAX_LIMIT, self._tenant)
                for item in batch:
                    yield item
                    before = item
                if len(batch) < MAX_LIMIT:
                    return
        except Down:
            pass
        yield from _older(kind, before, self._named(kind))

    def _named(self, kind: Kind) -> Iterator[str]:
        if self._tenant == DEFAULT:
            # Other tenants' items are among them; `read` does not know those.
            return self._bucket.children(layout.folder(kind))
        folder = layout.markers(self._tenant, kind)
        return (key.removeprefix(folder) for key in self._bucket.list(folder))


def _older(kind: Kind, before: str | None, names: Iterable[str]) -> Iterator[str]:
    ids = (name for name in names if is_id(kind, name))
    return iter(sorted((id for id in ids if before is None or id < before), reverse=True))


def _encode(item: str) -> str:
    return base64.urlsafe_b64encode(item.encode()).decode()


def _decode(kind: Kind, cursor: str) -> str:
    try:
        item = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii")
    except (ValueError, binascii.Error):
        item = ""
    if not is_id(kind, item):
        raise InputError(
            "The cursor is not one of this service.",
            expected="the next cursor of the page before, unchanged",
            received=cursor[:128],
        )
    return item
