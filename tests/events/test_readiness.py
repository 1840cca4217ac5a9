"""Readiness says what is missing, and what to do about it."""

from __future__ import annotations

import httpx
import pytest

from jobs import workers
from jobs.readiness import parts
from jobs.service import Service
from jobs.settings import Settings
from tests.api.live_api import problem
from tests.jobs.cluster import Cluster


@pytest.fixture
def alone(running: Cluster) -> Service:
    url = running.environment["PRUNING_REDIS_URL"][:-1] + "8"
    service = Service(running.settings.model_copy(update={"redis_url": url}))
    service.clock.redis.flushdb()
    return service


def missing(service: Service, **settings: object) -> dict[str, str]:
    changed = service.settings.model_copy(update=settings)
    return {part.name: part.advice or "" for part in parts(changed, service.bucket, service.clock) if not part.ready}


def test_each_queue_needs_a_worker_with_room(alone: Service) -> None:
    assert set(missing(alone)) == {"worker:jobs", "worker:inspections"}
    assert "-Q jobs" in missing(alone)["worker:jobs"]
    workers.report(alone.clock, "one@here", ["jobs", "inspections"], alone.settings.work_dir)
    assert missing(alone) == {}
    full = missing(alone, min_free_bytes=2**60)
    assert set(full) == {"disk:jobs", "disk:inspections"}
    assert "PRUNING_WORK_DIR" in full["disk:jobs"]
    (load, _) = alone.load()
    assert (load.queue, load.workers, load.waiting, load.oldest_at) == ("jobs", 1, 0, None)
    alone.close()


def test_clocks_that_differ_are_told(alone: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    real = workers.time.time
    monkeypatch.setattr(workers.time, "time", lambda: real() - 400)
    workers.report(alone.clock, "one@here", ["jobs", "inspections"], alone.settings.work_dir)
    monkeypatch.undo()
    assert "NTP" in missing(alone)["clocks"]
    alone.close()


def test_a_worker_that_is_silent_is_gone(alone: Service) -> None:
    workers.report(alone.clock, "one@here", ["jobs"], alone.settings.work_dir)
    assert [worker.name for worker in workers.living(alone.clock)] == ["one@here"]
    late = alone.settings.model_copy(update={"lease_seconds": 1e-9, "heartbeat_seconds": 1e-9})
    alone.clock.settings = late
    assert workers.living(alone.clock) == []
    alone.close()


def test_what_does_not_answer_is_named_with_advice(running: Cluster) -> None:
    nowhere = Service(Settings(redis_url="redis://127.0.0.1:1/0", redis_timeout=0.1, s3_endpoint="http://127.0.0.1:1"))
    told = missing(nowhere)
    assert set(told) == {"bucket", "redis"}
    assert "PRUNING_S3_ENDPOINT" in told["bucket"]
    assert "PRUNING_REDIS_URL" in told["redis"]
    nowhere.close()


def test_the_answer_says_so_in_full(http: httpx.Client, running: Cluster) -> None:
    document = problem(http.get("/readyz"), 503, "unavailable")
    assert not document["checks"]["worker:jobs"]
    assert "celery -A worker.app" in document["parts"]["worker:jobs"]["advice"]
    assert document["parts"]["worker:jobs"]["advice"] in document["advice"]
    running.service.clock.alive(["jobs", "inspections"])
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"] == dict.fromkeys(ready.json()["checks"], True)
