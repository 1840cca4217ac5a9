"""The use cases, on a real Redis and a real S3; and with Redis wiped or down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobs import layout
from jobs.errors import Conflict, DigestMismatch, NotFound, NotReady, RejectedUpload, TooLarge
from jobs.ids import UploadKind
from jobs.records import JobView
from jobs.service import Service
from jobs.writer import PART_BYTES
from pruning_core.errors import InputError, RecipeError

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}


@pytest.fixture
def uploads(service: Service) -> tuple[str, str]:
    return (
        service.create_upload("model", iter([b"model"]), filename="m.pt2").id,
        service.create_upload("dataset", iter([b"data"])).id,
    )


@pytest.fixture
def redis_down(service: Service) -> Iterator[Service]:
    """The same bucket, seen by an api whose Redis does not answer."""
    down = Service(service.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))
    yield down
    down.close()


def submit(service: Service, uploads: tuple[str, str], **more: Any) -> JobView:
    return service.create_job(*uploads, None, RECIPE, **more)[0]


def end(service: Service, item: str, event: str, **more: Any) -> None:
    """Do what a worker does at the end."""
    token = service.clock.claim(item)
    assert token is not None
    found = service.ledger.resolve(item, token)
    assert found is not None
    attempt = service.ledger.begin(found, token, "test")
    assert service.ledger.publish(found, token, event, attempt=attempt, **more)
    service.clock.release(item, token)


# -- uploads -----------------------------------------------------------------------------------------------------------


def test_upload(service: Service) -> None:
    view = service.create_upload("model", iter([b"ab", b"c"]), filename="m.pt2", format_hint="pt2")
    assert (view.state, view.size, view.filename, view.format_hint) == ("inspecting", 3, "m.pt2", "pt2")
    assert view.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert service.get_upload(view.id) == view
    assert service.queue.waiting("inspections") == {view.id}
    end(service, view.id, "succeed", result={"parameters": 3})
    ready = service.get_upload(view.id)
    assert ready is not None
    assert (ready.state, ready.inspection) == ("ready", {"parameters": 3})


def test_upload_that_fails_leaves_nothing(service: Service) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(PART_BYTES + 1)
        raise ConnectionResetError

    too_large = (bytes(2**20) for _ in range(50))
    for stream, error in ((iter([b""]), InputError), (too_large, TooLarge), (broken(), ConnectionResetError)):
        with pytest.raises(error):
            service.create_upload("dataset", stream)
    with pytest.raises(DigestMismatch):
        service.create_upload("dataset", iter([b"abc"]), expected_sha256="0" * 64)
    assert list(service.bucket.list("datasets/")) == []
    assert service.list_uploads("dataset") == ([], None)


def test_aborted_upload_leaves_nothing(service: Service) -> None:
    pending = service.begin_upload("model")
    pending.write(bytes(PART_BYTES + 1))
    pending.abort()
    assert list(service.bucket.list("models/")) == []


def test_uploads_are_listed_by_kind(service: Service, uploads: tuple[str, str]) -> None:
    assert [view.id for view in service.list_uploads("model")[0]] == [uploads[0]]
    assert [view.id for view in service.list_uploads("dataset")[0]] == [uploads[1]]


def test_uploads_are_found_by_their_bytes(service: Service, redis_down: Service, uploads: tuple[str, str]) -> None:
    same = service.create_upload("model", iter([b"model"]), filename="again.pt2")
    as_data = service.create_upload("dataset", iter([b"model"]))
    submit(service, uploads)  # refers to the bytes too, and is no upload

    def found(seen_by: Service, sha256: str = same.sha256, kind: UploadKind = "model", **more: Any) -> Any:
        views, cursor = seen_by.list_uploads(kind, sha256=sha256, **more)
        return [view.id for view in views], cursor

    for seen_by in (service, redis_down):
        assert found(seen_by) == ([same.id, uploads[0]], None)
        assert found(seen_by, kind="dataset") == ([as_data.id], None)
    page, cursor = found(service, limit=1)
    assert page == [same.id]
    assert found(service, limit=1, cursor=cursor)[0] == [uploads[0]]
    assert found(service, "0" * 64) == found(service.of("other")) == ([], None)
    service.delete_upload(same.id)
    assert found(service) == ([uploads[0]], None)


def test_delete_upload(service: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads)
    with pytest.raises(Conflict) as caught:
        service.delete_upload(uploads[1])
    assert caught.value.extensions == {"job": job.id}
    service.cancel_job(job.id)
    service.delete_upload(uploads[1])
    assert service.get_upload(uploads[1]) is None
    assert service.list_uploads("dataset") == ([], None)
    assert list(service.bucket.list("datasets/")) == []
    with pytest.raises(NotFound):
        service.delete_upload(uploads[1])


MASKED = {"select": {"algorithm": "magnitude", "pattern": "mask"}}


def test_masks_of_a_job(service: Service, uploads: tuple[str, str]) -> None:
    mask = service.create_upload("mask", iter([b"mask"])).id
    assert [view.id for view in service.list_uploads("mask")[0]] == [mask]
    job = service.create_job(*uploads, None, MASKED, masks=mask)[0]
    assert job.masks == mask
    with pytest.raises(Conflict):
        service.delete_upload(mask)
    service.cancel_job(job.id)
    service.delete_upload(mask)
    assert list(service.bucket.list("masks/")) == []


@pytest.mark.parametrize(
    ("recipe", "masks", "error", "words"),
    [
        (MASKED, None, RecipeError, "names none"),
        (RECIPE, "msk_01ARZ3NDEKTSV4RRFFQ69G5FAV", RecipeError, "does not use"),
        (MASKED, "msk_01ARZ3NDEKTSV4RRFFQ69G5FAV", NotFound, "no mask of this id"),
        (MASKED, "mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV", NotFound, "no mask of this id"),
        (MASKED, "../x", NotFound, "no mask of this id"),
    ],
)
def test_masks_that_do_not_belong_to_the_recipe(
    service: Service, uploads: tuple[str, str], recipe: Any, masks: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        service.create_job(*uploads, None, recipe, masks=masks)
    assert service.list_jobs() == ([], None)


def test_rejected_mask(service: Service, uploads: tuple[str, str]) -> None:
    mask = service.create_upload("mask", iter([b"mask"])).id
    end(service, mask, "fail", problem={"detail": "not boolean"})
    with pytest.raises(RejectedUpload, match="masks: the upload was rejected: not boolean"):
        service.create_job(*uploads, None, MASKED, masks=mask)


# -- creating ----------------------------------------------------------------------------------------------------------


def test_create_job(service: Service, uploads: tuple[str, str]) -> None:
    view, created = service.create_job(*uploads, uploads[1], RECIPE, {"team": "vision"})
    assert created
    assert (view.state, view.labels, view.recipe, view.queue_position) == ("queued", {"team": "vision"}, RECIPE, 1)
    assert (view.model, view.calibration, view.validation) == (*uploads, uploads[1])
    assert service.get_job(view.id) == view
    request = service.bucket.get_json(layout.request(view.id))
    assert request is not None
    assert request["recipe"] == RECIPE
    assert request["normalised"]["seed"] == 0
    assert service.queue.waiting("jobs") == {view.id}
    assert submit(service, uploads).queue_position == 2


@pytest.mark.parametrize("field", ["model", "calibration", "validation"])
@pytest.mark.parametrize("wrong", ["mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV", "dst_01ARZ3NDEKTSV4RRFFQ69G5FAV", "../x", 7, ""])
def test_unknown_ids(service: Service, uploads: tuple[str, str], field: str, wrong: Any) -> None:
    body = {"model": uploads[0], "calibration": uploads[1], "validation": uploads[1], field: wrong}
    with pytest.raises(NotFound) as caught:
        service.create_job(body["model"], body["calibration"], body["validation"], RECIPE)
    assert caught.value.extensions["field"] == field
    assert list(service.bucket.list("jobs/")) == []


def test_recipe_and_labels_are_checked(service: Service, uploads: tuple[str, str]) -> None:
    with pytest.raises(RecipeError):
        service.create_job(*uploads, None, {"select": {"algorithm": "guess", "sparsity": 2}})
    for labels in ({"a": 1}, {str(n): "" for n in range(33)}, {"a": "x" * 257}):
        with pytest.raises(InputError):
            service.create_job(*uploads, None, RECIPE, labels)


def test_rejected_upload(service: Service, uploads: tuple[str, str]) -> None:
    problem = {"type": "t", "detail": "it is broken", "advice": "export it again"}
    end(service, uploads[0], "fail", problem=problem)
    view = service.get_upload(uploads[0])
    assert view is not None
    assert (view.state, view.problem) == ("rejected", problem)
    with pytest.raises(RejectedUpload) as caught:
        submit(service, uploads)
    assert caught.value.status == 422
    assert caught.value.problem()["problem"] == problem
    assert "it is broken" in caught.value.detail


# -- idempotency -------------------------------------------------------------------------------------------------------


def test_same_key_same_body(service: Service, uploads: tuple[str, str]) -> None:
    first, created = service.create_job(*uploads, None, RECIPE, {}, "key")
    again, created_again = service.create_job(*uploads, None, RECIPE, {}, "key")
    assert (created, created_again, again.id) == (True, False, first.id)
    assert service.create_job(*uploads, None, RECIPE, {}, "other key")[0].id != first.id


def test_same_key_other_body(service: Service, uploads: tuple[str, str]) -> None:
    first = submit(service, uploads, idempotency_key="key")
    with pytest.raises(Conflict) as caught:
        submit(service, uploads, idempotency_key="key", labels={"a": "b"})
    assert caught.value.extensions == {"job": first.id}


def test_same_key_and_files_that_were_sent_again(service: Service, uploads: tuple[str, str]) -> None:
    first = submit(service, uploads, idempotency_key="key")
    model = service.create_upload("model", iter([b"model"]), filename="another name.pt2").id
    data = service.create_upload("dataset", iter([b"data"])).id
    assert submit(service, (model, data), idempotency_key="key").id == first.id
    others = service.create_upload("dataset", iter([b"other data"])).id
    for changed in ((model, others), (model, "dst_01JD3Z9XB3M8R6N0QSWJ5T7K2P")):
        with pytest.raises(Conflict):
            submit(service, changed, idempotency_key="key")
    with pytest.raises(Conflict):
        service.create_job(model, data, "dst_01JD3Z9XB3M8R6N0QSWJ5T7K2P", RECIPE, {}, "key")


def test_key_outlives_a_wipe_and_its_uploads(service: Service, uploads: tuple[str, str]) -> None:
    first = submit(service, uploads, idempotency_key="key")
    service.clock.redis.flushdb()
    service.cancel_job(first.id)
    service.delete_upload(uploads[0])
    again, created = service.create_job(*uploads, None, RECIPE, {}, "key")
    assert (again.id, again.state, created) == (first.id, "cancelled", False)


def test_crash_between_key_and_job(service: Service, uploads: tuple[str, str]) -> None:
    first = submit(service, uploads, idempotency_key="key")
    service.bucket.delete_prefix(layout.prefix(first.id))
    assert service.get_job(first.id) is None
    again = submit(service, uploads, idempotency_key="key")
    assert again.id == first.id
    assert service.get_job(first.id) is not None


def test_repeated_request_tells_the_workers_of_a_job_they_never_heard_of(
    service: Service, uploads: tuple[str, str]
) -> None:
    job = submit(service, uploads, idempotency_key="key")
    service.clock.redis.flushdb()
    assert submit(service, uploads, idempotency_key="key").id == job.id
    assert service.index.open("job") == [job.id]
    assert service.queue.length("jobs") == 1


def test_attempt_that_is_just_being_written_is_not_yet_one(service: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads)
    # nanio lists the temporary file of a put beside the key it will have.
    service.bucket.put_json(layout.attempts(job.id) + "1/.tmp.0123456789abcdef", {})
    view = service.get_job(job.id)
    assert view is not None
    assert view.state == "queued"
    assert view.attempts == ()


@pytest.mark.parametrize("down", [False, True])
def test_race_of_one_key_makes_one_job(
    service: Service, redis_down: Service, uploads: tuple[str, str], down: bool
) -> None:
    others = [] if down else [Service(service.settings) for _ in range(3)]
    racers = [redis_down] * 4 if down else [service, *others]
    barrier = threading.Barrier(len(racers))

    def post(racer: Service) -> tuple[str, bool]:
        barrier.wait()
        view, created = racer.create_job(*uploads, None, RECIPE, {}, "key")
        return view.id, created

    with ThreadPoolExecutor(len(racers)) as threads:
        answers = list(threads.map(post, racers))
    assert len({job for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert len(list(service.bucket.children("jobs/"))) == 1
    for other in others:
        other.close()


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_impossible_keys(service: Service, uploads: tuple[str, str], key: str) -> None:
    with pytest.raises(InputError):
        submit(service, uploads, idempotency_key=key)


# -- listing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [True, False, None])
def test_pages(service: Service, redis_down: Service, uploads: tuple[str, str], indexed: bool | None) -> None:
    jobs = [submit(service, uploads).id for _ in range(5)]
    if indexed:
        service.reconcile()
        assert service.index.complete()
    asked = redis_down if indexed is None else service
    pages, cursor = [], None
    while True:
        page, cursor = asked.list_jobs(cursor, 2)
        pages.append([view.id for view in page])
        if cursor is None:
            break
    assert pages == [[jobs[4], jobs[3]], [jobs[2], jobs[1]], [jobs[0]]]


def test_page_that_just_fits_has_no_next(service: Service, uploads: tuple[str, str]) -> None:
    for _ in range(2):
        submit(service, uploads)
    page, cursor = service.list_jobs(limit=2)
    assert (len(page), cursor) == (2, None)


def test_filters(service: Service, uploads: tuple[str, str]) -> None:
    service.reconcile()
    jobs = [submit(service, uploads, labels={"n": str(n % 2)}).id for n in range(4)]
    service.cancel_job(jobs[1])

    def found(**filters: Any) -> list[str]:
        return [view.id for view in service.list_jobs(**filters)[0]]

    for _ in range(2):  # the second time from the noted summaries
        assert found(state="cancelled") == [jobs[1]]
        assert found(state="queued") == [jobs[3], jobs[2], jobs[0]]
        assert found(label=("n", "1")) == [jobs[3], jobs[1]]
        assert found(label=("n", "1"), state="queued") == [jobs[3]]
        assert found(label=("m", "1")) == []


@pytest.mark.parametrize("cursor", ["", "x", "é", "bWRsXzAxQVJaM05ERUtUU1Y0UlJGRlE2OUc1RkFW"])
def test_cursors_are_checked(service: Service, cursor: str) -> None:
    with pytest.raises(InputError):
        service.list_jobs(cursor)


@pytest.mark.parametrize("limit", [0, 201])
def test_limits_are_checked(service: Service, limit: int) -> None:
    with pytest.raises(InputError):
        service.list_jobs(limit=limit)


# -- cancelling and results --------------------------------------------------------------------------------------------


def test_cancel(service: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads).id
    view = service.cancel_job(job)
    assert (view.state, view.queue_position) == ("cancelled", None)
    assert view.ended_at is not None
    assert service.cancel_job(job) == view
    with pytest.raises(NotFound):
        service.cancel_job("job_01ARZ3NDEKTSV4RRFFQ69G5FAV")


def test_cancel_of_an_ended_job(service: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads).id
    end(service, job, "fail", problem={"detail": "no"})
    with pytest.raises(Conflict):
        service.cancel_job(job)
    assert service.get_job(job).state == "failed"


def test_cancel_while_redis_is_down(service: Service, redis_down: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads).id
    assert redis_down.cancel_job(job).state == "queued"
    # The api that took the promise keeps it once its Redis is back, though no worker is alive.
    service.reconcile()
    service.clock.redis.delete("pruning:settling")
    service.reconciler.remember(job)
    assert service.reconcile().settled == [job]
    view = service.get_job(job)
    assert view is not None
    assert view.state == "cancelled"


def test_artifacts(service: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads).id
    with pytest.raises(NotReady) as caught:
        service.artifact(job, "model")
    assert caught.value.status == 409
    stored = service.bucket.upload(layout.artifact(job, 1, "token", "pruned"), iter([b"bytes"]))
    artifact = {"key": stored.key, "size": stored.size, "sha256": stored.sha256}
    artifacts = {"report": artifact, "levels": [{"sparsity": 0.5, "model": artifact, "masks": artifact}]}
    end(service, job, "succeed", result={"sparsity": 0.5}, artifacts=artifacts)
    assert service.artifact(job, "model") == service.artifact(job, "model", 0.5) == service.bucket.head(stored.key)
    view = service.get_job(job)
    assert view is not None
    assert (view.state, view.progress, view.result, view.attempt) == ("succeeded", 1.0, {"sparsity": 0.5}, 1)
    with pytest.raises(NotFound):
        service.artifact("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "model")


def test_artifacts_of_a_job_of_version_0_1(service: Service, uploads: tuple[str, str]) -> None:
    job = submit(service, uploads).id
    stored = service.bucket.upload(layout.artifact(job, 1, "token", "pruned"), iter([b"bytes"]))
    artifact = {"key": stored.key, "size": stored.size, "sha256": stored.sha256}
    end(service, job, "succeed", artifacts=dict.fromkeys(("model", "masks", "report"), artifact))
    assert service.artifact(job, "model").key == service.artifact(job, "report").key == stored.key


# -- without Redis -----------------------------------------------------------------------------------------------------


def test_everything_is_answered_without_redis(service: Service, redis_down: Service, uploads: tuple[str, str]) -> None:
    view = submit(redis_down, uploads)
    assert view.state == "queued"
    assert redis_down.get_job(view.id) == view
    assert redis_down.get_upload(uploads[0]) is not None
    assert [v.id for v in redis_down.list_jobs(state="queued")[0]] == [view.id]
    assert redis_down.create_upload("dataset", iter([b"x"])).state == "inspecting"
    assert {part.name: part.ready for part in redis_down.ready()} == {"bucket": True, "redis": False}
    assert not redis_down.reconcile().elected


def test_readiness(service: Service) -> None:
    def missing() -> list[str]:
        return [part.name for part in service.ready() if not part.ready]

    assert missing() == ["worker:jobs", "worker:inspections"]
    service.clock.alive(["jobs"])
    assert missing() == ["worker:inspections"]
    service.clock.alive(["inspections"])
    assert missing() == []
