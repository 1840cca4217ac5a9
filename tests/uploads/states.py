"""What tests of this folder ask of a bucket, and do to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs import layout
from jobs.blobs import bytes_of
from jobs.ids import UPLOAD_KINDS, UploadKind
from jobs.service import Service

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}


class Crash(BaseException):
    """The process dies here."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def upload(service: Service, data: bytes = b"bytes", kind: UploadKind = "model", **more: Any) -> str:
    return service.create_upload(kind, iter([data]), **more).id


def queued(service: Service, model: str, data: str) -> str:
    return service.create_job(model, data, None, RECIPE)[0].id


def everything(service: Service) -> list[str]:
    return list(service.bucket.list(""))


def stored_bytes(service: Service) -> list[str]:
    """The keys of all bytes of uploads."""
    return [key for key in service.bucket.list(layout.BLOBS) if key.endswith("/bytes")]


def read(service: Service, upload: str) -> bytes:
    """The bytes of a recorded upload."""
    item = service.ledger.read(upload)
    assert item is not None
    return b"".join(service.bucket.open(bytes_of(item))[1])


def uploads(service: Service) -> list[str]:
    return [view.id for kind in UPLOAD_KINDS for view in service.list_uploads(kind)[0]]


@contextmanager
def crashing(service: Service, at: int) -> Iterator[Callable[[], int]]:
    """Let the process die when it is about to send its ``at``-th request to the bucket; yields how many it has sent."""
    sent = 0

    def count(**_: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == at:
            raise Crash

    events = service.bucket.client.meta.events
    events.register("before-call.s3", count)
    try:
        yield lambda: sent
    finally:
        events.unregister("before-call.s3", count)
