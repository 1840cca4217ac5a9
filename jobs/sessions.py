"""Uploads in parts that do not pass through the api: the client sends each part to the bucket, by a presigned URL.

What was agreed lies in the bucket until the upload is recorded. The bytes passed us by, so nobody here has seen their
digest: the upload is recorded with the announced one, and stays ``inspecting`` until a worker has compared them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from jobs import layout
from jobs.agreements import Session, missing_parts, part_size_for
from jobs.blobs import Blobs
from jobs.errors import Conflict, IncompleteUpload, NotFound, QuotaExceeded, Unavailable
from jobs.ids import UploadKind, is_upload, new_id
from jobs.items import Items
from jobs.ledger import Item, Ledger
from jobs.locks import alone
from jobs.multipart import Multipart, Part
from jobs.records import PartUrl, SessionView, UploadView
from jobs.uploads import Uploads, check_filename
from pruning_core.errors import InputError

#: URLs of one answer.
MAX_URLS = 1000


class Sessions:
    """The use cases, for one tenant; `jobs.service.Service` offers them."""

    def __init__(self, ledger: Ledger, items: Items, uploads: Uploads, multipart: Multipart) -> None:
        self._ledger, self._items, self._uploads, self._multipart = ledger, items, uploads, multipart
        self._settings, self._bucket = ledger.settings, ledger.bucket
        self._blobs = Blobs(ledger, items.tenant)

    def create(
        self, kind: UploadKind, *, filename: str | None, size: int, sha256: str | None, part_size: int | None
    ) -> SessionView:
        """Begin an upload in parts.

        Args:
            kind: What it is.
            filename: What the client calls it.
            size: Of the whole file; at least 1.
            sha256: Of the whole file; None: it is announced with `complete`.
            part_size: Of all parts but the last; None: chosen here.

        Raises:
            TooLarge: The file is larger than the service accepts.
            InputError: Filename or part size cannot be used.
            QuotaExceeded: Too many uploads are open.
            StorageFull: The tenant may store no more.
            Unavailable: The bucket does not answer.
        """
        settings = self._settings
        check_filename(filename)
        part_size = part_size_for(size, part_size, settings.max_parts, settings.max_upload_bytes)
        self._items.expect(stored=size)
        there = sum(1 for _ in self._bucket.list(layout.sessions(self._items.tenant), limit=settings.max_open_uploads))
        if there >= settings.max_open_uploads:
            raise QuotaExceeded(
                "Too many uploads are open.",
                advice="Complete or abort some (DELETE /uploads/{id}); abandoned ones expire.",
                quota="open_uploads",
                limit=settings.max_open_uploads,
                used=there,
                retry_after=60,
            )
        item, blob, at = new_id(kind), self._blobs.new(), datetime.now(UTC)
        # What the sweeper finds of a crash in between: a reference that grows old, a multipart upload of no session.
        self._blobs.refer(blob, item)
        self._bucket.put_json(layout.unverified(blob), {})
        session = Session(
            id=item,
            kind=kind,
            filename=filename,
            size=size,
            sha256=sha256 and sha256.lower(),
            part_size=part_size,
            blob=blob,
            multipart=self._multipart.begin(blob),
            created_at=at,
            expires_at=at + timedelta(seconds=settings.upload_session_seconds),
        )
        self._bucket.put_json(layout.session(self._items.tenant, item), session.model_dump(mode="json"))
        return _view(session, [])

    def get(self, upload: str) -> SessionView | None:
        """Return how far an upload in parts is, or None if there is none of this id (any more)."""
        session = self._find(upload)
        if session is None:
            item = self._recorded(upload)
            return None if item is None or "parts" not in item.request else _completed(item)
        return _view(session, self._multipart.parts(session.blob, session.multipart))

    def urls(self, upload: str, numbers: list[int] | None) -> tuple[list[PartUrl], datetime]:
        """Return URLs for parts, by default for the first that are missing, and when they expire.

        Raises:
            NotFound: There is no open upload of this id.
            InputError: There are no such parts.
        """
        session = self._find(upload)
        if session is None:
            raise self._gone(upload)
        if numbers is None:
            stored = self._multipart.parts(session.blob, session.multipart)
            wanted = missing_parts(session, stored or [])[:MAX_URLS]
        else:
            wanted = sorted(set(numbers))
            wrong = [number for number in wanted if not 1 <= number <= session.parts]
            if wrong or len(wanted) > MAX_URLS:
                raise InputError(
                    "There are no such parts." if wrong else "Those are too many parts for one answer.",
                    expected=f"numbers from 1 to {session.parts}, at most {MAX_URLS} of them",
                    received=wrong[:10] or len(wanted),
                )
        left = (session.expires_at - datetime.now(UTC)).total_seconds()
        seconds = max(1, min(self._settings.presigned_seconds, int(left)))
        urls = [
            PartUrl(
                number=number,
                size=session.length(number),
                url=self._multipart.part_url(
                    session.blob, session.multipart, number, session.length(number), seconds=seconds
                ),
            )
            for number in wanted
        ]
        return urls, datetime.now(UTC) + timedelta(seconds=seconds)

    def complete(self, upload: str, sha256: str | None) -> UploadView:
        """Record the upload; calling it again changes nothing.

        Raises:
            NotFound: There is no upload of this id (any more).
            IncompleteUpload: Parts are missing.
            Conflict: Another digest was announced before.
            InputError: No digest was announced at all.
            QuotaExceeded: The tenant may not store it now.
            StorageFull: The tenant may store no more.
            Unavailable: Bucket or Redis does not answer.
        """
        with self._alone(upload):
            found = self._recorded(upload)
            session = self._find(upload)
            if found is None and session is None:
                raise self._gone(upload)
            if session is not None and found is None:
                digest = _agreed(session.sha256, sha256)
                self._items.expect(stored=session.size)
                self._assemble(session)
                about = {"filename": session.filename, "format_hint": None, "size": session.size, "sha256": digest}
                parts = {"size": session.part_size, "count": session.parts}
                self._uploads.record(upload, {**about, "blob": session.blob, "verified": False, "parts": parts})
            elif found is not None:
                _agreed(found.request["sha256"], sha256)
            self._bucket.delete(layout.session(self._items.tenant, upload))
            view = self._uploads.get(upload)
        if view is None:
            raise self._gone(upload)
        return view

    def abort(self, upload: str) -> None:
        """Throw away an upload in parts that is not complete.

        Raises:
            NotFound: There is none of this id.
            Conflict: It is complete.
            Unavailable: Bucket or Redis does not answer.
        """
        with self._alone(upload):
            session = self._find(upload, expired=True)
            if self._recorded(upload) is not None:
                raise Conflict("The upload is complete.", advice="Delete what it became (links.upload).")
            if session is None:
                raise self._gone(upload)
            self._remove(session)

    def collect(self, upload: str) -> bool:
        """Remove an expired session, and what was sent for it unless it became an upload; return whether it did."""
        with self._alone(upload):
            session = self._find(upload, expired=True)
            if session is None or not session.expired:
                return False
            if self._recorded(upload) is None:
                self._remove(session)
            else:
                self._bucket.delete(layout.session(self._items.tenant, upload))
            return True

    def _remove(self, session: Session) -> None:
        # The session goes last: until then this can be done again.
        self._multipart.abort(session.blob, session.multipart)
        self._blobs.release(session.blob, session.id)
        self._bucket.delete(layout.session(self._items.tenant, session.id))

    def _assemble(self, session: Session) -> None:
        stored = self._multipart.parts(session.blob, session.multipart)
        if stored is not None:
            missing = missing_parts(session, stored)
            if missing:
                raise IncompleteUpload(
                    f"{len(missing)} of {session.parts} parts are not stored yet, or not in their right size.",
                    expected=f"parts 1 to {session.parts}, each of {session.part_size} bytes but the last",
                    advice="Send them (POST /uploads/{id}/urls has their URLs), then complete again.",
                    missing=missing[:MAX_URLS],
                )
            self._multipart.complete(session.blob, session.multipart, stored)
        # Completed now, or by an earlier call that died before it had recorded the upload.
        found = self._bucket.head(session.blob)
        if found is None or found.size != session.size:
            raise NotFound("The store has lost the parts of this upload.", advice="Begin anew.", received=session.id)

    def _find(self, upload: str, *, expired: bool = False) -> Session | None:
        if not is_upload(upload):
            return None
        found = self._bucket.get_json(layout.session(self._items.tenant, upload))
        session = None if found is None else Session.model_validate(found)
        return session if session is None or expired or not session.expired else None

    def _recorded(self, upload: str) -> Item | None:
        return self._items.read(upload) if is_upload(upload) else None

    def _gone(self, upload: str) -> NotFound:
        return NotFound("There is no open upload of this id.", received=upload[:64], advice="POST /uploads begins one.")

    def _alone(self, upload: str) -> AbstractContextManager[None]:
        """Completing and removing the same upload exclude each other, so without Redis neither is done."""
        busy = Unavailable("The upload is being completed or removed.", advice="Try again in a moment.")
        return alone(
            self._ledger.clock, f"session:{upload[:64]}", busy=busy, down="Redis does not answer.", wait=20, seconds=300
        )


def _view(session: Session, stored: list[Part] | None) -> SessionView:
    # None: the parts are one object already, only the record is missing; completing again makes it.
    missing = set(missing_parts(session, stored)) if stored is not None else set()
    return SessionView(
        **session.model_dump(include={"id", "kind", "filename", "size", "sha256", "part_size", "created_at"}),
        state="open",
        parts=session.parts,
        received=tuple(number for number in range(1, session.parts + 1) if number not in missing),
        expires_at=session.expires_at,
    )


def _completed(item: Item) -> SessionView:
    request = item.request
    count = request["parts"]["count"]
    return SessionView(
        **{name: request[name] for name in ("id", "kind", "filename", "size", "sha256", "created_at")},
        state="complete",
        part_size=request["parts"]["size"],
        parts=count,
        received=tuple(range(1, count + 1)),
        expires_at=None,
    )


def _agreed(known: str | None, sent: str | None) -> str:
    sent = sent and sent.lower()
    if known is None and sent is None:
        raise InputError(
            "The SHA-256 of the whole file is needed.",
            expected="sha256, when the upload begins or when it is completed",
            received="neither",
        )
    if known is not None and sent is not None and known != sent:
        raise Conflict("Another SHA-256 was announced for this upload before.", expected=known, received=sent)
    return str(sent or known)
