"""The same bytes are stored once per tenant, and freed when nothing needs them: on two S3 servers."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from jobs import layout
from jobs.blobs import Blobs, bytes_of
from jobs.errors import Conflict, DigestMismatch, NotFound, Unavailable
from jobs.ids import UPLOAD_KINDS
from jobs.service import Service
from jobs.writer import PART_BYTES
from tests.uploads.states import (
    Crash,
    crashing,
    everything,
    queued,
    read,
    sha256,
    stored_bytes,
    upload,
    uploads,
)

#: Where every line of ours is tried, one server will do.
ON_NANIO = pytest.mark.parametrize("server", ["nanio"])
SMALL, LARGE = b"small", os.urandom(PART_BYTES + 1000)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_the_same_bytes_are_stored_once_and_go_with_the_last_upload(service: Service, data: bytes) -> None:
    ids = [upload(service, data, kind) for kind in UPLOAD_KINDS]
    assert len(stored_bytes(service)) == 1
    for gone in ids:
        for left in ids[ids.index(gone) :]:
            assert read(service, left) == data
        service.delete_upload(gone)
    assert everything(service) == []


def test_tenants_share_nothing(service: Service) -> None:
    red, blue = service.of("red"), service.of("blue")
    own = {tenant: upload(tenant) for tenant in (service, red, blue)}
    assert len(stored_bytes(service)) == 3
    sent = watched(service)
    with pytest.raises(DigestMismatch):
        upload(service.of("green"), b"other", expected_sha256=sha256(b"bytes"))
    assert not any("/red/" in key or "/blue/" in key for _, key in sent), "green's upload looked at another's bytes"
    red.delete_upload(own[red])
    assert read(service, own[blue]) == read(service, own[service]) == b"bytes"
    blue.delete_upload(own[blue])
    service.delete_upload(own[service])
    assert everything(service) == []


def watched(service: Service) -> list[tuple[str, str]]:
    """The bucket's operations from now on, with their keys."""
    seen: list[tuple[str, str]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        seen.append((model.name, str(params.get("Key"))))

    service.bucket.client.meta.events.register("provide-client-params.s3", note)
    return seen


def test_announced_bytes_are_compared_and_not_sent_again(service: Service) -> None:
    first = upload(service, LARGE)
    sent = watched(service)
    again = upload(service, LARGE, expected_sha256=sha256(LARGE).upper())
    names = Counter(name for name, _ in sent)
    assert "UploadPart" not in names
    assert not any(key.endswith("/bytes") for name, key in sent if name == "PutObject")
    assert read(service, again) == LARGE
    service.delete_upload(first)
    assert read(service, again) == LARGE
    service.delete_upload(again)
    assert everything(service) == []


def test_bytes_that_are_not_announced_are_not_kept_twice(service: Service) -> None:
    upload(service, SMALL)
    sent = watched(service)
    upload(service, SMALL)
    assert not any(key.endswith("/bytes") for name, key in sent if name == "PutObject")
    upload(service, LARGE)
    upload(service, LARGE)
    assert len(stored_bytes(service)) == 2
    assert service.bucket.client.list_multipart_uploads(Bucket=service.bucket.name).get("Uploads", []) == []


@pytest.mark.parametrize("data", [b"wrong", os.urandom(PART_BYTES + 10)], ids=["small", "large"])
def test_wrong_bytes_under_a_known_digest_are_refused(service: Service, data: bytes) -> None:
    kept = upload(service)
    before = everything(service)
    with pytest.raises(DigestMismatch) as caught:
        upload(service, data, expected_sha256=sha256(b"bytes"))
    assert caught.value.received == sha256(data)
    assert everything(service) == before
    assert read(service, kept) == b"bytes"


def test_bytes_that_go_while_they_are_sent_again_are_asked_for_once_more(service: Service, hasty: Service) -> None:
    kept = upload(service)

    def slowly() -> Iterator[bytes]:
        yield b"by"
        service.bucket.delete(service.uploads.blobs.users(bytes_of_id(service, kept)) and bytes_of_id(service, kept))
        yield b"tes"

    with pytest.raises(Unavailable):
        service.create_upload("model", slowly(), expected_sha256=sha256(b"bytes"))
    assert uploads(service) == [kept]


def bytes_of_id(service: Service, upload: str) -> str:
    item = service.ledger.read(upload)
    assert item is not None
    return bytes_of(item)


def test_an_upload_deleted_while_the_same_is_sent_leaves_the_bytes_to_it(service: Service) -> None:
    kept = upload(service)

    def slowly() -> Iterator[bytes]:
        yield b"by"
        service.delete_upload(kept)
        yield b"tes"

    again = service.create_upload("model", slowly(), expected_sha256=sha256(b"bytes")).id
    assert read(service, again) == b"bytes"
    assert len(stored_bytes(service)) == 1


def test_without_redis_nothing_is_freed_until_the_sweeper_comes(service: Service, without_redis: Service) -> None:
    first, second = upload(without_redis), upload(without_redis)
    assert len(stored_bytes(service)) == 1
    for item in (first, second):
        without_redis.delete_upload(item)
    assert stored_bytes(service) != []
    assert without_redis.sweep().elected is False
    swept = service.sweep()
    assert (swept.elected, len(swept.blobs)) == (True, 1)
    assert everything(service) == []


def test_uploads_of_version_01_stay_usable(service: Service) -> None:
    model, data = upload(service, b"model"), upload(service, b"data", "dataset")
    for item in (model, data):
        request = service.bucket.get_json(layout.request(item))
        assert request is not None
        bytes_ = read(service, item)
        service.bucket.delete_prefix(layout.prefix(item))
        service.bucket.upload(layout.file(item), iter([bytes_]))
        del request["blob"]
        service.bucket.put_json(layout.request(item), request)
    for key in service.bucket.list(layout.BLOBS):
        service.bucket.delete(key)
    assert (read(service, model), read(service, data)) == (b"model", b"data")
    job = queued(service, model, data)
    with pytest.raises(Conflict):
        service.delete_upload(model)
    service.cancel_job(job)
    service.sweep()
    assert read(service, model) == b"model"
    service.delete_upload(model)
    service.delete_upload(data)
    assert [key for key in everything(service) if not key.startswith(("jobs/", "digests/", "outbox/"))] == []


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_an_open_job_keeps_its_inputs(service: Service, hasty: Service) -> None:
    model, data = upload(service, b"model"), upload(service, b"data", "dataset")
    twin = upload(service, b"model")
    job = queued(service, model, data)
    for item in (model, data):
        with pytest.raises(Conflict) as caught:
            service.delete_upload(item)
        assert caught.value.extensions["job"] == job
    service.delete_upload(twin)  # the same bytes, but the job does not name it
    hasty.sweep()
    assert (read(service, model), read(service, data)) == (b"model", b"data")
    service.cancel_job(job)
    service.delete_upload(model)
    service.delete_upload(data)
    assert stored_bytes(service) == []
    assert all(key.startswith(("jobs/", "outbox/")) for key in everything(service))


@ON_NANIO
def test_a_job_that_comes_while_its_upload_goes_is_refused_or_keeps_the_bytes(
    service: Service, hasty: Service, request: pytest.FixtureRequest
) -> None:
    data = upload(service, b"data", "dataset")
    outcomes = set()
    request.addfinalizer((other := Service(service.settings)).close)
    for at in range(1, 100):
        model = upload(service, b"model")
        blob = bytes_of_id(service, model)
        seen, events = 0, service.bucket.client.meta.events

        def delete_now(at: int = at, doomed: str = model, **_: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                other.delete_upload(doomed)

        events.register("before-call.s3", delete_now)
        try:
            try:
                job = queued(service, model, data)
            finally:
                events.unregister("before-call.s3", delete_now)
        except NotFound:
            outcomes.add("refused")
        except Conflict:
            outcomes.add("kept")
            with suppress(Conflict):
                service.cancel_job(max(service.bucket.children("jobs/")))
            service.delete_upload(model)
        else:
            outcomes.add("accepted")
            hasty.sweep()
            assert b"".join(service.bucket.open(blob)[1]) == b"model"
            service.cancel_job(job)
        if seen < at:
            break  # this time nobody deleted anything: every request had its turn
        hasty.sweep()
        assert len(stored_bytes(service)) == 1, "only the data's"
    assert "refused" in outcomes
    assert "accepted" in outcomes


# -- crashes and races -------------------------------------------------------------------------------------------------


@ON_NANIO
@pytest.mark.parametrize(
    ("known", "announced"), [(False, False), (True, False), (True, True)], ids=["new", "known", "announced"]
)
def test_an_upload_may_die_at_every_request(service: Service, hasty: Service, known: bool, announced: bool) -> None:
    expected, at, died = sha256(b"bytes") if announced else None, 0, True
    kept = {upload(service)} if known else set()
    while died:
        at, died = at + 1, False
        with crashing(service, at):
            try:
                pending = service.begin_upload("model", expected_sha256=expected)
                pending.write(b"bytes")
                pending.finish()
            except Crash:
                died = True
        hasty.sweep()
        whole(service)
        assert kept <= set(uploads(service))
        for item in set(uploads(service)) - kept:
            service.delete_upload(item)
        assert len(everything(service)) == (5 if known else 0), everything(service)
    assert at > 4


def whole(service: Service) -> None:
    """Every recorded upload has its bytes."""
    for item in uploads(service):
        assert read(service, item) == b"bytes"


@ON_NANIO
@pytest.mark.parametrize("shared", [False, True], ids=["last", "shared"])
def test_a_deletion_may_die_at_every_request(service: Service, hasty: Service, shared: bool) -> None:
    at, died = 0, True
    while died:
        at, died = at + 1, False
        kept, doomed = {upload(service)} if shared else set(), upload(service)
        with crashing(service, at):
            try:
                service.delete_upload(doomed)
            except Crash:
                died = True
        kept.add(upload(service))
        hasty.sweep()
        whole(service)
        assert kept <= set(uploads(service))
        for item in uploads(service):
            service.delete_upload(item)
        hasty.sweep()
        assert everything(service) == []
    assert at > 6


def test_bytes_are_not_freed_under_one_who_finds_them(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of a deletion somebody sends the same bytes."""
    for step in ("before", "hidden", "after"):
        gone, hide, found = upload(service), Blobs._hide, []

        def hiding(self: Blobs, blob: str, step: str = step, hide: Any = hide, found: list[str] = found) -> list[str]:
            if step == "before":
                found.append(upload(service))
            hidden: list[str] = hide(self, blob)
            if step == "hidden":
                found.append(upload(service))
            return hidden

        monkeypatch.setattr(Blobs, "_hide", hiding)
        service.delete_upload(gone)
        monkeypatch.setattr(Blobs, "_hide", hide)
        if step == "after":
            found.append(upload(service))
        assert read(service, found[0]) == b"bytes"
        assert len(stored_bytes(service)) == 1
        assert upload(service, expected_sha256=sha256(b"bytes"))
        assert len(stored_bytes(service)) == 1, "the bytes are still found by their digest"
        for item in uploads(service):
            service.delete_upload(item)
        assert everything(service) == []


def test_many_send_and_delete_the_same_bytes_at_once(service: Service, hasty: Service) -> None:
    """Several processes (each with its own connections and locks), one of them without Redis."""
    down = {"redis_url": "redis://127.0.0.1:9/0"}
    others = [Service(service.settings.model_copy(update=update)) for update in ({}, {}, down)]
    contents = [b"a" * 10, b"b" * 10]

    def live(number: int) -> None:
        random_, mine = random.Random(number), []
        acting = others[number % len(others)]
        for _ in range(8):
            if mine and random_.random() < 0.5:
                acting.delete_upload(mine.pop())
            else:
                data = random_.choice(contents)
                mine.append(upload(acting, data, expected_sha256=random_.choice([None, sha256(data)])))
                assert read(acting, mine[-1]) == data

    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(live, range(3)))
        left = uploads(service)
        for item in left:
            assert read(service, item) in contents
        hasty.sweep()
        for item in left:
            assert read(service, item) in contents
            service.delete_upload(item)
        hasty.sweep()
        assert everything(service) == []
    finally:
        for other in others:
            other.close()
