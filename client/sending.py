"""Uploads: a small file in one request, a large one in parts that go straight to the bucket and can be resumed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx

from client.effects import Answer, FileRange, Operation, Request, Send, Work
from client.errors import ClientError, Problem
from client.models import Kind, Page, Parts, PartUrls, Upload
from client.retries import Patience, Retry, pause_after, pause_before, reliably, repeatable

#: From this size on a file goes in parts.
PARTS_FROM_BYTES = 64 * 2**20
#: URLs of one request: they expire, so not too many.
_URLS_AT_ONCE = 16
#: The store's word that a URL is not valid, or no longer.
_URL_REFUSED = (400, 401, 403)
_DETOUR_AFTER = 3


def _ignore(_value: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class FileToSend:
    """A file on its way.

    Args:
        kind: What it is.
        path: Where it is.
        filename: What the service calls it; default: its name.
        sent: Told how many bytes of it have gone, all in all.
        reuse: Take an upload of the same bytes and name that the service has already, and send nothing.
        resume: Id of an upload in parts that was begun before; if it is not of the same bytes, a new one is begun.
        begun: Told the id of an upload in parts.
        parts_from: From which size on it goes in parts.
        part_size: Of its parts; default: the service chooses.
    """

    kind: Kind
    path: Path
    filename: str | None = None
    sent: Callable[[int], None] = _ignore
    reuse: bool = False
    resume: str | None = None
    begun: Callable[[str], None] = _ignore
    parts_from: int = PARTS_FROM_BYTES
    part_size: int | None = None

    @property
    def name(self) -> str:
        """What the service calls it."""
        return self.filename or self.path.name


def upload(file: FileToSend, retry: Retry) -> Operation[Upload]:
    """Send a file.

    Raises:
        Problem: The service refuses it.
        Unreachable: The service does not answer.
        OSError: The file cannot be read.
    """
    size, digest = yield Work(lambda: (file.path.stat().st_size, sha256_of(file.path)))
    known = (yield from _known(file, digest, retry)) if file.reuse else None
    if known is not None:
        return known
    if size < max(file.parts_from, 1):
        return (yield from _whole(file, size, digest, retry))
    return (yield from _in_parts(file, size, digest, retry))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _known(file: FileToSend, digest: str, retry: Retry) -> Operation[Upload | None]:
    request = Request(method="GET", url=f"/{file.kind}s", params={"sha256": digest})
    found = Page[Upload].of((yield from reliably(request, retry)).body).items
    return next((upload for upload in found if _usable(upload, file, digest)), None)


def _usable(upload: Upload, file: FileToSend, digest: str) -> bool:
    # Results are named after it, so the name counts too; what was rejected may be taken by a later version.
    return (upload.sha256, upload.filename) == (digest, file.name) and upload.state != "rejected"


def _whole(file: FileToSend, size: int, digest: str, retry: Retry) -> Operation[Upload]:
    encoded = base64.b64encode(bytes.fromhex(digest)).decode()
    # Sent again after a lost answer it is another upload of the same bytes, which the service stores once.
    request = Request(
        method="PUT",
        url=f"/{file.kind}s/{quote(file.name, safe='')}",
        headers={"Content-Digest": f"sha-256=:{encoded}:", "Content-Type": "application/octet-stream"},
        body=FileRange(path=file.path, start=0, size=size, sent=file.sent),
    )
    answer = yield from reliably(request, retry)
    return Upload.of(answer.body)


def _in_parts(file: FileToSend, size: int, digest: str, retry: Retry) -> Operation[Upload]:
    parts = yield from _resumed(file, size, digest, retry)
    if isinstance(parts, Upload):
        return parts
    if parts is None:
        wanted = {"kind": file.kind, "filename": file.name, "size": size, "sha256": digest, "part_size": file.part_size}
        answer = yield from reliably(_post("/uploads", wanted), retry)
        parts = Parts.of(answer.body)
    file.begun(parts.id)
    patience, failures = Patience(retry), 0
    while True:
        if parts.state == "complete" or not parts.missing:
            answer = yield from reliably(_post(f"/uploads/{parts.id}/complete", {}), retry)
            return Upload.of(answer.body)
        cut = yield from _round(file, parts, retry, patience)
        failures = failures + 1 if cut is not None else 0
        # After any break the store is asked which parts it has; only the others are sent.
        parts = yield from _look(parts.id, retry)
        if cut is None:
            continue
        if isinstance(cut, httpx.ConnectError) and not parts.received and failures >= _DETOUR_AFTER:
            # The bucket cannot be reached from here (an inner address): the bytes go through the service.
            yield from reliably(Request(method="DELETE", url=f"/uploads/{parts.id}"), retry)
            return (yield from _whole(file, size, digest, retry))
        if isinstance(cut, Answer):
            yield from pause_before(cut, patience)
        else:
            yield from pause_after(cut, patience)


def _resumed(file: FileToSend, size: int, digest: str, retry: Retry) -> Operation[Parts | Upload | None]:
    """Return the upload that was begun before, or what has become of it; None if it is of no use."""
    if file.resume is None:
        return None
    try:
        parts = yield from _look(file.resume, retry)
        if (parts.kind, parts.size, parts.sha256) != (file.kind, size, digest):
            return None
        if parts.state == "open":
            return parts
        answer = yield from reliably(Request(method="GET", url=f"/{parts.kind}s/{parts.id}"), retry)
    except Problem as problem:
        if problem.status != 404:
            raise
        return None  # it has expired, or was deleted
    upload = Upload.of(answer.body)
    return upload if _usable(upload, file, digest) else None


def _look(id: str, retry: Retry) -> Operation[Parts]:
    answer = yield from reliably(Request(method="GET", url=f"/uploads/{id}"), retry)
    return Parts.of(answer.body)


def _round(
    file: FileToSend, parts: Parts, retry: Retry, patience: Patience
) -> Operation[Answer | httpx.TransportError | None]:
    """Send the first parts that are missing; return what broke it off, if something did."""
    numbers = parts.missing[:_URLS_AT_ONCE]
    answer = yield from reliably(_post(f"/uploads/{parts.id}/urls", {"parts": numbers}), retry)
    before = sum(parts.length(number) for number in parts.received)
    for part in PartUrls.of(answer.body).parts:
        start = (part.number - 1) * parts.part_size
        body = FileRange(path=file.path, start=start, size=part.size, sent=partial(_sent, file.sent, before))
        request = Request(method="PUT", url=part.url, body=body, trusted=False)
        try:
            stored: Answer = yield Send(request)
        except httpx.TransportError as error:
            return error
        if stored.status in _URL_REFUSED:
            # The first URL of a round is new; a later one may have grown too old.
            if part.number == numbers[0]:
                raise ClientError(f"The store refuses a part with status {stored.status}: {stored.body[:300]!r}")
            return None
        if repeatable(stored):
            return stored
        if stored.status >= 300:
            raise ClientError(f"The store refuses a part with status {stored.status}: {stored.body[:300]!r}")
        before += part.size
        patience.renew()
    return None


def _sent(told: Callable[[int], None], before: int, count: int) -> None:
    told(before + count)


def _post(url: str, document: dict[str, object]) -> Request:
    body = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
    return Request(method="POST", url=url, headers={"Content-Type": "application/json"}, body=body)
