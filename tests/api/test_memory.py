"""DESIGN, invariant 6: the memory of the api does not grow with the file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from jobs.blobs import bytes_of
from tests.api.finished_job import queued_job
from tests.api.live_api import Api, api
from tests.servers import embedded_servers

MiB = 2**20
SIZE = 512 * MiB
ALLOWED_RISE = 64 * MiB


@contextmanager
def watched_memory(process_api: Api) -> Iterator[list[int]]:
    """Collect the resident memory of the api, twenty times a second."""
    seen = [process_api.process.memory_info().rss]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            seen.append(process_api.process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def a_large_file() -> Iterator[bytes]:
    block = bytes(MiB)
    yield b"PK\x03\x04" + block[4:]
    for _ in range(SIZE // MiB - 1):
        yield block


@pytest.mark.timeout(240)
def test_half_a_gibibyte_goes_up_and_down_in_constant_memory(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    for block in a_large_file():
        digest.update(block)
    # Servers of its own: what it stored goes with them.
    with (
        embedded_servers() as servers,
        api(servers, tmp_path) as started,
        httpx.Client(base_url=started.url, timeout=120) as http,
    ):
        job = queued_job(http)["id"]  # also warms the process up
        with watched_memory(started) as seen:
            headers = {"Content-Length": str(SIZE)}
            query = {"sha256": digest.hexdigest()}
            response = http.put("/models/large.pt2", content=a_large_file(), headers=headers, params=query)
        assert response.status_code == 201, response.text
        assert response.json()["size"] == SIZE
        assert rise(seen) < ALLOWED_RISE, f"the upload raised the api's memory by {rise(seen) / MiB:.0f} MiB"

        finish_with_upload(started, job, response.json()["id"], digest.hexdigest())
        received, size = hashlib.sha256(), 0
        with watched_memory(started) as seen, http.stream("GET", f"/jobs/{job}/model") as download:
            for block in download.iter_bytes(MiB):
                received.update(block)
                size += len(block)
        assert (size, received.hexdigest()) == (SIZE, digest.hexdigest())
        assert rise(seen) < ALLOWED_RISE, f"the download raised the api's memory by {rise(seen) / MiB:.0f} MiB"


def rise(seen: list[int]) -> int:
    print(f"resident memory rose from {seen[0] / MiB:.0f} by {(max(seen) - seen[0]) / MiB:.1f} MiB")
    return max(seen) - seen[0]


def finish_with_upload(started: Api, job: str, model: str, sha256: str) -> None:
    """End the job with the uploaded bytes as its result, without sending them a third time."""
    service = started.service
    token = service.clock.claim(job)
    assert token is not None
    item = service.ledger.resolve(job, token)
    assert item is not None
    attempt = service.ledger.begin(item, token, "test")
    record = {"key": bytes_of(service.ledger.read(model)), "size": SIZE, "sha256": sha256}
    artifacts = {"model": record, "masks": record, "report": record}
    assert service.ledger.publish(item, token, "succeed", attempt=attempt, result={}, artifacts=artifacts)
