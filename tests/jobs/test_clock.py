"""Leases, locks and progress on a real Redis, also one that forgets."""

from __future__ import annotations

import time

import pytest

from jobs.clock import Clock, Down
from jobs.ids import new_id
from jobs.service import Service
from jobs.settings import Settings
from pruning_core.report import Progress


@pytest.fixture
def clock(service: Service) -> Clock:
    return service.clock


@pytest.fixture
def item() -> str:
    return new_id("job")


def test_one_holder_at_a_time(clock: Clock, item: str) -> None:
    token = clock.claim(item)
    assert token is not None
    assert clock.claim(item) is None
    assert clock.leased([item, new_id("job")]) == {item}
    clock.release(item, "another")
    assert clock.leased([item]) == {item}
    clock.release(item, token)
    assert clock.leased([item]) == set()
    assert clock.claim(item) not in (None, token)


def test_lease_runs_out_unless_renewed(service: Service, item: str) -> None:
    clock = Clock(service.settings.model_copy(update={"lease_seconds": 0.3}))
    token = clock.claim(item)
    assert token is not None
    for _ in range(4):
        time.sleep(0.15)
        assert clock.renew(item, token) == "held"
    time.sleep(0.4)
    assert clock.leased([item]) == set()


def test_holder_takes_a_vanished_lease_again(clock: Clock, item: str) -> None:
    token = clock.claim(item)
    assert token is not None
    clock.redis.flushdb()
    assert clock.renew(item, token) == "held"
    assert clock.claim(item) is None


def test_holder_gives_way_to_a_newer_one(clock: Clock, item: str) -> None:
    token = clock.claim(item)
    assert token is not None
    clock.redis.flushdb()
    newer = clock.claim(item)
    assert newer is not None
    assert clock.renew(item, token) == "lost"
    clock.release(item, token)
    assert clock.renew(item, newer) == "held"


def test_cancel_flag_reaches_the_holder(clock: Clock, item: str) -> None:
    token = clock.claim(item)
    assert token is not None
    clock.flag_cancel(item)
    assert clock.renew(item, token) == "cancelling"
    clock.forget(item)
    assert clock.renew(item, token) == "held"


def test_locks(clock: Clock) -> None:
    with clock.lock("a", wait=0) as first:
        assert first
        with clock.lock("a", wait=0.1) as second:
            assert not second
        with clock.lock("b", wait=0) as other:
            assert other
    with clock.lock("a", wait=0) as again:
        assert again


def test_lock_of_a_dead_process_opens(clock: Clock) -> None:
    with clock.lock("a", seconds=0.2), clock.lock("a", wait=2) as second:
        assert second


def test_a_lock_that_redis_would_not_open_is_opened_as_soon_as_it_does(clock: Clock) -> None:
    # Redis refuses to write, as it does on a full disk; here because it has no replicas.
    with clock.lock("a", seconds=60, wait=0) as first:
        assert first
        clock.redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(Down), clock.lock("b", wait=0):
            pass
    finally:
        clock.redis.config_set("min-replicas-to-write", 0)
    with clock.lock("b", wait=0), clock.lock("a", wait=0) as again:
        assert again


def test_progress(clock: Clock, item: str) -> None:
    assert clock.progress(item) == {}
    clock.report(item, Progress(stage="select", done=1, total=4, fraction=0.25), started=12.5)
    assert clock.progress(item) == {"stage": "select", "fraction": "0.25", "started": "12.5"}
    clock.forget(item)
    assert clock.progress(item) == {}


def test_hints(clock: Clock, item: str) -> None:
    assert clock.hint(item)
    assert not clock.hint(item)
    clock.unhint(item)
    assert clock.hint(item)


def test_signs_of_life(clock: Clock) -> None:
    assert not clock.living("jobs")
    clock.alive(["jobs"])
    assert clock.living("jobs")
    assert not clock.living("inspections")


def test_redis_that_is_down(settings: Settings, item: str) -> None:
    clock = Clock(settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))
    began = time.monotonic()
    for call in (lambda: clock.claim(item), lambda: clock.renew(item, "t"), lambda: clock.progress(item)):
        with pytest.raises(Down):
            call()
    assert time.monotonic() - began < 2


def test_password_is_never_printed(settings: Settings) -> None:
    text = repr(settings) + str(settings)
    assert settings.s3_secret_key is not None
    assert settings.s3_secret_key not in text
    assert settings.redis_url not in text
