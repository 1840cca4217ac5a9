"""The service under load, beside what it is built from in the same run: polling, listing, transfers, jobs.

Baselines: a FastAPI route that returns a fixed document, boto3 on the same S3 server, `pruning_core.prune` on the same
work in a process that has imported everything. All on loopback, with the embedded Redis and S3 server.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from benchmarks.http_load import Load, load
from benchmarks.service_page import CONNECTIONS, FILE_BYTES, POLLED_JOBS, SECONDS, markdown
from benchmarks.service_running import Running, running
from cli.embedded import LOOPBACK, answers, free_port, wait_for
from demo.train import main as train
from jobs import index, layout
from jobs.ids import new_id
from jobs.records import now
from pruning_core import Recipe, prune, read_dataset, read_model, write_model
from pruning_core.calibration import bind
from pruning_core.pipeline import finish

__all__ = ["markdown", "run"]

LISTED_JOBS = (1_000, 10_000, 100_000)
ROUNDS = 3
_MANY_STAGES = [round(0.3 + 0.0068 * n, 4) for n in range(100)]
#: About a second, and about a minute, on the demo's CNN with one thread.
WORK: dict[str, dict[str, Any]] = {
    "short": {"select": {"algorithm": "chita", "sparsity": 0.9, "structure": "block", "ridge": 0.01, "swaps": 0}},
    "long": {"select": {"algorithm": "gradual", "sparsity": 0.98, "passes": 20, "stages": _MANY_STAGES}},
}


def run() -> dict[str, Any]:
    """Measure everything."""
    with running() as service:
        service.start_api()
        found = {"transfers": transfers(service), "jobs": jobs(service)}
    with running() as service:
        service.start_api()
        ids: list[str] = []
        listing = []
        polling: dict[str, Any] = {}
        for count in LISTED_JOBS:
            store(service, ids, count - len(ids))
            if count == POLLED_JOBS:
                polling = poll(service, ids)
                polling["rebuild"] = timed(service.service.index.rebuild)
            listing.append((count, lists(service)))
    return {**found, "listing": listing, "polling": polling}


# -- polling and listing -----------------------------------------------------------------------------------------------


def store(service: Running, ids: list[str], count: int) -> None:
    """Put jobs that have ended where the service looks for them; one in a thousand failed.

    The documents go straight into the S3 server's folder: it takes a file there for an object.
    """
    root = service.folder / "s3" / service.settings.s3_bucket
    new = [new_id("job") for _ in range(count)]
    for number, job in enumerate(new):
        failed = number % 1000 == 0
        folder = root / layout.prefix(job)
        folder.mkdir(parents=True)
        request, outcome = documents(job, failed=failed)
        (root / layout.request(job)).write_text(json.dumps(request))
        (root / layout.outcome(job)).write_text(json.dumps(outcome))
    redis = service.service.clock.redis
    for start in range(0, count, 1000):
        with redis.pipeline() as pipe:
            for job in new[start : start + 1000]:
                pipe.zadd(index._ALL + "job", {job: 0})
            pipe.execute()
    redis.set(index._COMPLETE, service.service.clock.run_id())
    redis.set(index._FRESH, "1")
    ids += new


def documents(job: str, *, failed: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return request and outcome of a job as a real one has them."""
    request = {
        "id": job,
        "kind": "job",
        "created_at": now(),
        "model": new_id("model"),
        "calibration": new_id("dataset"),
        "validation": None,
        "recipe": Recipe.parse(WORK["short"]).model_dump(mode="json"),
        "labels": {"team": "vision", "commit": "0" * 40},
    }
    attempt = {"number": 1, "worker": "w@host", "started_at": now(), "token": "0" * 26}
    quality = {"accuracy": 0.98, "loss": 0.1, "samples": 540}
    level = {"sparsity": 0.9, "sparsity_measured": 0.9, "pattern_holds": True, "fell_back": False, "quality": quality}
    outcome = {
        "state": "failed" if failed else "succeeded",
        "started_at": now(),
        "ended_at": now(),
        "attempt": 1,
        "attempts": [attempt],
        **({"problem": {"type": "about:blank", "title": "Failed", "status": 422}} if failed else {}),
        **({} if failed else {"result": {"algorithm": "chita", "levels": [level], "dense": quality}}),
    }
    return request, outcome


def poll(service: Running, ids: list[str]) -> dict[str, Any]:
    """Poll jobs at random, beside a bare route that returns one of them; the two alternate."""
    sample = httpx.get(f"http://{LOOPBACK}:{service.port}/jobs/{ids[0]}")
    sample.raise_for_status()
    body = service.folder / "job.json"
    body.write_text(sample.text)
    port = free_port()
    command = (sys.executable, "-m", "uvicorn", "benchmarks.bare_api:app", "--port", str(port), "--no-access-log")
    service.start((*command, "--log-level", "warning"), {"BARE_JOB": str(body)}, "bare")
    wait_for(lambda: answers(port), seconds=30, what="the bare api")
    rng = random.Random(0)
    shuffled = [f"/jobs/{job}" for job in rng.sample(ids, len(ids))]
    first = load(service.port, cycle(shuffled), connections=CONNECTIONS, seconds=SECONDS)
    # From here on every process has seen what it will see.
    load(service.port, cycle(shuffled), connections=CONNECTIONS, seconds=2 * SECONDS)
    rounds: list[tuple[Load, Load]] = []
    for _ in range(ROUNDS):
        bare = load(port, cycle(shuffled), connections=CONNECTIONS, seconds=SECONDS / 2)
        rounds.append((load(service.port, cycle(shuffled), connections=CONNECTIONS, seconds=SECONDS / 2), bare))
    return {"first": first, "rounds": rounds}


def lists(service: Running) -> dict[str, float]:
    """Return the median milliseconds of a few kinds of ``GET /jobs``, each after a first call."""
    client = httpx.Client(base_url=f"http://{LOOPBACK}:{service.port}", timeout=120)
    first = client.get("/jobs?limit=50").raise_for_status().json()
    cursor = first["next_cursor"]
    middle = client.get(f"/jobs?limit=50&cursor={cursor}").raise_for_status().json()["next_cursor"]
    asked = {
        "newest 50": "/jobs?limit=50",
        "a later page": f"/jobs?limit=50&cursor={middle}",
        "one failed in a thousand": "/jobs?limit=50&state=failed",
        "by a label": "/jobs?limit=50&label=team=vision",
    }
    return {
        name: 1000 * statistics.median(timed(lambda path=path: client.get(path).raise_for_status()) for _ in range(7))  # type: ignore[misc]
        for name, path in asked.items()
    }


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# -- transfers ---------------------------------------------------------------------------------------------------------


def transfers(service: Running) -> dict[str, list[tuple[float, float]]]:
    """Return for each direction the seconds of the service and of boto3 alone, round by round."""
    path = service.folder / "model.zip"
    header = json.dumps({"x": {"dtype": "F32", "shape": [FILE_BYTES // 4], "data_offsets": [0, FILE_BYTES]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(FILE_BYTES // 2**20):
            file.write(os.urandom(2**20))
    s3 = boto3.client(
        "s3",
        endpoint_url=service.settings.s3_endpoint,
        region_name=service.settings.s3_region,
        aws_access_key_id=service.settings.s3_access_key,
        aws_secret_access_key=service.settings.s3_secret_key,
        config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
    )
    client = httpx.Client(base_url=f"http://{LOOPBACK}:{service.port}", timeout=600)
    job = finished(service, path)
    found: dict[str, list[tuple[float, float]]] = {"upload": [], "download": []}
    for number in range(ROUNDS):
        bare = timed(lambda: s3.upload_file(str(path), service.settings.s3_bucket, "bare"))

        def send(number: int = number) -> None:
            with path.open("rb") as file:
                # Other bytes each time: the same ones would be stored only once.
                body = cycle_head(file, number)
                client.put("/models/model.safetensors", content=body).raise_for_status()

        found["upload"].append((timed(send), bare))

        def fetch_bare() -> None:
            body = s3.get_object(Bucket=service.settings.s3_bucket, Key="bare")["Body"]
            for _ in body.iter_chunks(2**18):
                pass

        found["download"].append((timed(lambda: fetch(client, job)), timed(fetch_bare)))
    return found


def cycle_head(file: Any, number: int) -> Iterator[bytes]:
    """Yield a file with another last byte."""
    size = os.fstat(file.fileno()).st_size
    while file.tell() < size - 2**18:
        yield file.read(2**18)
    yield file.read()[:-1] + bytes([number])


def finished(service: Running, model: Path) -> str:
    """Return the id of a job that made this model."""
    job = new_id("job")
    request, outcome = documents(job, failed=False)
    stored = service.service.bucket.upload_file(layout.artifact(job, 1, "0", "model"), model)
    outcome["artifacts"] = {"levels": [{"sparsity": 0.9, "model": {"key": stored.key, "size": stored.size}}]}
    service.service.bucket.put_json(layout.request(job), request)
    service.service.bucket.put_json(layout.outcome(job), outcome)
    return job


def fetch(client: httpx.Client, job: str) -> None:
    """Download the model of a job, and throw it away."""
    with client.stream("GET", f"/jobs/{job}/model") as answer:
        answer.raise_for_status()
        for _ in answer.iter_raw(2**18):
            pass


# -- jobs --------------------------------------------------------------------------------------------------------------


def jobs(service: Running) -> dict[str, list[tuple[float, float]]]:
    """Return for each kind of work the seconds from POST to ``succeeded`` and those of the library alone."""
    folder = service.folder / "digits"
    train(folder)
    service.start_worker()
    client = httpx.Client(base_url=f"http://{LOOPBACK}:{service.port}", timeout=60)

    def send(path: str, file: Path) -> str:
        upload: str = client.put(path, content=file.read_bytes()).raise_for_status().json()["id"]
        return upload

    model = send("/models/digits.pt2", folder / "digits.pt2")
    data = send("/datasets/calibration.npz", folder / "calibration.npz")

    def library(recipe: dict[str, Any]) -> None:
        network = read_model(folder / "digits.pt2")
        pruned = finish(
            prune(network, bind(read_dataset(folder / "calibration.npz"), network.inputs), Recipe.parse(recipe))
        )
        for i, level in enumerate(pruned.levels):
            write_model(level.network, folder / "digits.pt2", folder / f"{i}.pt2")

    def through_the_service(recipe: dict[str, Any]) -> None:
        body = {"model": model, "calibration": data, "recipe": recipe}
        job = client.post("/jobs", json=body).raise_for_status().json()["id"]
        while (state := client.get(f"/jobs/{job}").json()["state"]) in ("queued", "running"):
            time.sleep(0.02)
        assert state == "succeeded", client.get(f"/jobs/{job}").text

    found: dict[str, list[tuple[float, float]]] = {}
    library(WORK["short"])
    through_the_service(WORK["short"])
    for name, recipe in WORK.items():
        found[name] = [
            (timed(lambda: through_the_service(recipe)), timed(lambda: library(recipe)))  # noqa: B023 - called at once
            for _ in range(ROUNDS)
        ]
    return found
