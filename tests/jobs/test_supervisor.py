"""One attempt, with something else in the sandbox's place: what the worker does with every way it can end."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs import layout
from jobs.blobs import bytes_of
from jobs.clock import Clock
from jobs.errors import LevelNeeded, NotFound
from jobs.holder import Holder
from jobs.ids import UPLOAD_KINDS
from jobs.service import Service
from pruning_core.report import Progress
from worker.room import wait_for_room
from worker.sandbox import DISK_FULL, Result
from worker.scratch import scratch, sweep
from worker.supervisor import Supervisor

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
FILES = {"pruned-0": b"pruned", "masks-0.safetensors": b"masks", "compact-0": b"compact", "report.json": b"{}"}


class Runner:
    """A sandbox that does as it is told and remembers what it was asked."""

    def __init__(self, act: Callable[[Path, Callable[[], str | None]], Result]) -> None:
        self.act, self.calls = act, []

    def __call__(self, task: str, folder: Path, arguments: dict[str, Any], *, limits, on_progress, stop) -> Result:
        self.calls.append(
            (task, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}, arguments)
        )
        on_progress(Progress(stage="select", done=1, total=2, fraction=0.5))
        return self.act(folder, stop)


def succeed(folder: Path, _stop: Callable[[], str | None]) -> Result:
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return Result(status="ok", value={"levels": [0.5], "summary": {"sparsity": 0.5}})


def until_stopped(_folder: Path, stop: Callable[[], str | None]) -> Result:
    deadline = time.monotonic() + 10
    while (reason := stop()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return Result(status="stopped", reason=reason)


@pytest.fixture
def job(service: Service) -> str:
    model = service.create_upload("model", iter([b"model"])).id
    data = service.create_upload("dataset", iter([b"data"])).id
    return service.create_job(model, data, data, RECIPE)[0].id


def supervise(
    service: Service, item: str, act: Callable[..., Result], stopping: Callable[[], bool] = lambda: False
) -> tuple[str, Runner]:
    runner = Runner(act)
    return Supervisor(service, worker="w", stopping=stopping, runner=runner).supervise(item), runner


def test_success(service: Service, job: str) -> None:
    how, runner = supervise(service, job, succeed)
    assert how == "succeed"
    task, files, arguments = runner.calls[0]
    assert (task, files) == ("prune", {"model": b"model", "calibration": b"data", "validation": b"data"})
    assert arguments["recipe"] == RECIPE
    assert set(arguments["sha256"]) == set(files)
    view = service.get_job(job)
    assert (view.state, view.result, view.attempt) == ("succeeded", {"sparsity": 0.5}, 1)
    names = {"model": "pruned-0", "masks": "masks-0.safetensors", "compact": "compact-0", "report": "report.json"}
    for name, filename in names.items():
        stored = service.artifact(job, name)
        assert b"".join(service.bucket.open(stored.key)[1]) == FILES[filename]
        assert stored.sha256 is not None
    assert service.clock.leased([job]) == set()
    assert list(service.settings.work_dir.iterdir()) == []
    assert supervise(service, job, succeed)[0] == "settled"


@pytest.mark.parametrize(("kind", "task"), [(kind, f"inspect_{kind}") for kind in UPLOAD_KINDS])
def test_inspection(service: Service, kind: str, task: str) -> None:
    for result, state in (
        (Result(status="ok", value={"format": "pt2"}), "ready"),
        (Result(status="failed", problem={"detail": "broken"}), "rejected"),
    ):
        upload = service.create_upload(kind, iter([b"bytes"])).id
        _, runner = supervise(service, upload, lambda *_, result=result: result)
        assert runner.calls[0][:2] == (task, {kind: b"bytes"})
        view = service.get_upload(upload)
        assert (view.state, view.inspection, view.problem) == (state, result.value, result.problem)


def test_every_level_is_stored(service: Service, job: str) -> None:
    def several(folder: Path, _stop: Callable[[], str | None]) -> Result:
        for i in range(3):
            (folder / f"pruned-{i}").write_bytes(b"model %d" % i)
            (folder / f"masks-{i}.safetensors").write_bytes(b"masks %d" % i)
            (folder / f"compact-{i}").write_bytes(b"compact %d" % i)
        (folder / "report.json").write_bytes(b"{}")
        return Result(status="ok", value={"levels": [0.5, 0.7, 0.9], "summary": {}})

    assert supervise(service, job, several)[0] == "succeed"
    for i, sparsity in enumerate((0.5, 0.7, 0.9)):
        for name in ("model", "masks", "compact"):
            stored = service.artifact(job, name, sparsity)
            assert b"".join(service.bucket.open(stored.key)[1]) == b"%s %d" % (name.encode(), i)
    with pytest.raises(LevelNeeded) as caught:
        service.artifact(job, "model")
    assert (caught.value.status, caught.value.expected) == (400, [0.5, 0.7, 0.9])
    with pytest.raises(NotFound) as unknown:
        service.artifact(job, "masks", 0.8)
    assert unknown.value.expected == [0.5, 0.7, 0.9]
    assert service.artifact(job, "report").size == 2


def test_failure_is_not_tried_again(service: Service, job: str) -> None:
    problem = {"detail": "sparsity too high for this model"}
    assert supervise(service, job, lambda *_: Result(status="failed", problem=problem))[0] == "fail"
    view = service.get_job(job)
    assert (view.state, view.error, view.attempt) == ("failed", problem, 1)


def test_death_is_tried_again_until_the_cap(service: Service, job: str) -> None:
    def died(*_: Any) -> Result:
        return Result(status="died", problem={"detail": "signal 9"})

    for attempt in (1, 2):
        service.clock.redis.delete("pruning:celery:jobs")
        assert supervise(service, job, died)[0] == "died"
        view = service.get_job(job)
        assert (view.state, view.attempt) == ("queued", attempt)
        assert service.queue.waiting("jobs") == {job}, "it is enqueued at once"
    assert supervise(service, job, died)[0] == "died"
    view = service.get_job(job)
    assert (view.state, view.attempt) == ("failed", 3)
    assert [attempt["seen"] for attempt in view.error["attempts"]] == ["signal 9"] * 3


def test_defect_of_the_worker_counts_as_a_lost_attempt(service: Service, job: str) -> None:
    def broken(*_: Any) -> Result:
        raise ZeroDivisionError

    assert supervise(service, job, broken)[0] == "died"
    assert "ZeroDivisionError" in service.get_job(job).attempts[0].problem["detail"]


@pytest.mark.parametrize("where", ["in the sandbox", "in the worker"])
def test_a_full_disk_is_not_the_jobs_fault(service: Service, job: str, where: str, monkeypatch: Any) -> None:
    def full(*_: Any) -> Result:
        if where == "in the worker":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return Result(status="stopped", reason=DISK_FULL)

    waited: list[int] = []
    monkeypatch.setattr("worker.supervisor.wait_for_room", lambda _folder, free, _stopping: waited.append(free))
    for attempt in range(1, 11):
        service.clock.redis.delete("pruning:celery:jobs")
        assert supervise(service, job, full)[0] == "disk-full"
        assert service.queue.waiting("jobs") == {job}, "another worker may have the room"
        assert service.clock.leased([job]) == set()
        view = service.get_job(job)
        assert (view.state, view.attempt, view.attempts[-1].released) == ("queued", attempt, "disk-full")
    assert waited == [service.settings.min_free_bytes] * 10, "this worker takes nothing up before it has room"
    # In the end it may well be this job that fills the disk.
    for _ in range(3):
        assert supervise(service, job, full)[0] == "disk-full"
    assert supervise(service, job, succeed)[0] == "settled"
    view = service.get_job(job)
    assert (view.state, len(view.error["attempts"])) == ("failed", 3)
    assert "disk of the worker was full" in view.error["detail"]


def test_a_worker_waits_for_room(tmp_path: Path) -> None:
    began = time.monotonic()
    wait_for_room(tmp_path, 1, lambda: False)
    assert time.monotonic() - began >= 2, "not in a loop"
    stop_at = time.monotonic() + 3
    wait_for_room(tmp_path, 2**62, lambda: time.monotonic() > stop_at)
    assert time.monotonic() > stop_at


def test_links_in_the_folder_are_not_published(service: Service, job: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")

    def hostile(folder: Path, stop: Callable[[], str | None]) -> Result:
        result = succeed(folder, stop)
        (folder / "pruned-0").unlink()
        (folder / "pruned-0").symlink_to(tmp_path / "secret")
        return result

    assert supervise(service, job, hostile)[0] == "died"
    assert service.get_job(job).state == "queued"


@pytest.mark.parametrize("role", ["model", "calibration"])
def test_rejected_input_fails_the_job(service: Service, job: str, role: str) -> None:
    upload = getattr(service.get_job(job), role)
    supervise(service, upload, lambda *_: Result(status="failed", problem={"detail": "hostile"}))
    how, runner = supervise(service, job, succeed)
    assert (how, runner.calls) == ("fail", [])
    view = service.get_job(job)
    assert view.state == "failed"
    assert view.error["field"] == role
    assert view.error["problem"] == {"detail": "hostile"}


def test_deleted_input_fails_the_job(service: Service, job: str) -> None:
    model = service.get_job(job).model
    blob = bytes_of(service.ledger.read(model))
    service.bucket.delete_prefix(layout.prefix(model))
    service.bucket.delete(blob)
    assert supervise(service, job, succeed)[0] == "fail"
    assert service.get_job(job).error["type"].endswith("not-found")


def test_damaged_upload_is_noticed(service: Service, job: str) -> None:
    model = service.get_job(job).model
    service.bucket.upload(bytes_of(service.ledger.read(model)), iter([b"other"]))
    how, runner = supervise(service, job, succeed)
    assert (how, runner.calls) == ("died", [])
    assert service.get_job(job).attempts[0].problem["type"].endswith("digest-mismatch")


def test_duplicate_leaves_at_once(service: Service, job: str) -> None:
    token = service.clock.claim(job)
    how, runner = supervise(service, job, succeed)
    assert (how, runner.calls) == ("duplicate", [])
    assert token is not None
    assert service.clock.renew(job, token) == "held"


def test_shutdown_hands_the_job_back(service: Service, job: str) -> None:
    service.clock.redis.delete("pruning:celery:jobs")
    started = time.monotonic()
    how, _ = supervise(service, job, until_stopped, stopping=lambda: time.monotonic() > started + 0.5)
    assert how == "released"
    view = service.get_job(job)
    assert (view.state, view.attempts[0].released) == ("queued", "shutdown")
    assert service.queue.waiting("jobs") == {job}
    assert supervise(service, job, succeed)[0] == "succeed"


def test_cancel_of_a_running_job(service: Service, job: str) -> None:
    threading.Timer(0.3, service.cancel_job, [job]).start()
    began = time.monotonic()
    assert supervise(service, job, until_stopped)[0] == "cancel"
    assert time.monotonic() - began < 3
    assert service.get_job(job).state == "cancelled"


def test_cancel_whose_flag_was_wiped(service: Service, job: str) -> None:
    def wiped_after_cancel(folder: Path, stop: Callable[[], str | None]) -> Result:
        service.cancel_job(job)
        service.clock.redis.flushdb()
        return until_stopped(folder, stop)

    assert supervise(service, job, wiped_after_cancel)[0] == "cancel"


def test_another_holder_supersedes(service: Service, job: str) -> None:
    def usurped(folder: Path, stop: Callable[[], str | None]) -> Result:
        service.clock.redis.flushdb()
        while service.clock.claim(job) is None:  # the holder may have been quicker to take it again
            service.clock.redis.flushdb()
        return until_stopped(folder, stop)

    assert supervise(service, job, usurped)[0] == "released"
    assert service.get_job(job).attempts[0].released == "lost"


def test_outage_of_redis_does_not_stop_the_work(service: Service, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis does not answer until after the job is done; when it is back, the outcome is published."""
    pool = service.clock.redis.connection_pool
    connect, down = pool.get_connection, threading.Event()

    def get_connection(*args: Any, **kwargs: Any) -> Any:
        if down.is_set():
            raise redis.ConnectionError("refused")
        return connect(*args, **kwargs)

    monkeypatch.setattr(pool, "get_connection", get_connection)

    def outage(folder: Path, stop: Callable[[], str | None]) -> Result:
        down.set()
        threading.Timer(2, down.clear).start()
        time.sleep(1)
        assert stop() is None
        return succeed(folder, stop)

    began = time.monotonic()
    assert supervise(service, job, outage)[0] == "succeed"
    assert time.monotonic() - began > 1.5
    assert service.get_job(job).state == "succeeded"


def test_progress_is_seen(service: Service, job: str) -> None:
    seen = []

    def slowly(folder: Path, stop: Callable[[], str | None]) -> Result:
        time.sleep(0.6)
        seen.append(service.get_job(job))
        return succeed(folder, stop)

    supervise(service, job, slowly)
    view = seen[0]
    assert (view.state, view.stage, view.progress, view.queue_position) == ("running", "select", 0.5, None)
    assert view.eta_seconds == pytest.approx(0.6, abs=0.6)


def test_holder_keeps_the_lease(service: Service, job: str) -> None:
    quick = service.settings.model_copy(update={"lease_seconds": 0.5, "heartbeat_seconds": 0.1})
    service.ledger.clock, service.ledger.settings = Clock(quick), quick
    token = service.ledger.clock.claim(job)
    assert token is not None
    with Holder(service.ledger, job, token) as holder:
        time.sleep(1.2)
        assert service.clock.leased([job]) == {job}
        assert holder.reason is None
    assert service.clock.leased([job]) == set()


def test_scratch_is_removed(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert sweep(tmp_path) == 0, "a folder in use stays"
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_dead_processes_is_swept(tmp_path: Path) -> None:
    (tmp_path / "attempt-dead").mkdir()
    (tmp_path / "attempt-dead" / "model").write_text("x")
    (tmp_path / "attempt-live").mkdir()
    (tmp_path / "other").mkdir()
    handle = os.open(tmp_path / "attempt-live", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert sweep(tmp_path) == 1
    finally:
        os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt-live", "other"]
