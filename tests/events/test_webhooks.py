"""Webhooks end to end: signed, retried, told at least once whatever is killed or wiped, and nobody else's business."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from jobs.errors import NotFound
from jobs.service import Service
from jobs.webhooks import records
from tests.api.live_api import Api, api, problem
from tests.events.playing import Turn, end, queued_job
from tests.events.receiver import Got, Receiver, drip, receiver
from tests.jobs.cluster import Cluster, eventually, settings_from
from tests.servers import own_database

FAST = {
    "webhook_allow_http": "true",
    "webhook_networks": "127.0.0.1/32",
    "webhook_schedule": "0, 0.2, 0.2",
    "webhook_timeout_seconds": "2",
    "log_format": "json",
}


@pytest.fixture(scope="module")
def environment(running: Cluster) -> dict[str, str]:
    """A bucket and a Redis database of their own: the other api of this folder sends nothing from here."""
    return {**own_database(running.environment, 3), "PRUNING_S3_BUCKET": "webhooks"}


@pytest.fixture(scope="module")
def sending(environment: dict[str, str], running: Cluster) -> Iterator[Api]:
    with api(environment, running.folder, **FAST) as started:
        with httpx.Client(base_url=started.url) as client:
            eventually(lambda: client.get("/models").status_code == 200, 20, "the bucket")
        yield started


@pytest.fixture
def http(sending: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sending.url, timeout=30) as client:
        yield client


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


@pytest.fixture
def hook(http: httpx.Client, there: Receiver) -> Iterator[dict[str, Any]]:
    made = http.post("/webhooks", json={"url": there.url})
    assert made.status_code == 201, made.text
    yield made.json()
    http.delete(f"/webhooks/{made.json()['id']}")


def ended(http: httpx.Client, **more: Any) -> str:
    job: str = queued_job(http, **more)["id"]
    assert http.post(f"/jobs/{job}/cancel").json()["state"] == "cancelled"
    return job


def came(there: Receiver, count: int = 1, seconds: float = 20) -> list[Got]:
    eventually(lambda: len(there.got) >= count, seconds, f"{count} messages came")
    return there.got


def settled(http: httpx.Client, hook: dict[str, Any]) -> dict[str, Any]:
    def newest() -> dict[str, Any] | None:
        answer = http.get(f"/webhooks/{hook['id']}/deliveries")
        assert answer.status_code == 200, answer.text
        (found, *_) = answer.json()["items"] or [{"state": "pending"}]
        return found if found["state"] != "pending" else None

    found: dict[str, Any] = eventually(newest, 20, "the delivery is settled")
    return found


def test_the_end_of_a_job_is_told_and_signed(
    http: httpx.Client, hook: dict[str, Any], there: Receiver, sending: Api, tmp_path: Path
) -> None:
    job = queued_job(http, labels={"team": "vision"})
    end(sending.service, job["id"], tmp_path)
    (got,) = came(there)
    told = Verifier(hook["secret"]).verify(got.body, got.headers)
    assert told["type"] == "job.succeeded"
    ended_at = http.get(f"/jobs/{job['id']}").json()["ended_at"]
    assert datetime.fromisoformat(told["timestamp"]) == datetime.fromisoformat(ended_at)
    assert {name: told["data"][name] for name in ("id", "state", "labels", "links")} == {
        "id": job["id"],
        "state": "succeeded",
        "labels": {"team": "vision"},
        "links": {"self": f"/jobs/{job['id']}"},
    }
    assert got.path == "/hook?token=of-the-receiver"
    with pytest.raises(WebhookVerificationError):
        Verifier(hook["secret"]).verify(got.body + b" ", got.headers)
    delivery = settled(http, hook)
    assert (delivery["state"], delivery["id"]) == ("delivered", got.message)
    assert [attempt["status"] for attempt in delivery["tries"]] == [204]
    service = sending.service
    eventually(lambda: not list(service.bucket.list("outbox/deliveries/")), 5, "the markers are gone")
    assert service.bucket.head(f"outbox/jobs/{job['id']}") is None


def test_a_failed_job_tells_its_problem(
    http: httpx.Client, hook: dict[str, Any], there: Receiver, sending: Api
) -> None:
    job = queued_job(http)["id"]
    Turn(sending.service, job).fail()
    told = json.loads(came(there)[0].body)
    assert told["type"] == "job.failed"
    assert told["data"]["error"]["type"].endswith(":diverged")


def test_what_fails_is_sent_again_the_same(http: httpx.Client, hook: dict[str, Any], there: Receiver) -> None:
    there.answers = [500, 302]  # a redirect is no answer either
    ended(http)
    got = came(there, 3)
    assert len({(one.message, one.body) for one in got}) == 1
    for one in got:
        Verifier(hook["secret"]).verify(one.body, one.headers)
    delivery = settled(http, hook)
    assert delivery["state"] == "delivered"
    assert [attempt["status"] for attempt in delivery["tries"]] == [500, 302, 204]


def test_it_is_given_up_in_the_end(http: httpx.Client, hook: dict[str, Any], there: Receiver) -> None:
    there.answers = [500] * 9
    ended(http)
    delivery = settled(http, hook)
    assert (delivery["state"], len(delivery["tries"]), delivery["next_at"]) == ("failed", 3, None)
    assert len(there.got) == 3


def test_gone_disables(http: httpx.Client, hook: dict[str, Any], there: Receiver, sending: Api) -> None:
    there.answers = [410]
    ended(http)
    assert settled(http, hook)["state"] == "failed"
    here = f"/webhooks/{hook['id']}"
    eventually(lambda: http.get(here).json()["state"] == "disabled", 5, "it is disabled")
    assert "410" in http.get(here).json()["disabled_because"]
    job = ended(http)
    bucket = sending.service.bucket
    eventually(lambda: bucket.head(f"outbox/jobs/{job}") is None, 10, "nobody was to be told of that one")
    assert http.post(f"{here}/enable").json()["state"] == "enabled"
    http.post(f"{here}/test")
    came(there, 2)
    assert json.loads(there.got[1].body)["type"] == "webhook.test"


def test_only_what_was_asked_for_is_told(http: httpx.Client, there: Receiver, sending: Api) -> None:
    wanted = {"url": there.url, "events": ["job.cancelled"], "labels": {"team": "vision"}}
    hook = http.post("/webhooks", json=wanted).json()
    other = sending.service.of("other").webhooks.create("https://example.com/", records.EVENTS, {})
    ended(http, labels={"team": "audio"})
    Turn(sending.service, queued_job(http, labels={"team": "vision"})["id"]).fail()
    job = ended(http, labels={"team": "vision", "more": "x"})
    (got,) = came(there)
    assert json.loads(got.body)["data"]["id"] == job
    # Another tenant's is as if it were not there, and hears nothing.
    assert other.id not in [item["id"] for item in http.get("/webhooks").json()["items"]]
    for call in ("", "/deliveries"):
        problem(http.get(f"/webhooks/{other.id}{call}"), 404, "not-found")
    for call in ("/test", "/rotate", "/enable"):
        problem(http.post(f"/webhooks/{other.id}{call}"), 404, "not-found")
    problem(http.delete(f"/webhooks/{other.id}"), 404, "not-found")
    assert sending.service.of("other").webhooks.deliveries(other.id, 10) == []
    with pytest.raises(NotFound):
        sending.service.of("other").webhooks.get(hook["id"])
    http.delete(f"/webhooks/{hook['id']}")


def test_the_secret_is_shown_once_and_rotates(http: httpx.Client, hook: dict[str, Any], there: Receiver) -> None:
    here = f"/webhooks/{hook['id']}"
    assert hook["secret"].startswith("whsec_")
    assert hook["secret"] not in http.get("/webhooks").text + http.get(here).text
    second = http.post(f"{here}/rotate").json()["secret"]
    assert http.post(f"{here}/test").status_code == 202
    (got,) = came(there)
    assert len(got.headers["webhook-signature"].split()) == 2
    for secret in (hook["secret"], second):
        assert Verifier(secret).verify(got.body, got.headers)["type"] == "webhook.test"
    assert http.get(here).json()["rotated_at"] is not None


def test_a_test_message_is_sent_once(http: httpx.Client, hook: dict[str, Any], there: Receiver) -> None:
    there.answers = [500]
    sent = http.post(f"/webhooks/{hook['id']}/test").json()
    delivery = settled(http, hook)
    assert (delivery["id"], delivery["state"], len(delivery["tries"])) == (sent["id"], "failed", 1)


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        ({"url": "ftp://example.com"}, "webhook-refused"),
        ({"url": "http://10.0.0.1/"}, "webhook-refused"),
        ({"url": "http://169.254.169.254/latest"}, "webhook-refused"),
        ({"url": "http://[::1]/"}, "webhook-refused"),
        ({"url": "https://u:p@example.com/"}, "webhook-refused"),
        ({"url": 7}, "invalid-request"),
        ({}, "invalid-request"),
        ({"url": "https://example.com", "events": ["job.sneezed"]}, "invalid-request"),
        ({"url": "https://example.com", "events": []}, "invalid-request"),
        ({"url": "https://example.com", "labels": {"a b": "c"}}, "invalid-request"),
        ({"url": "https://example.com", "secret": "x"}, "invalid-request"),
        ([], "invalid-request"),
    ],
)
def test_a_bad_webhook_is_refused(http: httpx.Client, body: Any, slug: str) -> None:
    problem(http.post("/webhooks", json=body), 422, slug)


def test_there_may_not_be_too_many(sending: Api) -> None:
    crowded = Service(sending.settings.model_copy(update={"max_webhooks": 1})).of("crowded")
    crowded.webhooks.create("https://example.com/", records.EVENTS, {})
    with pytest.raises(Exception, match="too many"):
        crowded.webhooks.create("https://example.com/", records.EVENTS, {})
    crowded.close()


def test_neither_secret_nor_url_reaches_the_log(http: httpx.Client, hook: dict[str, Any], sending: Api) -> None:
    ended(http)
    settled(http, hook)
    log = sending.log.read_text()
    assert "webhook tried" in log
    for secret in (hook["secret"], hook["secret"].removeprefix("whsec_"), "of-the-receiver"):
        assert secret not in log
    stored = sending.service.webhooks.get(hook["id"])
    assert hook["secret"] not in repr(stored)
    assert "of-the-receiver" not in repr(stored)


def test_a_crash_and_a_wipe_between_the_end_and_the_message_lose_nothing(
    environment: dict[str, str], running: Cluster, there: Receiver, tmp_path: Path
) -> None:
    alone = {
        **environment,
        "PRUNING_S3_BUCKET": "crash",
        "PRUNING_REDIS_URL": environment["PRUNING_REDIS_URL"][:-1] + "4",
    }
    service = Service(settings_from(alone))
    with api(alone, tmp_path, **FAST) as first, httpx.Client(base_url=first.url, timeout=30) as http:
        eventually(lambda: http.get("/models").status_code == 200, 20, "the bucket")
        hook = http.post("/webhooks", json={"url": there.url}).json()
        jobs = {queued_job(http)["id"] for _ in range(3)}
        first.process.kill()
        first.process.wait()
    for job in jobs:
        end(service, job, tmp_path)
    service.clock.redis.flushdb()
    with api(alone, tmp_path, **FAST):
        got = came(there, 3, 30)
        assert {json.loads(one.body)["data"]["id"] for one in got} == jobs
        for one in got:
            Verifier(hook["secret"]).verify(one.body, one.headers)
        eventually(lambda: not list(service.bucket.list("outbox/")), 10, "everything is settled")
    service.close()


def test_a_crash_at_any_step_leaves_something_to_begin_from(running: Cluster, there: Receiver, tmp_path: Path) -> None:
    """Stop after each write to the bucket in turn; whoever comes next delivers."""
    url = running.environment["PRUNING_REDIS_URL"][:-1] + "5"
    overrides = {"webhook_allow_http": True, "webhook_networks": ("127.0.0.1/32",), "webhook_schedule": (0.0, 0.0)}
    service = Service(settings_from(running.environment, redis_url=url, s3_bucket="steps", **overrides))
    service.bucket.ensure()
    hook = service.webhooks.create(there.url, records.EVENTS, {})

    class Crash(BaseException):
        pass

    writes = 0
    for allowed in range(12):
        model = service.create_upload("model", iter([b"m"])).id
        data = service.create_upload("dataset", iter([b"d"])).id
        job = service.create_job(model, data, None, {"select": {"algorithm": "magnitude", "sparsity": 0.5}})[0].id
        service.cancel_job(job)
        before, left = len(there.got), iter(range(allowed))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("put_json", "write_once", "delete"):
                whole = getattr(service.bucket, name)

                def counted(*args: Any, whole: Any = whole, left: Iterator[int] = left) -> Any:
                    if next(left, None) is None:
                        raise Crash
                    return whole(*args)

                patch.setattr(service.bucket, name, counted)
            try:
                deliver_all(service)
            except Crash:
                crashed = True
            else:
                crashed, writes = False, allowed - len(list(left))
        service.clock.redis.flushdb()  # with the locks that the dead one held
        service.reconcile()
        deliver_all(service)
        messages = [one.message for one in there.got[before:]]
        assert set(messages) == {f"msg_{job[4:]}"}
        assert len(messages) <= 2
        assert not list(service.bucket.list("outbox/"))
        if not crashed:
            break
    assert not crashed
    assert writes >= 4  # record, its marker, the job's marker, how it went, its marker
    assert hook.id
    service.close()


def test_a_receiver_that_is_away_delays_no_other(
    http: httpx.Client, hook: dict[str, Any], there: Receiver, sending: Api
) -> None:
    """Hundreds of messages to one that never answers, of this tenant and of another; then one to a good one."""
    with receiver() as away:
        away.answers = [drip] * 1000
        dead = [http.post("/webhooks", json={"url": away.url}).json()["id"]]
        others = sending.service.of("others")
        dead_too = others.outbox.webhook("default", dead[0])
        assert dead_too is not None
        key = f"webhooks/others/{dead[0]}.json"
        sending.service.bucket.put_json(key, {**records.json(dead_too), "tenant": "others"})
        for _ in range(8):
            http.post(f"/webhooks/{dead[0]}/test")
            others.webhooks.test(dead[0])
        eventually(lambda: len(away.got) >= 4, 10, "it is tried")
        started = time.monotonic()
        http.post(f"/webhooks/{hook['id']}/test")
        came(there)
        assert time.monotonic() - started < 5
        assert sending.service.outbox.agenda.pending() > 8
        http.delete(f"/webhooks/{dead[0]}")
        others.webhooks.delete(dead[0])
        eventually(lambda: sending.service.outbox.agenda.pending() == 0, 20, "what was for it is dropped")


def deliver_all(service: Service) -> None:
    service.outbox.tell_ended()
    sender = service.sender()
    for name in service.outbox.agenda.due(100):
        sender.deliver(name)
    sender.stop(1)
