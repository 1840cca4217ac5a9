"""Quotas, on a real bucket and Redis: what is counted, races, crashes, wipes, outages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import cli.quotas
from jobs import layout
from jobs.errors import QuotaExceeded, StorageFull, Unavailable
from jobs.records import Attempt
from jobs.service import Service
from jobs.usage import charge
from pruning_core.errors import InputError
from tests.access.conftest import Calling
from tests.access.test_tenancy import RECIPE
from tests.api.live_api import Api, problem, zip_bytes

TENANT = "red"


@pytest.fixture
def red(service: Service) -> Service:
    return service.of(TENANT)


def limit(service: Service, **limits: int | str) -> None:
    service.quotas.set_limits(TENANT, limits)


def upload(service: Service, size: int = 10) -> str:
    return service.create_upload("model", iter([bytes([len(list(service.bucket.list("models/"))) % 256]) * size])).id


def inputs(service: Service) -> tuple[str, str]:
    return service.create_upload("model", iter([b"m"])).id, service.create_upload("dataset", iter([b"d"])).id


def submit(service: Service, uploads: tuple[str, str], **more: Any) -> str:
    return service.create_job(*uploads, None, RECIPE, **more)[0].id


def end(service: Service, job: str, artifacts: dict[str, Any] | None = None) -> None:
    token = service.clock.claim(job)
    assert token is not None
    found = service.ledger.resolve(job, token)
    assert found is not None
    attempt = service.ledger.begin(found, token, "test")
    assert service.ledger.publish(found, token, "succeed", attempt=attempt, result={}, artifacts=artifacts)
    service.clock.release(job, token)


def refused(call: Callable[[], object], quota: str) -> dict[str, Any]:
    with pytest.raises((QuotaExceeded, StorageFull)) as caught:
        call()
    problem = caught.value.problem()
    assert problem["quota"] == quota
    assert problem["used"] >= problem["limit"] or quota == "stored_bytes"
    assert (problem["status"] == 429) == ("retry_after" in problem)
    return problem


# -- stored bytes ------------------------------------------------------------------------------------------------------


def test_stored_bytes(service: Service, red: Service) -> None:
    limit(service, stored_bytes=100)
    first = upload(red, 60)
    problem = refused(lambda: upload(red, 41), "stored_bytes")
    assert (problem["status"], problem["limit"], problem["used"]) == (403, 100, 60)
    with pytest.raises(StorageFull):
        red.expect_upload(41)
    assert len(red.list_uploads("model")[0]) == 1
    assert service.quotas.used(TENANT)["stored_bytes"] == 60
    upload(red, 40)
    upload(service.of("blue"), 1000)
    red.delete_upload(first)
    assert service.quotas.used(TENANT)["stored_bytes"] == 40
    upload(red, 60)


def test_what_was_refused_leaves_nothing(service: Service, red: Service) -> None:
    limit(service, stored_bytes=5)
    before = set(service.bucket.list(""))
    refused(lambda: upload(red, 6), "stored_bytes")
    assert set(service.bucket.list("")) == before


def test_results_count_and_a_full_tenant_makes_no_job(service: Service, red: Service) -> None:
    own = inputs(red)
    job = submit(red, own)
    assert service.quotas.used(TENANT)["stored_bytes"] == 2
    level = {"sparsity": 0.5, "model": {"key": "a", "size": 70}, "masks": {"key": "b", "size": 20}}
    end(service, job, {"levels": [level], "report": {"key": "c", "size": 8}})
    assert service.quotas.used(TENANT)["stored_bytes"] == 100
    limit(service, stored_bytes=100)
    refused(lambda: submit(red, own), "stored_bytes")


@pytest.mark.parametrize("state", ["complete", "wiped", "rebuilt", "down"])
def test_what_is_used_is_known_in_every_state_of_redis(service: Service, red: Service, state: str) -> None:
    if state == "complete":
        service.reconcile()
    own = inputs(red)
    upload(red, 98)
    ended, _ = submit(red, own), submit(red, own)
    end(service, ended, {"report": {"key": "c", "size": 8}})
    submit(service.of("blue"), inputs(service.of("blue")))
    if state in {"wiped", "rebuilt"}:
        service.clock.redis.flushdb()
    if state == "rebuilt":
        service.reconcile()
    asked = Service(
        service.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"} if state == "down" else {})
    )
    try:
        for _ in range(2):
            used = asked.quotas.used(TENANT)
            assert (used["stored_bytes"], used["open_jobs"]) == (108, 1)
    finally:
        asked.close()


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_open_jobs(service: Service, red: Service) -> None:
    own = inputs(red)
    limit(service, open_jobs=2)
    first, _ = submit(red, own), submit(red, own)
    assert refused(lambda: submit(red, own), "open_jobs")["retry_after"]
    red.cancel_job(first)
    submit(red, own)
    refused(lambda: submit(red, own), "open_jobs")
    submit(service, inputs(service))


def test_jobs_of_a_day_stay_counted_when_they_are_gone(service: Service, red: Service) -> None:
    own = inputs(red)
    limit(service, jobs_per_day=2)
    for _ in range(2):
        job = submit(red, own)
        red.cancel_job(job)
        service.bucket.delete_prefix(layout.prefix(job))
    service.clock.redis.flushdb()
    problem = refused(lambda: submit(red, own), "jobs_per_day")
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1)
    assert abs(problem["retry_after"] - (midnight - datetime.now(UTC)).total_seconds()) < 5


def test_a_repeated_request_is_not_counted_again(service: Service, red: Service) -> None:
    own = inputs(red)
    limit(service, open_jobs=1, jobs_per_day=1)
    job = submit(red, own, idempotency_key="key")
    assert submit(red, own, idempotency_key="key") == job
    refused(lambda: submit(red, own, idempotency_key="other"), "open_jobs")
    limit(service, open_jobs="none", jobs_per_day=2)
    made = submit(red, own, idempotency_key="other")
    assert submit(red, own, idempotency_key="other") == made, "what was refused once can be made later"


@pytest.mark.parametrize("down", [False, True])
def test_two_at_once_do_not_pass_together(service: Service, red: Service, down: bool) -> None:
    own = inputs(red)
    limit(service, open_jobs=3, stored_bytes=52)
    settings = service.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"} if down else {})
    # One process without Redis; four with it.
    others = [Service(settings) for _ in range(1 if down else 4)]
    racers = [others[n % len(others)].of(TENANT) for n in range(8)]

    def attempt(call: Callable[[], object]) -> bool:
        try:
            call()
        except (QuotaExceeded, StorageFull):
            return False
        return True

    try:
        with ThreadPoolExecutor(8) as threads:
            uploaded = list(threads.map(lambda racer: attempt(lambda: upload(racer, 20)), racers))
            made = list(threads.map(lambda racer: attempt(lambda: submit(racer, own)), racers))
    finally:
        for other in others:
            other.close()
    assert (sum(uploaded), sum(made)) == (2, 3)


# -- pruning seconds ---------------------------------------------------------------------------------------------------


def attempts(start: datetime, *spans: tuple[float, float | None]) -> Iterator[Attempt]:
    for number, (begin, length) in enumerate(spans, 1):
        began = start + timedelta(seconds=begin)
        ended = None if length is None else began + timedelta(seconds=length)
        yield Attempt(number=number, worker="w", started_at=began, token="t", released="x", ended_at=ended)


def test_pruning_seconds(service: Service, red: Service) -> None:
    own = inputs(red)
    limit(service, pruning_seconds_per_month=60)
    start = datetime.now(UTC)

    def charged(job: str, spans: list[Attempt], current: Attempt | None = None) -> None:
        charge(service.bucket, service.settings, TENANT, job, spans, current=current, now=start.isoformat())

    for spans in (((-100.0, 30.0), (-50.0, None)), ((-90.0, 15.0), (-20.0, 5.0))):
        charged(submit(red, own), list(attempts(start, *spans)))
    job = submit(red, own)
    service.quotas.usage._months.clear()  # what a process trusts for ten seconds
    assert service.quotas.used(TENANT)["pruning_seconds_per_month"] == 50
    last = list(attempts(start, (-12.0, None)))
    for _ in range(2):  # a worker that published, and died before it knew: the next one does it again
        charged(job, last, last[0])
    service.clock.redis.flushdb()
    fresh = Service(service.settings)
    try:
        assert fresh.quotas.used(TENANT)["pruning_seconds_per_month"] == 62
        problem = refused(lambda: submit(fresh.of(TENANT), own), "pruning_seconds_per_month")
        assert 0 < problem["retry_after"] <= 31 * 86400
    finally:
        fresh.close()


def test_the_outcome_brings_the_charge(service: Service, red: Service) -> None:
    job = submit(red, inputs(red))
    end(service, job)
    (key,) = service.bucket.list(f"usage/{TENANT}/seconds/")
    assert job in key
    other = submit(service, inputs(service))
    end(service, other)
    assert list(service.bucket.list("usage/default/")) == [], "the default tenant is charged only if it is limited"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_come_from_the_settings_and_the_operator(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    defaults = Service(service.settings.model_copy(update={"quota_open_jobs": 7, "quota_stored_bytes": 70}))
    try:
        quotas = defaults.quotas
        assert (quotas.limits("default").open_jobs, quotas.limits("red").stored_bytes) == (7, 70)
        assert quotas.set_limits("red", {"open_jobs": 2, "stored_bytes": "none"}).model_dump() == {
            "stored_bytes": None,
            "open_jobs": 2,
            "jobs_per_day": None,
            "pruning_seconds_per_month": None,
        }
        assert quotas.set_limits("red", {"stored_bytes": "default"}).stored_bytes == 70
        for tenant in ("default", "../x"):
            with pytest.raises(InputError):
                quotas.set_limits(tenant, {"open_jobs": 1})
    finally:
        defaults.close()


def test_the_operators_command(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("redis_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket"):
        monkeypatch.setenv(f"PRUNING_{name.upper()}", str(getattr(service.settings, name)))
    assert cli.quotas.main(["red", "--open-jobs", "3", "--stored-bytes", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["open_jobs"] == 3
    assert cli.quotas.main(["red"]) == 0
    assert json.loads(capsys.readouterr().out)["used"]["open_jobs"] == 0
    assert cli.quotas.main(["default", "--open-jobs", "3"]) == 1
    assert "PRUNING_QUOTA_" in capsys.readouterr().err


def test_an_outage_of_the_bucket_lets_nobody_in(service: Service) -> None:
    away = Service(service.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    try:
        with pytest.raises(Unavailable):
            away.of(TENANT).expect_upload(1)
    finally:
        away.close()


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def test_quotas_over_http(guarded: Api, client_of: Calling) -> None:
    with_limits = client_of("limited")
    body, used = {"recipe": RECIPE}, 2 * len(zip_bytes(50))
    guarded.service.quotas.set_limits("limited", {"stored_bytes": used + 500, "open_jobs": 1})
    for field, kind in (("model", "models"), ("calibration", "datasets")):
        body[field] = with_limits.put(f"/{kind}", content=zip_bytes(50)).json()["id"]
    assert with_limits.get("/usage").json()["used"]["stored_bytes"] == used
    full = problem(with_limits.put("/models", content=zip_bytes(501)), 403, "storage-full")
    assert (full["quota"], full["limit"], full["used"]) == ("stored_bytes", used + 500, used)
    chunked = with_limits.put("/models", content=iter([zip_bytes(501)]))
    problem(chunked, 403, "storage-full")
    assert with_limits.post("/jobs", json=body, headers={"Idempotency-Key": "k"}).status_code == 202
    refused = with_limits.post("/jobs", json=body)
    exceeded = problem(refused, 429, "quota-exceeded")
    assert (exceeded["quota"], exceeded["limit"], exceeded["used"]) == ("open_jobs", 1, 1)
    assert refused.headers["retry-after"] == str(exceeded["retry_after"])
    assert with_limits.post("/jobs", json=body, headers={"Idempotency-Key": "k"}).status_code == 200
    assert with_limits.get("/usage").json()["used"] == {
        "stored_bytes": used,
        "open_jobs": 1,
        "jobs_per_day": 0,
        "pruning_seconds_per_month": 0.0,
    }
