"""What one tenant has, no other sees: in every use case, with Redis, after a wipe, and without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs import layout
from jobs.errors import Conflict, NotFound, Unavailable
from jobs.ids import UPLOAD_KINDS, UploadKind
from jobs.service import Service

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
MASKED = {"select": {"algorithm": "magnitude", "pattern": "mask"}}


@pytest.fixture
def red(service: Service) -> Service:
    return service.of("red")


@pytest.fixture
def blue(service: Service) -> Service:
    return service.of("blue")


@pytest.fixture
def without_redis(service: Service) -> Iterator[Service]:
    down = Service(service.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))
    yield down
    down.close()


def uploaded(service: Service, *kinds: UploadKind) -> dict[UploadKind, str]:
    return {kind: service.create_upload(kind, iter([b"bytes"])).id for kind in kinds or UPLOAD_KINDS}


def submitted(service: Service, **more: Any) -> str:
    own = uploaded(service, "model", "dataset")
    return service.create_job(own["model"], own["dataset"], None, RECIPE, **more)[0].id


def seen(service: Service) -> set[str]:
    """Every id that this tenant's lists show."""
    found = {view.id for view in service.list_jobs()[0]}
    return found.union(*({view.id for view in service.list_uploads(kind)[0]} for kind in UPLOAD_KINDS))


def test_items_of_another_tenant_are_not_there(service: Service, red: Service, blue: Service) -> None:
    own = uploaded(red)
    job = submitted(red)
    assert red.get_job(job) is not None
    assert red.get_upload(own["model"]) is not None
    for other in (blue, service):
        assert other.get_job(job) is None
        assert [other.get_upload(upload) for upload in own.values()] == [None] * 3
        refused: list[Callable[[], object]] = [
            lambda other=other: other.cancel_job(job),  # type: ignore[misc]
            lambda other=other: other.artifact(job, "model"),  # type: ignore[misc]
            *(lambda other=other, upload=upload: other.delete_upload(upload) for upload in own.values()),  # type: ignore[misc]
        ]
        for call in refused:
            with pytest.raises(NotFound):
                call()
    assert service.ledger.cancelled(job) is False
    assert red.get_upload(own["model"]) is not None


@pytest.mark.parametrize("field", ["model", "calibration", "validation", "masks"])
def test_an_upload_of_another_tenant_cannot_be_named(red: Service, blue: Service, field: str) -> None:
    own, foreign = uploaded(red), uploaded(blue)
    kinds: dict[str, UploadKind] = {
        "model": "model",
        "calibration": "dataset",
        "validation": "dataset",
        "masks": "mask",
    }
    body = {name: own[kind] for name, kind in kinds.items()} | {field: foreign[kinds[field]]}
    with pytest.raises(NotFound) as caught:
        red.create_job(body["model"], body["calibration"], body["validation"], MASKED, masks=body["masks"])
    assert caught.value.extensions["field"] == field
    if field != "validation":
        with pytest.raises(NotFound) as caught:
            red.plan(body["model"], MASKED, calibration=body["calibration"], masks=body["masks"])
        assert caught.value.extensions["field"] == field


@pytest.mark.parametrize("state", ["fresh", "complete", "wiped", "rebuilt", "down"])
def test_each_tenant_lists_its_own(
    service: Service, red: Service, blue: Service, without_redis: Service, state: str
) -> None:
    if state == "complete":
        service.reconcile()
        assert service.index.complete()
    made = {view.tenant: {submitted(view)} for view in (service, red, blue)}
    if state in {"wiped", "rebuilt"}:
        service.clock.redis.flushdb()
    if state == "rebuilt":
        service.reconcile()
        assert service.index.complete()
    asked = without_redis if state == "down" else service
    lists = {tenant: seen(asked.of(tenant)) for tenant in made}
    for tenant, items in made.items():
        assert items <= lists[tenant]
        assert len(lists[tenant]) == 3, "a job, its model and its data"
    assert not lists["default"] & lists["red"]
    assert not lists["red"] & lists["blue"]
    assert not lists["blue"] & lists["default"]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("tenant", ["red", "default"])
def test_pages_of_one_tenant_between_anothers_items(service: Service, tenant: str, indexed: bool) -> None:
    if indexed:
        service.reconcile()
    own, other = service.of(tenant), service.of("blue")
    uploads, foreign = (uploaded(view, "model", "dataset") for view in (own, other))
    jobs = []
    for _ in range(3):
        other.create_job(foreign["model"], foreign["dataset"], None, RECIPE)
        jobs.append(own.create_job(uploads["model"], uploads["dataset"], None, RECIPE)[0].id)
    pages, cursor = [], None
    while True:
        page, cursor = own.list_jobs(cursor, 2)
        pages.append([view.id for view in page])
        if cursor is None:
            break
    assert pages == [[jobs[2], jobs[1]], [jobs[0]]]


def test_a_cursor_made_elsewhere_shows_nothing_foreign(red: Service, blue: Service) -> None:
    submitted(red)
    submitted(blue)
    submitted(blue)
    _, cursor = blue.list_jobs(limit=1)
    assert {view.id for view in red.list_jobs(cursor)[0]} <= seen(red)


def test_an_idempotency_key_is_the_tenants_own(service: Service, red: Service, blue: Service) -> None:
    jobs = {submitted(view, idempotency_key="same") for view in (service, red, blue)}
    assert len(jobs) == 3
    own = uploaded(red)
    again = red.create_job(own["model"], own["dataset"], None, RECIPE, idempotency_key="same")[0]
    assert again.id in jobs & seen(red), "uploads count by their bytes"
    other = {"select": {"algorithm": "magnitude", "sparsity": 0.123}}
    with pytest.raises(Conflict) as caught:
        red.create_job(own["model"], own["dataset"], None, other, idempotency_key="same")
    assert caught.value.extensions["job"] in seen(red)


@pytest.mark.parametrize("at", ["marker", "request"])
def test_a_crash_on_the_way_leaves_nothing_to_see(
    service: Service, red: Service, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, before = uploaded(red), None

    def broken(*_: object) -> bool:
        raise Unavailable("gone")

    before = seen(red)
    with monkeypatch.context() as patched:
        patched.setattr(service.bucket, "put_json" if at == "marker" else "write_once", broken)
        with pytest.raises(Unavailable):
            red.create_job(own["model"], own["dataset"], None, RECIPE)
    assert len(list(service.bucket.list(layout.markers("red", "job")))) == (at == "request")
    for _ in range(2):
        assert [seen(view) for view in (red, service)] == [before, set()]
        service.clock.redis.flushdb()
        service.reconcile()
    assert service.index.open("job") == []


def test_what_is_deleted_leaves_no_marker(service: Service, red: Service) -> None:
    own = uploaded(red)
    for upload in own.values():
        red.delete_upload(upload)
    assert list(service.bucket.list(layout.MARKERS)) == []
    assert [key for kind in UPLOAD_KINDS for key in service.bucket.list(layout.folder(kind))] == []


def test_a_cancel_without_redis_keeps_the_owner(without_redis: Service, service: Service) -> None:
    red = without_redis.of("red")
    job = submitted(red)
    red.cancel_job(job)
    # Redis is back: the api that remembers tells it.
    without_redis.reconciler._index, remembered = service.index, dict(without_redis.reconciler._overdue)
    assert remembered[job] == "red"
    without_redis.reconciler._note_overdue()
    assert service.index.newest("job", None, 10) == []
    assert service.index.newest("job", None, 10, "red") == [job]


def test_the_default_tenant_costs_no_further_request(service: Service, red: Service) -> None:
    calls: Counter[str] = Counter()
    service.bucket.client.meta.events.register("before-send.s3", lambda request, **_: calls.update([request.method]))

    def cost(view: Service) -> list[Counter[str]]:
        own = uploaded(view)
        costs = []
        for call in (
            lambda: uploaded(view),
            lambda: view.delete_upload(own["mask"]),
            lambda: view.create_job(own["model"], own["dataset"], None, RECIPE),
            lambda: view.get_upload(own["model"]),
            lambda: view.list_uploads("mask"),
        ):
            calls.clear()
            call()
            costs.append(calls.copy())
        for job in view.list_jobs()[0]:
            view.cancel_job(job.id)  # an open one is read by each deletion
        return costs

    service.reconcile()
    default, other = cost(service), cost(red)
    markers = [{"PUT": 3}, {"DELETE": 1}, {"PUT": 1}, {}, {}]
    assert [more - less for more, less in zip(other, default, strict=True)] == markers
    read, referred = {"GET": 6, "HEAD": 2}, {"PUT": 2}
    assert default[2] == Counter(read) + Counter(referred) + Counter(HEAD=1, PUT=2), "a marker, a request"
    assert not [key for key in service.bucket.list(layout.MARKERS) if not key.startswith(f"{layout.MARKERS}red/")]


@pytest.mark.parametrize("name", ["", "Red", "../x", "a/b", "a" * 64, "-a", "a.json", "é"])
def test_impossible_tenants(service: Service, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a tenant"):
        service.of(name)
