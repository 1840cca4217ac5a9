"""Finished steps on their way to the bucket and back: what is carried, what is left out, what an outage costs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from jobs import layout
from jobs.errors import NotFound, Unavailable
from jobs.service import Service
from pruning_core.algorithms import FolderCheckpoints, Saved
from tests.jobs.cluster import eventually
from tests.jobs.test_supervisor import job, succeed, supervise, until_stopped
from worker.courier import Courier
from worker.sandbox import Result

__all__ = ["job"]

NAMES = [f"{n:032x}.checkpoint" for n in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def make(service: Service, job: str, folder: Path) -> Callable[..., Courier]:
    def courier(max_bytes: int = 1000, may_carry: Callable[[], bool] = lambda: True) -> Courier:
        return Courier(service.bucket, job, folder, max_bytes=max_bytes, may_carry=may_carry)

    return courier


@contextmanager
def running(courier: Courier, *, last_pass: bool = True) -> Iterator[None]:
    courier.start()
    try:
        yield
    finally:
        courier.stop(last_pass=last_pass, patience=10)


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / "beside").write_bytes(data)
    (folder / "beside").rename(folder / name)


def kept(service: Service, job: str) -> dict[str, bytes]:
    prefix = layout.checkpoints(job)
    keys = list(service.bucket.list(prefix))
    found = {}
    for key in keys:
        # A server may list a file it is still writing (nanio does); only what can be read is there.
        with suppress(NotFound):
            found[key.removeprefix(prefix)] = b"".join(service.bucket.open(key)[1])
    return found


def test_complete_steps_are_carried_as_they_appear(
    service: Service, job: str, folder: Path, make: Callable[..., Courier], tmp_path: Path
) -> None:
    with running(make()):
        put(folder, NAMES[0], b"one")
        (folder / "half.part").write_bytes(b"half")
        (folder / "..checkpoint").write_bytes(b"name")
        (folder / NAMES[5]).symlink_to(tmp_path / "secret")
        (folder / NAMES[6]).mkdir()
        os.mkfifo(folder / NAMES[7])
        eventually(lambda: kept(service, job) == {NAMES[0]: b"one"}, 10, "the first step is carried")
        put(folder, NAMES[1], b"two")
        put(folder, NAMES[0], b"another one")
        eventually(lambda: kept(service, job) == {NAMES[0]: b"another one", NAMES[1]: b"two"}, 10, "both are")
        put(folder, NAMES[2], b"last")
    assert kept(service, job)[NAMES[2]] == b"last", "also what came in the last moment"


def test_the_name_is_the_cores(tmp_path: Path, service: Service, job: str, make: Callable[..., Courier]) -> None:
    courier = make()
    FolderCheckpoints(tmp_path / "checkpoints", "f").save("chita/stage-1", Saved(facts={"a": 1}))
    with running(courier):
        pass
    assert len(kept(service, job)) == 1


def test_what_was_carried_comes_back(
    service: Service, job: str, folder: Path, tmp_path: Path, make: Callable[..., Courier]
) -> None:
    courier = make()
    for name in NAMES[:3]:
        put(folder, name, name.encode())
    with running(courier):
        pass
    service.bucket.upload(layout.checkpoints(job) + "strange", iter([b"x"]))
    other = Courier(service.bucket, job, tmp_path / "other", max_bytes=1000, may_carry=lambda: True)
    assert other.known() == NAMES[:3]
    assert all(other.fetch(name) for name in NAMES[:3])
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == {
        name: name.encode() for name in NAMES[:3]
    }
    before = {key: service.bucket.head(key) for key in service.bucket.list(layout.checkpoints(job))}
    writer, service.bucket.upload_file = service.bucket.upload_file, None  # type: ignore[assignment, method-assign]
    try:
        with running(other):
            pass  # nothing is carried again
    finally:
        service.bucket.upload_file = writer  # type: ignore[method-assign]
    assert {key: service.bucket.head(key) for key in before} == before


def test_what_cannot_be_trusted_is_left_out(
    service: Service, job: str, folder: Path, make: Callable[..., Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = layout.checkpoints(job) + NAMES[0]
    service.bucket.upload(key, iter([b"bytes"]))
    whole = service.bucket.open

    def damaged(key: str, *span: Any) -> Any:
        stored, chunks = whole(key, *span)
        return stored, iter([b"".join(chunks)[:-1]])

    courier = make(max_bytes=5)
    monkeypatch.setattr(service.bucket, "open", damaged)
    assert not courier.fetch(NAMES[0]), "cut on the way"
    monkeypatch.undo()
    assert not courier.fetch(NAMES[1]), "gone"
    assert list(folder.iterdir()) == []
    assert courier.fetch(NAMES[0])
    service.bucket.upload(layout.checkpoints(job) + NAMES[2], iter([b"x"]))
    assert not courier.fetch(NAMES[2]), "more than there is room for"


def test_more_than_the_limit_is_not_kept(
    service: Service, job: str, folder: Path, make: Callable[..., Courier]
) -> None:
    courier = make(max_bytes=10)
    for name, size in zip(NAMES, (6, 5, 4, 1), strict=False):
        put(folder, name, bytes(size))
    with running(courier):
        pass
    assert {name: len(data) for name, data in kept(service, job).items()} == {NAMES[0]: 6, NAMES[2]: 4}


def test_a_holder_that_lost_the_job_carries_nothing(
    service: Service, job: str, folder: Path, make: Callable[..., Courier]
) -> None:
    courier = make(may_carry=lambda: False)
    put(folder, NAMES[0], b"one")
    with running(courier):
        pass
    assert kept(service, job) == {}


def test_an_outage_of_the_bucket_holds_up_nothing(
    service: Service, job: str, folder: Path, make: Callable[..., Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.courier._PAUSE_SECONDS", 0.1)
    down, upload = threading.Event(), service.bucket.upload_file
    down.set()

    def upload_file(key: str, path: Path, **more: Any) -> Any:
        if down.is_set():
            raise Unavailable("The bucket does not answer.")
        return upload(key, path, **more)

    monkeypatch.setattr(service.bucket, "upload_file", upload_file)
    with running(make()):
        put(folder, NAMES[0], b"one")
        time.sleep(0.8)
        assert kept(service, job) == {}
        down.clear()
        eventually(lambda: kept(service, job) == {NAMES[0]: b"one"}, 10, "it is carried when the bucket is back")

    def hangs(*_: Any, **__: Any) -> Any:
        time.sleep(5)

    monkeypatch.setattr(service.bucket, "upload_file", hangs)
    courier = make()
    courier.start()
    put(folder, NAMES[1], b"two")
    began = time.monotonic()
    courier.stop(last_pass=True, patience=0.5)
    assert time.monotonic() - began < 2, "a bucket that hangs holds up the end no longer than that"


# -- a whole attempt ---------------------------------------------------------------------------------------------------


def test_an_attempt_goes_on_from_the_steps_of_the_one_before(service: Service, job: str) -> None:
    def dies(folder: Path, _stop: Callable[[], str | None]) -> Result:
        put(folder / "checkpoints", NAMES[0], b"one")
        put(folder / "checkpoints", NAMES[1], b"two")
        return Result(status="died", problem={"detail": "signal 9"})

    def stopped(folder: Path, stop: Callable[[], str | None]) -> Result:
        assert {path.name for path in (folder / "checkpoints").iterdir()} == set(NAMES[:2])
        put(folder / "checkpoints", NAMES[2], b"three")
        return until_stopped(folder, stop)

    seen: dict[str, bytes] = {}

    def goes_on(folder: Path, stop: Callable[[], str | None]) -> Result:
        seen.update({path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()})
        return succeed(folder, stop)

    assert supervise(service, job, dies)[0] == "died"
    started = time.monotonic()
    assert supervise(service, job, stopped, stopping=lambda: time.monotonic() > started + 1)[0] == "released"
    assert supervise(service, job, goes_on)[0] == "succeed"
    assert seen == {NAMES[0]: b"one", NAMES[1]: b"two", NAMES[2]: b"three"}
    assert kept(service, job) == {}, "they go when the job has its outcome"


@pytest.mark.parametrize("end", ["fail", "cancel", "exhausted"])
def test_steps_go_with_every_outcome(service: Service, job: str, end: str) -> None:
    def act(folder: Path, stop: Callable[[], str | None]) -> Result:
        put(folder / "checkpoints", NAMES[0], b"one")
        eventually(lambda: kept(service, job), 10, "it is carried")
        if end == "fail":
            return Result(status="failed", problem={"detail": "no"})
        if end == "cancel":
            service.cancel_job(job)
            return until_stopped(folder, stop)
        return Result(status="died", problem={"detail": "signal 9"})

    for _ in range(service.settings.max_attempts if end == "exhausted" else 1):
        supervise(service, job, act)
    view = service.get_job(job)
    assert view is not None
    assert view.state == ("cancelled" if end == "cancel" else "failed")
    assert kept(service, job) == {}


def test_steps_that_an_ended_job_left_are_tidied_up(service: Service, job: str) -> None:
    """A worker that lost the job carries a step just after the outcome; or the worker dies before it tidies up."""
    supervise(service, job, succeed)
    service.bucket.upload(layout.checkpoints(job) + NAMES[0], iter([b"late"]))
    service.clock.redis.flushdb()
    service.reconcile()
    service.clock.redis.delete("pruning:settling")
    assert service.reconcile().settled == [job]
    assert kept(service, job) == {}
    assert service.reconcile().open == 2, "the uploads, which nobody inspected"
    view = service.get_job(job)
    assert view is not None
    assert view.state == "succeeded"
