"""Uploads in parts, sent past the api by presigned URLs: on two S3 servers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from jobs import layout
from jobs.agreements import Session, part_size_for
from jobs.errors import Conflict, IncompleteUpload, NotFound, QuotaExceeded, StorageFull, TooLarge, Unavailable
from jobs.multipart import MIN_PART_BYTES
from jobs.records import SessionView
from jobs.service import Service
from pruning_core.errors import InputError
from tests.jobs.test_supervisor import supervise
from tests.uploads.states import Crash, crashing, everything, queued, read, sha256, stored_bytes, upload, uploads
from worker.sandbox import Result

DATA = os.urandom(2 * MIN_PART_BYTES + 12345)


def begin(service: Service, data: bytes = DATA, *, digest: str | None = None, **more: Any) -> SessionView:
    return service.parts.create(
        more.pop("kind", "model"),
        filename="net.pt2",
        size=len(data),
        sha256=digest or sha256(data),
        part_size=more.pop("part_size", MIN_PART_BYTES),
    )


def send(service: Service, session: SessionView, data: bytes = DATA, numbers: list[int] | None = None) -> None:
    for part in service.parts.urls(session.id, numbers)[0]:
        start = (part.number - 1) * session.part_size
        answer = httpx.put(part.url, content=data[start : start + part.size], timeout=30)
        assert answer.status_code == 200, answer.text


def completed(service: Service, data: bytes = DATA, **more: Any) -> str:
    session = begin(service, data, **more)
    send(service, session, data)
    return service.parts.complete(session.id, None).id


def inspect(service: Service, item: str, act: Callable[..., Result] | None = None) -> tuple[str, Any]:
    return supervise(service, item, act or (lambda *_: Result(status="ok", value={"format": "pt2"})))


def unfinished(service: Service) -> list[str]:
    return [begun.key for begun in service.multipart.unfinished()]


def test_the_whole_way(service: Service) -> None:
    session = begin(service)
    assert (session.state, session.parts, session.received, session.part_size) == ("open", 3, (), MIN_PART_BYTES)
    with pytest.raises(IncompleteUpload) as caught:
        service.parts.complete(session.id, None)
    assert caught.value.extensions["missing"] == [1, 2, 3]
    send(service, session, numbers=[3, 1])
    found = service.parts.get(session.id)
    assert found is not None
    assert found.received == (1, 3)
    urls, _ = service.parts.urls(session.id, None)
    assert [(part.number, part.size) for part in urls] == [(2, MIN_PART_BYTES)]
    send(service, session)
    assert service.get_upload(session.id) is None
    view = service.parts.complete(session.id, None)
    assert (view.id, view.state, view.size, view.filename) == (session.id, "inspecting", len(DATA), "net.pt2")
    assert service.parts.complete(session.id, sha256(DATA).upper()) == view, "it may be repeated"
    assert inspect(service, view.id)[0] == "succeed"
    found = service.get_upload(view.id)
    assert found is not None
    assert (found.state, found.sha256) == ("ready", sha256(DATA))
    assert read(service, view.id) == DATA
    shown = service.parts.get(view.id)
    assert shown is not None
    assert (shown.state, shown.received, shown.part_size) == ("complete", (1, 2, 3), MIN_PART_BYTES)
    assert unfinished(service) == []
    service.delete_upload(view.id)
    assert everything(service) == []


def test_what_a_worker_gets_is_what_was_sent(service: Service) -> None:
    item = completed(service)
    _, runner = inspect(service, item)
    task, files, arguments = runner.calls[0]
    assert (task, files, arguments["sha256"]) == ("inspect_model", {"model": DATA}, {"model": sha256(DATA)})


def test_bytes_that_are_not_what_was_announced_are_rejected_and_go(service: Service) -> None:
    item = completed(service, digest=sha256(b"other"))
    how, runner = inspect(service, item)
    assert (how, runner.calls) == ("fail", [])
    view = service.get_upload(item)
    assert view is not None
    assert view.state == "rejected"
    assert view.problem is not None
    assert view.problem["type"].endswith("digest-mismatch")
    assert (view.problem["expected"], view.problem["received"]) == (sha256(b"other"), sha256(DATA))
    assert stored_bytes(service) == []
    assert service.bucket.get_json(layout.pointer("default", sha256(b"other"))) is None
    service.delete_upload(item)
    assert everything(service) == []


def test_nobody_is_given_bytes_that_nobody_has_compared(service: Service) -> None:
    """An announced digest is a claim: until it is checked, other uploads of that digest bring their own bytes."""
    liar = completed(service, b"evil", digest=sha256(b"good"))
    honest = upload(service, b"good", expected_sha256=sha256(b"good"))
    assert read(service, honest) == b"good"
    inspect(service, liar)
    assert read(service, honest) == b"good"
    assert len(stored_bytes(service)) == 1


def test_a_job_does_not_trust_the_digest_either(service: Service) -> None:
    model = completed(service, b"evil", digest=sha256(b"good"))
    job = queued(service, model, upload(service, b"data", "dataset"))
    how, runner = supervise(service, job, lambda *_: Result(status="ok", value={}))
    assert (how, runner.calls) == ("fail", [])
    view = service.get_job(job)
    assert view is not None
    assert view.error is not None
    assert view.error["type"].endswith("digest-mismatch")


@pytest.mark.parametrize("verdict", ["ok", "failed"])
def test_the_same_bytes_are_kept_once_however_they_came(service: Service, verdict: str) -> None:
    known = upload(service, DATA)
    item = completed(service)
    assert len(stored_bytes(service)) == 2
    inspect(service, item, lambda *_: Result(status=verdict, value={}, problem={"detail": "no"}))
    assert len(stored_bytes(service)) == 1
    assert read(service, item) == DATA
    service.delete_upload(known)
    assert read(service, item) == DATA
    third = upload(service, DATA, expected_sha256=sha256(DATA))
    assert len(stored_bytes(service)) == 1
    service.delete_upload(item)
    service.delete_upload(third)
    assert everything(service) == []


def test_bytes_sent_in_parts_are_found_by_their_digest(service: Service) -> None:
    item = completed(service)
    inspect(service, item)
    again = upload(service, DATA)
    assert len(stored_bytes(service)) == 1
    service.delete_upload(item)
    assert read(service, again) == DATA


def test_the_digest_may_come_last(service: Service) -> None:
    session = service.parts.create("mask", filename=None, size=5, sha256=None, part_size=None)
    send(service, session, b"bytes")
    with pytest.raises(InputError):
        service.parts.complete(session.id, None)
    assert service.parts.complete(session.id, sha256(b"bytes")).sha256 == sha256(b"bytes")
    with pytest.raises(Conflict):
        service.parts.complete(session.id, sha256(b"other"))


def test_parts_that_are_not_what_was_agreed(service: Service) -> None:
    session = begin(service)
    send(service, session)
    # By itself: not every store refuses a part whose size is not the one that was signed.
    blob = service.bucket.get_json(layout.session("default", session.id))
    assert blob is not None
    service.bucket.client.upload_part(
        Bucket=service.bucket.name, Key=blob["blob"], UploadId=blob["multipart"], PartNumber=2, Body=b"short"
    )
    found = service.parts.get(session.id)
    assert found is not None
    assert found.received == (1, 3)
    with pytest.raises(IncompleteUpload) as caught:
        service.parts.complete(session.id, None)
    assert caught.value.extensions["missing"] == [2]
    send(service, session)
    item = service.parts.complete(session.id, None).id
    assert read(service, item) == DATA


def test_urls_are_good_for_one_part_of_one_upload(service: Service, server: str) -> None:
    session = begin(service)
    (first,), until = service.parts.urls(session.id, [1])
    query = parse_qs(urlsplit(first.url).query)
    assert 0 < until.timestamp() - time.time() <= service.settings.presigned_seconds
    assert int(query["X-Amz-Expires"][0]) <= service.settings.presigned_seconds
    assert "content-length" in query["X-Amz-SignedHeaders"][0]
    data = DATA[: first.size]
    if server != "moto":  # which does not look at signatures
        other = first.url.replace("partNumber=1", "partNumber=2")
        assert httpx.put(other, content=data, timeout=30).status_code == 403
        assert httpx.put(first.url, content=data[:-1], timeout=30).status_code == 403, "another size"
    send(service, session)
    service.parts.complete(session.id, None)
    assert httpx.put(first.url, content=bytes(first.size), timeout=30).status_code >= 400
    assert read(service, session.id) == DATA, "what is complete does not change any more"
    assert first.url not in repr(first)


def test_a_public_endpoint_is_what_clients_are_sent_to(service: Service) -> None:
    public = Service(service.settings.model_copy(update={"s3_public_endpoint": "https://files.example:9443"}))
    try:
        session = begin(public)
        (part,), _ = public.parts.urls(session.id, [1])
        assert part.url.startswith(f"https://files.example:9443/{service.bucket.name}/blobs/default/")
        public.parts.abort(session.id)
    finally:
        public.close()


def test_limits(service: Service) -> None:
    tight = Service(service.settings.model_copy(update={"max_parts": 3, "max_open_uploads": 2}))
    try:
        with pytest.raises(TooLarge):
            tight.parts.create("model", filename=None, size=40 * 2**20 + 1, sha256=None, part_size=None)
        for part_size in (MIN_PART_BYTES - 1, 5 * 2**30 + 1):
            with pytest.raises(InputError):
                begin(tight, part_size=part_size)
        with pytest.raises(InputError, match="Parts of this size"):
            begin(tight, bytes(4 * MIN_PART_BYTES))
        session = begin(tight, bytes(4 * MIN_PART_BYTES), part_size=None)
        assert session.parts <= 3
        for numbers in ([0], [session.parts + 1]):
            with pytest.raises(InputError):
                tight.parts.urls(session.id, numbers)
        begin(tight)
        with pytest.raises(QuotaExceeded):
            begin(tight)
        begin(tight.of("red"))
        tight.parts.abort(session.id)
        begin(tight)
    finally:
        tight.close()


def test_quotas_hold(service: Service) -> None:
    full = Service(service.settings.model_copy(update={"quota_stored_bytes": len(DATA) + 10}))
    try:
        session = begin(full)
        upload(full, b"bytes of others")
        with pytest.raises(StorageFull):
            begin(full)
        send(full, session)
        with pytest.raises(StorageFull):
            full.parts.complete(session.id, None)
        full.delete_upload(uploads(full)[0])
        assert full.parts.complete(session.id, None).id == session.id
    finally:
        full.close()


def test_another_tenants_upload_is_not_there(service: Service) -> None:
    red, blue = service.of("red"), service.of("blue")
    session = begin(red)
    send(red, session)
    for other in (blue, service):
        assert other.parts.get(session.id) is None
        for call in (
            lambda view=other: view.parts.urls(session.id, None),
            lambda view=other: view.parts.complete(session.id, None),
            lambda view=other: view.parts.abort(session.id),
        ):
            with pytest.raises(NotFound):
                call()
    item = red.parts.complete(session.id, None).id
    assert blue.parts.get(item) is None
    inspect(service, item)
    found = red.get_upload(item)
    assert found is not None
    assert found.state == "ready"
    assert len([key for key in everything(service) if key.startswith("digests/red/")]) == 1


def test_abort(service: Service, without_redis: Service) -> None:
    session = begin(service)
    send(service, session, numbers=[1])
    with pytest.raises(Unavailable):
        without_redis.parts.abort(session.id)
    service.parts.abort(session.id)
    assert (everything(service), unfinished(service)) == ([], [])
    for call in (service.parts.abort, lambda item: service.parts.complete(item, None)):
        with pytest.raises(NotFound):
            call(session.id)
    item = completed(service)
    with pytest.raises(Conflict):
        service.parts.abort(item)
    assert read(service, item) == DATA


def test_what_expires_is_collected(service: Service, hasty: Service) -> None:
    brief = Service(service.settings.model_copy(update={"upload_session_seconds": 1e-3}))
    try:
        late, open_, done = begin(brief), begin(service), completed(service)
        service.multipart.begin(service.uploads.blobs.new())  # by one that died before it wrote its session
        other = service.multipart.begin("another/program")
        with pytest.raises(NotFound):
            brief.parts.complete(late.id, None)
        assert brief.parts.get(late.id) is None
        service.sweep()
        assert len(unfinished(service)) == 3
        swept = hasty.sweep()
        assert (len(swept.sessions), len(swept.multiparts)) == (0, 1)
        assert service.parts.get(late.id) is None
        assert service.parts.get(open_.id) is not None
        send(service, open_)
        service.parts.complete(open_.id, None)
        assert read(service, done) == read(service, open_.id) == DATA
        assert unfinished(service) == ["another/program"]
        service.multipart.abort("another/program", other)
        for item in uploads(service):
            service.delete_upload(item)
        assert everything(service) == []
    finally:
        brief.close()


@pytest.mark.parametrize("server", ["nanio"])
@pytest.mark.parametrize("step", ["create", "complete", "abort", "inspect"])
def test_each_step_may_die_at_every_request(service: Service, hasty: Service, step: str) -> None:
    at, died, data = 0, True, b"bytes"
    while died:
        at, died = at + (3 if step == "inspect" else 1), False  # an inspection takes long, and has many requests
        session, item = None, ""
        if step == "inspect":
            item = completed(service, data)
        elif step != "create":
            session = begin(service, data)
            send(service, session, data)
        with crashing(service, at):
            try:
                if step == "inspect":
                    inspect(service, item)
                elif session is None:
                    begin(service, data)
                elif step == "complete":
                    service.parts.complete(session.id, None)
                else:
                    service.parts.abort(session.id)
            except Crash:
                died = True
        service.clock.redis.flushdb()
        hasty.sweep()
        if step == "complete":
            assert session is not None
            item = service.parts.complete(session.id, None).id  # as a client does that got no answer
        elif step == "abort" and session is not None and service.parts.get(session.id) is not None:
            service.parts.abort(session.id)
        if item:
            hasty.sweep()
            assert read(service, item) == data
        if step == "inspect" and died:
            inspect(service, item)
            assert read(service, item) == data
        for name in uploads(service):
            service.delete_upload(name)
        for key in list(service.bucket.list(layout.SESSIONS)):
            service.parts.abort(key.rpartition("/")[2].removesuffix(".json"))
        hasty.sweep()
        assert (everything(service), unfinished(service)) == ([], [])
    assert at > 4


def test_the_parts_of_a_file_add_up_to_it() -> None:
    for size in (1, MIN_PART_BYTES, MIN_PART_BYTES + 1, 10 * MIN_PART_BYTES - 1):
        part = part_size_for(size, MIN_PART_BYTES, 10_000, 10**12)
        session = Session.model_construct(size=size, part_size=part)
        lengths = [session.length(number) for number in range(1, session.parts + 1)]
        assert sum(lengths) == size
        assert all(0 < length <= part for length in lengths)
        assert set(lengths[:-1]) <= {part}
