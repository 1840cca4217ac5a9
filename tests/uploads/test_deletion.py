"""Deleting jobs, and retention: what is deleted is gone, and nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs import layout
from jobs.errors import Conflict, NotFound, Unavailable
from jobs.service import Service
from tests.jobs.test_supervisor import succeed, supervise
from tests.uploads.states import RECIPE, Crash, crashing, everything, queued, read, stored_bytes, upload, uploads


def ended(service: Service, **more: Any) -> str:
    """A job that succeeded, after an attempt that came to nothing."""
    model, data = upload(service, b"model", filename="net.pt2"), upload(service, b"data", "dataset")
    job = service.create_job(model, data, None, RECIPE, {"team": "x"}, more.pop("key", None))[0].id
    service.bucket.upload(layout.checkpoints(job) + "0" * 32 + ".checkpoint", iter([b"step"]))
    assert supervise(service, job, succeed)[0] == "succeed"
    return job


def left(service: Service) -> list[str]:
    """All keys, but what quotas count: that must outlive the job."""
    return [key for key in everything(service) if not key.startswith("usage/")]


def inputs_of(service: Service, job: str) -> tuple[str, str]:
    view = service.get_job(job)
    assert view is not None
    return view.model, view.calibration


@pytest.mark.parametrize("tenant", ["default", "red"])
def test_nothing_of_a_deleted_job_is_left(service: Service, tenant: str) -> None:
    mine = service.of(tenant)
    hook = mine.webhooks.create("https://203.0.113.1.invalid/", ["job.succeeded"], {})
    job = ended(mine, key="nightly")
    service.outbox.tell_ended()
    service.reconcile()
    assert any(job.removeprefix("job_") in key for key in everything(service) if not key.startswith("jobs/"))
    used = inputs_of(mine, job)
    mine.delete_job(job)
    for call in (mine.delete_job, lambda job: mine.artifact(job, "model")):
        with pytest.raises(NotFound):
            call(job)
    assert mine.get_job(job) is None
    assert mine.list_jobs()[0] == []
    assert [key for key in left(service) if job.removeprefix("job_") in key] == []
    mine.webhooks.delete(hook.id)
    for item in used:
        mine.delete_upload(item)
    assert left(service) == []
    assert [key for key in service.clock.redis.keys("*") if job in key and ":deleted" not in key] == []


def test_who_may_delete_what(service: Service, without_redis: Service) -> None:
    job = ended(service)
    before = everything(service)
    with pytest.raises(NotFound):
        service.of("red").delete_job(job)
    with pytest.raises(NotFound):
        service.delete_job("job_" + "0" * 26)
    with pytest.raises(Unavailable):
        without_redis.delete_job(job)
    assert everything(service) == before
    open_ = queued(service, *inputs_of(service, job))
    with pytest.raises(Conflict):
        service.delete_job(open_)
    service.cancel_job(open_)
    service.delete_job(open_)
    assert [key for key in everything(service) if open_ in key] == []


def test_a_deleted_jobs_key_makes_a_new_job(service: Service) -> None:
    job = ended(service, key="nightly")
    arguments: Any = (*inputs_of(service, job), None, RECIPE, {"team": "x"}, "nightly")
    assert service.create_job(*arguments)[0].id == job
    service.delete_job(job)
    again, created = service.create_job(*arguments)
    assert created
    assert again.id != job


def test_a_job_of_version_01_is_deleted_with_its_key(service: Service) -> None:
    job, other = ended(service, key="old"), ended(service, key="other")
    request = service.bucket.get_json(layout.request(job))
    assert request is not None
    service.bucket.put_json(
        layout.request(job), {name: request[name] for name in request if name not in {"inputs", "idempotency"}}
    )
    service.ledger.recall.forget(job)
    service.delete_job(job)
    keys = everything(service)
    assert not [key for key in keys if job in key]
    assert [key for key in keys if key.startswith("idempotency/")] == [layout.idempotency("other")]
    assert service.get_job(other) is not None


def test_a_job_makes_sense_without_its_uploads(service: Service) -> None:
    job = ended(service)
    model, data = inputs_of(service, job)
    service.delete_upload(model)
    service.delete_upload(data)
    assert stored_bytes(service) == []
    view = service.get_job(job)
    assert view is not None
    assert (view.state, view.model) == ("succeeded", model)
    assert (view.inputs["model"].filename, view.inputs["model"].size) == ("net.pt2", 5)
    assert set(view.inputs) == {"model", "calibration"}
    assert b"".join(service.bucket.open(service.artifact(job, "model").key)[1]) == b"pruned"


@pytest.mark.parametrize("server", ["nanio"])
def test_a_deletion_of_a_job_may_die_at_every_request(service: Service, hasty: Service) -> None:
    at, died = 0, True
    while died:
        at, died = at + 3, False  # every third one: there are many, and most are alike
        job = ended(service, key=f"key {at}")
        used = inputs_of(service, job)
        with crashing(service, at):
            try:
                service.delete_job(job)
            except Crash:
                died = True
        service.clock.redis.flushdb()
        hasty.reconcile()
        view = hasty.get_job(job)
        if view is not None:
            assert view.state == "succeeded", "it is never taken up again"
            hasty.delete_job(job)
        hasty.sweep()
        assert not [key for key in left(service) if job.removeprefix("job_") in key]
        for item in used:
            service.delete_upload(item)
    assert at > 10


# -- retention ---------------------------------------------------------------------------------------------------------


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the sweeper believe that so much time has gone by."""
    import jobs.sweeper

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(jobs.sweeper, "datetime", Later)


def test_retention(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    red = service.of("red")
    jobs = [ended(service), ended(red)]
    open_ = queued(red, *inputs_of(red, jobs[1]))
    unused = upload(service, b"unused", "mask")
    tidy = Service(service.settings.model_copy(update={"retention_jobs_days": 10, "retention_uploads_days": 20}))
    try:
        for days, kept in ((0, 3), (9, 3), (11, 1), (19, 1)):
            with monkeypatch.context() as patch:
                later(patch, days)
                service.sweep()  # without retention nothing goes
                tidy.sweep()
            assert len(list(service.bucket.children("jobs/"))) == kept, days
            assert len(uploads(service)) == 3
        later(monkeypatch, 21)
        swept = tidy.sweep()
        assert unused in swept.retired
        assert uploads(service) == []
        assert set(uploads(red)) >= set(inputs_of(red, open_)), "an open job uses them"
        assert read(red, inputs_of(red, open_)[0]) == b"model"
        red.cancel_job(open_)
        tidy.sweep()
        assert uploads(red) == []
        later(monkeypatch, 40)
        tidy.sweep()
        assert left(service) == []
        assert everything(service) != []
        later(monkeypatch, 100)
        tidy.sweep()
        assert everything(service) == []
    finally:
        tidy.close()


def test_the_sweeper_leaves_alone_what_is_needed_or_anothers(service: Service, hasty: Service) -> None:
    job = ended(service)
    queued(service, *inputs_of(service, job))
    service.bucket.put_json("another/program.json", {})
    service.bucket.put_json("jobs/notes.txt", {})
    before = everything(service)
    hasty.sweep()
    assert everything(service) == before


def test_the_sweeper_comes_as_often_as_it_should(service: Service) -> None:
    assert service.sweeper.tick().elected
    assert not service.sweeper.tick().elected
    service.clock.redis.flushdb()
    with service.clock.lock("sweep"):
        assert not service.sweep().elected
    assert service.sweeper.tick().elected


# -- downloads past the api --------------------------------------------------------------------------------------------


def test_a_presigned_download(service: Service, server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    service.bucket.upload_file("file", tmp_path / "file")
    wanted = {"disposition": 'attachment; filename="net-pruned.pt2"', "content_type": "application/octet-stream"}
    url = service.multipart.download_url("file", **wanted, seconds=60)
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    if server != "nanio":  # which answers without what was asked for
        assert answer.headers["content-disposition"] == wanted["disposition"]
    assert httpx.get(url, headers={"Range": "bytes=2-4"}).content == b"234"
    head = httpx.head(service.multipart.download_url("file", **wanted, seconds=60, head=True))
    assert (head.status_code, head.headers["content-length"]) == (200, "10")
    if server == "nanio":  # moto does not look at signatures
        assert httpx.get(url.replace("/file?", "/other?")).status_code == 403
        assert httpx.put(url, content=b"x").status_code == 403
