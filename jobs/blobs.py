"""The bytes of uploads: the same bytes are stored once per tenant, and freed when nothing refers to them.

Beside the bytes lie references, one for each upload and open job that needs them, and a digest's pointer says where the
tenant's bytes of that digest are. Pointers are never shared between tenants: that would tell one what another has.

No lock is needed for this to be right. Whoever needs bytes writes the reference first and then looks whether the
pointer (or, for a job, the upload) is still there; whoever frees them takes the pointer away first and then looks for
references. So at least one of two sees the other, also when either dies at any line; what that leaves behind is
collected later (`jobs.sweeper`). The locks in Redis only keep two from doing the same work. Without Redis nothing is
freed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from jobs import layout
from jobs.clock import Down
from jobs.errors import Unavailable
from jobs.ids import KINDS, is_id, new_ulid
from jobs.ledger import Item, Ledger
from jobs.records import now
from jobs.writer import BucketWriter, Comparison

logger = logging.getLogger(__name__)


def bytes_of(upload: Item) -> str:
    """Return the key of an upload's bytes."""
    return str(_outcome(upload).get("blob") or upload.request.get("blob") or layout.file(upload.id))


def blobs_of(upload: Item) -> set[str]:
    """Return all bytes that an upload may hold a reference to: where they were, and where they are."""
    return {key for key in (upload.request.get("blob"), bytes_of(upload)) if key and key.startswith(layout.BLOBS)}


def _kept(upload: Item) -> str | None:
    """Return the bytes that an inspected upload still refers to."""
    kept: str | None = _outcome(upload).get("blob", upload.request.get("blob"))
    return kept


def _outcome(upload: Item) -> dict[str, Any]:
    # An inspection says here where the bytes are from then on; None: they were not what was announced.
    found: dict[str, Any] = (upload.outcome or {}).get("artifacts") or {}
    return found


class Blobs:
    """The bytes of one tenant."""

    def __init__(self, ledger: Ledger, tenant: str) -> None:
        self._ledger, self._tenant = ledger, tenant
        self._bucket, self._clock = ledger.bucket, ledger.clock

    def new(self) -> str:
        """Return a key for new bytes."""
        return layout.blob(self._tenant, new_ulid())

    # -- keeping ---------------------------------------------------------------------------------------------------

    def keep(self, sink: BucketWriter | Comparison, blob: str, item: str) -> str:
        """Store what was written for good, unless the tenant has these bytes already.

        Args:
            sink: All the bytes were written to it; their digest is the right one.
            blob: The key that it writes to.
            item: The upload that needs them.

        Returns:
            The key of the bytes; the item holds a reference to it.

        Raises:
            Unavailable: The bucket does not answer, or bytes that were there when the upload began have gone.
        """
        sha256 = sink.sha256
        if isinstance(sink, Comparison):
            return self._held(sink, blob, item)
        with self._one_at_a_time(f"digest:{self._tenant}:{sha256}"):
            known = self.adopt(sha256, item)
            if known is not None:
                sink.abort()
                return known
            # Before the bytes can be seen: bytes without any reference are nobody's.
            self.refer(blob, item)
            sink.finish()
            self.publish(blob, sha256)
        return blob

    def _held(self, sink: Comparison, blob: str, item: str) -> str:
        # The reference is there since the upload began: nobody frees the bytes unless it looks abandoned.
        known: str | None = blob
        if sink.age > self._ledger.settings.abandoned_seconds / 2:
            known = self.adopt(sink.sha256, item)
        if known is None or self._bucket.head(known) is None:
            raise Unavailable("The file was deleted while you sent it again.", advice="Send it once more.")
        return known

    def adopt(self, sha256: str, item: str) -> str | None:
        """Let an item refer to the bytes of this digest, if the tenant has them; return their key."""
        where = layout.pointer(self._tenant, sha256)
        known = self._bucket.get_json(where)
        if known is None:
            return None
        blob: str = known["blob"]
        self.refer(blob, item)
        if self._bucket.head(blob) is not None and self._bucket.get_json(where) == known:
            return blob
        # They are being freed, or were: without pointer and references nobody finds them.
        self._bucket.delete(layout.reference(blob, item))
        return None

    def holders(self, sha256: str) -> list[str]:
        """Return the ids of what refers to the tenant's bytes of this digest."""
        known = self._bucket.get_json(layout.pointer(self._tenant, sha256))
        return [] if known is None else self.users(known["blob"])

    def publish(self, blob: str, sha256: str) -> None:
        """Let later uploads of the same bytes find these; the first one that is published stays."""
        self._bucket.put_json(layout.named(blob, sha256), {})
        self._bucket.write_once(layout.pointer(self._tenant, sha256), {"blob": blob})

    def settle(self, blob: str, sha256: str, item: str) -> str:
        """Share bytes that were sent past us, now that somebody has seen that they have their announced digest.

        Returns:
            The key of the bytes that the item is to use from now on: these, or the same that were there before.
        """
        with self._one_at_a_time(f"digest:{self._tenant}:{sha256}"):
            known = self.adopt(sha256, item)
            if known is None:
                self.publish(blob, sha256)
                self._bucket.delete(layout.unverified(blob))
        return known or blob

    def refer(self, blob: str, item: str) -> None:
        """Let an item refer to bytes. Whoever does so looks afterwards whether they still are what it wanted."""
        if blob.startswith(layout.BLOBS):
            self._bucket.put_json(layout.reference(blob, item), {"at": now()})

    # -- freeing ---------------------------------------------------------------------------------------------------

    def release(self, blob: str, item: str) -> None:
        """Take an item's reference away, and free the bytes if it was the last one."""
        if not blob.startswith(layout.BLOBS):
            return
        self._bucket.delete(layout.reference(blob, item))
        self.free(blob)

    def trim(self, upload: str, blobs: set[str | None]) -> None:
        """Release those of the bytes that an upload does not need any more, now that it was inspected or deleted."""
        found = self._ledger.read(upload)
        if found is None or found.outcome is not None:
            needed = None if found is None else _kept(found)
            for blob in blobs - {needed, None}:
                self.release(str(blob), upload)

    def free(self, blob: str) -> bool:
        """Remove bytes that nothing refers to; does nothing when Redis is down, or another process is at it.

        Returns:
            Whether they are gone.
        """
        try:
            with self._clock.lock(f"free:{blob}", seconds=60, wait=0) as locked:
                return locked and self._free(blob)
        except Down:
            return False

    def users(self, blob: str) -> list[str]:
        """Return the ids that are noted as needing these bytes."""
        folder = layout.reference(blob, "")
        ids = (key.removeprefix(folder) for key in self._bucket.list(folder))
        return [item for item in ids if any(is_id(kind, item) for kind in KINDS)]

    def _free(self, blob: str) -> bool:
        if self._needed(blob):
            return False
        hidden = self._hide(blob)
        if self._needed(blob):  # somebody found the pointer just before it went
            for sha256 in hidden:
                self.publish(blob, sha256)
            return False
        # The bytes first: what says whose they were must not go before them.
        self._bucket.delete(blob)
        self._bucket.delete_prefix(layout.beside(blob))
        logger.info("freed blob=%s", blob)
        return True

    def _hide(self, blob: str) -> list[str]:
        folder, hidden = layout.named(blob, ""), []
        for key in self._bucket.list(folder):
            sha256 = key.removeprefix(folder)
            pointer = layout.pointer(self._tenant, sha256)
            if (self._bucket.get_json(pointer) or {}).get("blob") == blob:
                self._bucket.delete(pointer)
                hidden.append(sha256)
        return hidden

    def _needed(self, blob: str) -> bool:
        needed = False
        for item in self.users(blob):
            if self._needs(item, blob):
                needed = True
            else:
                self._bucket.delete(layout.reference(blob, item))
        return needed

    def _needs(self, item: str, blob: str) -> bool:
        found = self._ledger.read(item)
        if found is not None:
            if found.kind == "job" or found.outcome is None:
                return found.outcome is None
            return _kept(found) == blob
        if found is None and self._bucket.head(layout.session(self._tenant, item)) is not None:
            return True
        # One that is on its way writes its reference before its request.
        reference = self._bucket.get_json(layout.reference(blob, item))
        if reference is None:
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(reference["at"])
        return age.total_seconds() < self._ledger.settings.abandoned_seconds

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        with ExitStack() as stack:
            with suppress(Down):  # or not: then the same bytes may be stored twice
                stack.enter_context(self._clock.lock(name, seconds=60, wait=20))
            yield
