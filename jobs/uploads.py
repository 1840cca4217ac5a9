"""The use cases of uploads: models, datasets and masks, which a worker inspects after they are stored."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from jobs import layout, logs
from jobs.blobs import Blobs, blobs_of
from jobs.clock import Down
from jobs.errors import Conflict, NotFound, TooLarge, Unavailable
from jobs.ids import UploadKind, is_id, is_upload, kind_of, new_id
from jobs.items import Items
from jobs.ledger import Item, Ledger
from jobs.paging import Pager
from jobs.records import UploadView, now
from jobs.s3 import verify
from jobs.views import Views
from jobs.writer import BucketWriter, Comparison
from pruning_core.errors import InputError

MAX_NAME_LENGTH = 255
#: The fields of a job that name uploads -> the kind each takes.
USES: dict[str, UploadKind] = {"model": "model", "calibration": "dataset", "validation": "dataset", "masks": "mask"}
#: Those that a job may leave out.
OPTIONAL = frozenset({"validation", "masks"})


def check_filename(filename: str | None) -> None:
    """Refuse a name that is too long.

    Raises:
        InputError: It is.
    """
    if filename is not None and len(filename) > MAX_NAME_LENGTH:
        raise InputError("The filename is too long.", expected=f"at most {MAX_NAME_LENGTH} characters")


class PendingUpload:
    """An upload on its way. The item exists, and is promised, only when `finish` returns."""

    def __init__(
        self,
        owner: Uploads,
        item: str,
        *,
        filename: str | None,
        format_hint: str | None,
        expected_sha256: str | None,
        max_bytes: int,
    ) -> None:
        self.id = item
        self._owner, self._max_bytes = owner, max_bytes
        self._filename, self._format_hint, self._expected = filename, format_hint, expected_sha256
        self._blob, self._sink = owner.sink(item, expected_sha256)

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._sink.size

    def write(self, chunk: bytes) -> None:
        """Take more bytes; blocks while a part goes to the bucket.

        Raises:
            TooLarge: That is more than the service accepts; call `abort`.
            Unavailable: The bucket does not answer; call `abort`.
        """
        if self._sink.size + len(chunk) > self._max_bytes:
            raise TooLarge(
                f"The body is larger than the {self._max_bytes} bytes that this service accepts.",
                expected=f"at most {self._max_bytes} bytes",
                limit=self._max_bytes,
            )
        self._sink.write(chunk)

    def finish(self) -> UploadView:
        """Store the upload for good and let a worker inspect it.

        Raises:
            DigestMismatch: The bytes do not have the expected SHA-256; call `abort`.
            InputError: There were no bytes.
            Unavailable: The bucket does not answer; call `abort`.
        """
        if self._sink.size == 0:
            raise InputError("The body is empty.", expected="the bytes of a file", received="0 bytes")
        sha256 = self._sink.sha256
        verify(self._expected, sha256)
        self._blob = self._owner.blobs.keep(self._sink, self._blob, self.id)
        return self._owner.record(
            self.id,
            {
                "filename": self._filename,
                "format_hint": self._format_hint,
                "size": self._sink.size,
                "sha256": sha256,
                "blob": self._blob,
            },
        )

    def abort(self) -> None:
        """Throw away what was stored so far; never raises."""
        self._sink.abort()
        self._owner.discard(self.id, self._blob)


class Uploads:
    """The use cases; `jobs.service.Service` offers them."""

    def __init__(self, ledger: Ledger, views: Views, pager: Pager, items: Items) -> None:
        self._ledger, self._views, self._pager, self._items = ledger, views, pager, items
        self._bucket, self._index = ledger.bucket, ledger.index
        self.blobs = Blobs(ledger, items.tenant)

    def begin(
        self,
        kind: UploadKind,
        filename: str | None,
        format_hint: str | None,
        expected_sha256: str | None,
    ) -> PendingUpload:
        """Begin to store an upload."""
        item = new_id(kind)
        check_filename(filename)
        return PendingUpload(
            self,
            item,
            filename=filename,
            format_hint=format_hint,
            expected_sha256=expected_sha256,
            max_bytes=self._ledger.settings.max_upload_bytes,
        )

    def sink(self, item: str, expected_sha256: str | None) -> tuple[str, BucketWriter | Comparison]:
        """Return the key for the bytes of a new upload, and what takes them; bytes that are here are not sent again."""
        if expected_sha256 is not None:
            known = self.blobs.adopt(expected_sha256.lower(), item)
            if known is not None:
                return known, Comparison()
        blob = self.blobs.new()
        return blob, self._bucket.writer(blob, sha256=expected_sha256)

    def record(self, item: str, about: dict[str, Any]) -> UploadView:
        """Record an upload whose bytes are stored: from now on it exists.

        Args:
            item: Its id.
            about: ``filename``, ``format_hint``, ``size``, ``sha256``, ``blob``.
        """
        request = {"id": item, "kind": kind_of(item), **about, "created_at": now(), **logs.origin()}
        self._items.record(item, request)
        self._items.announce(item)
        return self._views.upload(Item(id=item, request=request, outcome=None))

    def discard(self, item: str, blob: str) -> None:
        """Remove the bytes of an upload that was never recorded; never raises."""
        with suppress(Unavailable):
            if self._bucket.head(layout.request(item)) is None:
                self.blobs.release(blob, item)

    def get(self, upload: str) -> UploadView | None:
        """Return the upload, or None."""
        found = self._find(upload)
        return None if found is None else self._views.upload(found)

    def page(
        self, kind: UploadKind, cursor: str | None, limit: int, sha256: str | None = None
    ) -> tuple[list[UploadView], str | None]:
        """Return a page, newest first, and the cursor of the next; of all, or of those with these bytes."""
        among = None if sha256 is None else self.blobs.holders(sha256.lower())
        return self._pager.page(kind, cursor, limit, self.get, among=among)

    def delete(self, upload: str) -> None:
        """Delete an upload unless an open job uses it. Its record goes first: then no new job can name it.

        Raises:
            NotFound: There is none of this id.
            Conflict: A job that has not ended uses it.
        """
        found = self._find(upload)
        if found is None:
            raise NotFound("There is no upload of this id.", received=upload[:64])
        user = self._open_job_with(found)
        if user is not None:
            raise Conflict(
                "A job that has not ended uses this upload.",
                advice="Wait until the job has ended, or cancel it first.",
                job=user,
            )
        self._items.remove(upload)
        for blob in blobs_of(found):
            self.blobs.release(blob, upload)

    def _find(self, upload: str) -> Item | None:
        return self._items.read(upload) if is_upload(upload) else None

    def _open_job_with(self, upload: Item) -> str | None:
        blobs = blobs_of(upload)
        # Jobs refer to the bytes; but for uploads of version 0.1 every open job is looked at.
        users = {user for blob in blobs for user in self.blobs.users(blob)} if blobs else self._open_jobs()
        for job in users:
            found = self._ledger.read(job) if is_id("job", job) else None
            if found is not None and found.outcome is None and upload.id in map(found.request.get, USES):
                return job
        return None

    def _open_jobs(self) -> list[str]:
        try:
            if self._index.complete():
                return self._index.open("job")
        except Down:
            pass
        return sorted(self._index.open_in_bucket("job"))
