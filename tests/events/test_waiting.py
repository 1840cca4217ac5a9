"""``Prefer: wait=N``: bounded, ends with the job, and hundreds who wait cost no thread each."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.finished_job import RECIPE
from tests.api.live_api import Api
from tests.events.playing import end, queued_job
from tests.jobs.cluster import Cluster


def test_it_waits_no_longer_than_asked(http: httpx.Client) -> None:
    job = queued_job(http)["id"]
    started = time.monotonic()
    response = http.get(f"/jobs/{job}", headers={"Prefer": "respond-async, wait=1"})
    assert 0.9 < time.monotonic() - started < 4
    assert response.headers["preference-applied"] == "wait=1"
    assert response.json()["state"] == "queued"


def test_it_ends_with_the_job(http: httpx.Client, running: Cluster, tmp_path: Path) -> None:
    job = queued_job(http)["id"]
    worker = threading.Timer(0.5, end, (running.service, job, tmp_path))
    worker.start()
    started = time.monotonic()
    response = http.get(f"/jobs/{job}", headers={"Prefer": "wait=1000"})
    assert time.monotonic() - started < 10
    assert response.headers["preference-applied"] == "wait=60"  # what it was bounded to
    assert response.json() == http.get(f"/jobs/{job}").json()
    assert response.json()["state"] == "succeeded"
    worker.join()
    # There is nothing to wait for now.
    assert http.get(f"/jobs/{job}", headers={"Prefer": "wait=20"}, timeout=5).headers["preference-applied"] == "wait=20"


def test_a_new_job_is_waited_for_too(http: httpx.Client) -> None:
    job = queued_job(http)
    body = {"model": job["model"], "calibration": job["calibration"], "recipe": RECIPE}
    response = http.post("/jobs", json=body, headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"
    assert response.json()["state"] == "queued"


@pytest.mark.parametrize("prefer", ["wait", "wait=-1", "wait=soon", "waiting=20", "wait=1e9", "", 'x="wait=20"'])
def test_what_cannot_be_understood_is_ignored(http: httpx.Client, prefer: str) -> None:
    job = queued_job(http)["id"]
    response = http.get(f"/jobs/{job}", headers={"Prefer": prefer}, timeout=5)
    assert response.status_code == 200
    assert "preference-applied" not in response.headers


def test_two_hundred_wait_and_the_service_answers(http: httpx.Client, api: Api, running: Cluster) -> None:
    jobs = [queued_job(http)["id"] for _ in range(4)]

    async def wait(client: httpx.AsyncClient, job: str) -> Any:
        return (await client.get(f"/jobs/{job}", headers={"Prefer": "wait=50"})).json()["state"]

    async def everybody() -> list[Any]:
        limits = httpx.Limits(max_connections=250)
        async with httpx.AsyncClient(base_url=api.url, timeout=60, limits=limits) as client:
            waiting = [asyncio.create_task(wait(client, job)) for job in jobs for _ in range(50)]
            await asyncio.sleep(2)
            assert not any(task.done() for task in waiting)
            seen.append(api.process.num_threads())
            started = time.monotonic()
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get(f"/jobs/{jobs[0]}")).status_code == 200
            seen.append(time.monotonic() - started)
            for job in jobs:
                assert (await client.post(f"/jobs/{job}/cancel")).status_code == 202
            return await asyncio.gather(*waiting)

    seen: list[float] = []
    assert asyncio.run(everybody()) == ["cancelled"] * 200
    threads, seconds = seen
    assert threads < 100
    assert seconds < 10  # they wait for 50
