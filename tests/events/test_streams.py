"""Following a job: every change is told, also after a reconnection, a wipe of Redis, and without Redis."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from jobs import layout
from jobs.records import now
from tests.api.live_api import api, problem
from tests.events.playing import Turn, end, queued_job, stream
from tests.jobs.cluster import Cluster, eventually


def test_each_change_is_told_in_order(http: httpx.Client, running: Cluster, tmp_path: Path) -> None:
    job = queued_job(http)["id"]
    with stream(http, job) as events:
        first = next(events)
        assert (first.name, first.data["state"]) == ("state", "queued")
        turn = Turn(running.service, job)
        assert next(events).data["state"] == "running"
        turn.progress("read", 0.0)
        stage = next(events)
        assert (stage.name, stage.data) == ("stage", {"attempt": 1, "stage": "read", "progress": 0.0})
        assert next(events).name == "progress"
        turn.progress("read", 0.5)
        progress = next(events)
        assert (progress.name, progress.data["progress"]) == ("progress", 0.5)
        turn.give_back()
        given_back = next(events)
        assert (given_back.data["state"], given_back.data["attempt"]) == ("queued", 1)
        turn = Turn(running.service, job)
        again = next(events)
        assert again.data["attempt"] == 2
        turn.fail()
        last = [event for event in events if event.name in {"state", "outcome"}]
    assert [event.name for event in last] == ["state", "outcome"]
    assert last[0].data["state"] == "failed"
    assert last[1].data == http.get(f"/jobs/{job}").json()

    # Whoever comes back gets what was missed: here, the end alone; and after that, nothing more.
    with stream(http, job, again.id) as events:
        assert [event.data["state"] for event in events] == ["failed", "failed"]
    with stream(http, job, first.id) as events:
        assert [event.data["state"] for event in events][:3] == ["running", "queued", "running"]
    assert http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": last[1].id}).status_code == 204


def test_a_resumed_stream_tells_the_state_of_now(http: httpx.Client, running: Cluster) -> None:
    job = queued_job(http)["id"]
    turn = Turn(running.service, job)
    for seen, told in (("0", ["running"]), ("nonsense", ["queued", "running"]), ("9", ["running"])):
        with stream(http, job, seen) as events:
            turn.progress("select", 0.25)
            states = [next(events).data["state"] for _ in told]
            assert states == told
            assert next(events).name == "stage"
    turn.fail()


def test_silence_is_filled_with_signs_of_life(http: httpx.Client) -> None:
    job = queued_job(http)["id"]
    with http.stream("GET", f"/jobs/{job}/events") as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": alive"
    http.post(f"/jobs/{job}/cancel")


def test_an_unknown_job_has_no_stream(http: httpx.Client) -> None:
    problem(http.get("/jobs/job_01JD3Z8Q9W3V6Y6T0B1C2D3E4F/events"), 404, "not-found")


def test_a_wipe_of_redis_loses_no_change(http: httpx.Client, running: Cluster, tmp_path: Path) -> None:
    job = queued_job(http)["id"]
    with stream(http, job) as events:
        assert next(events).data["state"] == "queued"
        running.wipe_redis()
        end(running.service, job, tmp_path)
        assert [event.name for event in events][-1] == "outcome"


def test_without_redis_the_bucket_tells(http: httpx.Client, running: Cluster) -> None:
    job = queued_job(http)["id"]
    with stream(http, job) as events:
        assert next(events).data["state"] == "queued"
        running.stop_redis()
        try:
            outcome = {"state": "failed", "ended_at": now(), "attempt": 0, "attempts": []}
            running.service.bucket.write_once(layout.outcome(job), outcome)
            assert [event.data["state"] for event in events] == ["failed", "failed"]
            waited = http.get(f"/jobs/{job}", headers={"Prefer": "wait=5"})
            assert waited.json()["state"] == "failed"
        finally:
            running.start_redis()


def test_streams_are_limited_and_counted_back(running: Cluster, tmp_path: Path) -> None:
    with (
        api(running.environment, tmp_path, api_max_streams_per_tenant="2", api_max_wait_seconds="20") as small,
        httpx.Client(base_url=small.url, timeout=30) as http,
    ):
        job = queued_job(http)["id"]
        with stream(http, job), stream(http, job):
            refused = http.get(f"/jobs/{job}/events")
            assert problem(refused, 429, "too-many-streams")["advice"]
            assert int(refused.headers["retry-after"]) > 0
            # A preference may be passed over, and the answer says so.
            started = time.monotonic()
            assert "preference-applied" not in http.get(f"/jobs/{job}", headers={"Prefer": "wait=20"}).headers
            assert time.monotonic() - started < 5
        eventually(lambda: streams_again(http, job), 10, "the places are free again")
        # A client that gives up waiting gives its place back too.
        for _ in range(3):
            try:
                http.get(f"/jobs/{job}", headers={"Prefer": "wait=20"}, timeout=0.3)
            except httpx.ReadTimeout:
                continue
            raise AssertionError("it did not wait")
        eventually(lambda: streams_again(http, job), 10, "the places are free again")


def streams_again(http: httpx.Client, job: str) -> bool:
    with http.stream("GET", f"/jobs/{job}/events") as one, http.stream("GET", f"/jobs/{job}/events") as two:
        return one.status_code == two.status_code == 200


def test_a_server_that_stops_lets_its_streams_go(running: Cluster, tmp_path: Path) -> None:
    with (
        api(running.environment, tmp_path, api_shutdown_seconds="30") as stopping,
        httpx.Client(base_url=stopping.url, timeout=30) as http,
    ):
        job = queued_job(http)["id"]
        with stream(http, job) as events:
            assert next(events).data["state"] == "queued"
            started = time.monotonic()
            stopping.process.terminate()
            assert list(events) == []
            stopping.process.wait(10)
            assert time.monotonic() - started < 10
