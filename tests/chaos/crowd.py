"""Users: they upload, submit, retry blindly after every error, cancel now and then, and remember each promise."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from jobs import layout
from jobs.ids import new_ulid
from jobs.states import ENDED
from tests.chaos.stage import Stage
from tests.events.receiver import Receiver
from tests.jobs.inputs import digits, mlpnet

_QUICK = {"structure": "block", "ridge": 0.01, "swaps": 0}
#: Name -> recipe: from well under a second to several seconds with a checkpoint for each level.
RECIPES: dict[str, dict[str, Any]] = {
    "magnitude": {"select": {"algorithm": "magnitude", "sparsity": 0.8}},
    "2:4": {"select": {"algorithm": "magnitude", "pattern": "2:4"}},
    "chita": {"select": {"algorithm": "chita", "sparsity": 0.9, **_QUICK}},
    "frontier": {"select": {"algorithm": "chita", "sparsity": [n / 10 for n in range(4, 10)], **_QUICK}},
    "sparsegpt": {"select": {"algorithm": "sparsegpt", "sparsity": 0.7}},
}
_WEIGHTS = {"magnitude": 4, "2:4": 3, "chita": 4, "frontier": 3, "sparsegpt": 2}
CANCELLED_SHARE = 0.05


@dataclass
class Promise:
    """A job that was accepted: a 2xx came."""

    job: str
    recipe: str
    cancelled: bool = False
    outcome: dict[str, Any] | None = None
    changed: bool = False


@dataclass
class Crowd:
    """Everybody who uses the service."""

    stage: Stage
    rng: random.Random
    receiver: Receiver
    promises: dict[str, Promise] = field(default_factory=dict)
    retries: int = 0
    uploads: list[str] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Upload what everybody uses, ask to be told of every end, and begin to watch."""
        hook = {"url": self.receiver.url}
        assert self.again_and_again(lambda client: client.post("/webhooks", json=hook)).status_code == 201
        self.model = self.send("models/mlpnet.safetensors", mlpnet())
        self.data = self.send("datasets/digits.npz", digits(400))
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        self._closing.set()
        self._watcher.join()

    # -- what users do ---------------------------------------------------------------------------------------------

    def again_and_again(self, call: Callable[[httpx.Client], httpx.Response], seconds: float = 180) -> httpx.Response:
        """Send a request until it is answered with other than a 5xx, as a pipeline does."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(httpx.HTTPError), httpx.Client(base_url=self.stage.url, timeout=20) as client:
                answer = call(client)
                if answer.status_code < 500:
                    return answer
                assert answer.headers["content-type"] == "application/problem+json", answer.text
            self.retries += 1
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.2)

    def send(self, path: str, content: bytes) -> str:
        answer = self.again_and_again(lambda client: client.put(f"/{path}", content=content))
        assert answer.status_code == 201, answer.text
        upload: str = answer.json()["id"]
        self.uploads.append(upload)
        return upload

    def submit(self, recipe: str, *, model: str | None = None) -> Promise:
        body = {"model": model or self.model, "calibration": self.data, "recipe": RECIPES[recipe]}
        headers = {"Idempotency-Key": new_ulid()}
        answer = self.again_and_again(lambda client: client.post("/jobs", json=body, headers=headers))
        assert answer.status_code in (200, 202), answer.text
        promise = Promise(answer.json()["id"], recipe)
        with self._guard:
            self.promises[promise.job] = promise
        return promise

    def cancel(self, promise: Promise) -> None:
        answer = self.again_and_again(lambda client: client.post(f"/jobs/{promise.job}/cancel"))
        assert answer.status_code in (202, 409), answer.text
        promise.cancelled = answer.status_code == 202

    def one_user(self, rng: random.Random) -> None:
        """Submit one job; some bring a model of their own, some change their mind."""
        model = self.send("models/mlpnet.safetensors", mlpnet()) if rng.random() < 0.1 else None
        promise = self.submit(rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0], model=model)
        if rng.random() < CANCELLED_SHARE:
            time.sleep(rng.uniform(0, 2))
            self.cancel(promise)

    def come(self, jobs: int, seconds: float) -> list[threading.Thread]:
        """Have so many users come within so many seconds; returns one thread for each."""

        def later(delay: float, rng: random.Random) -> None:
            time.sleep(delay)
            self.one_user(rng)

        threads = []
        for _ in range(jobs):
            arguments = (self.rng.uniform(0, seconds), random.Random(self.rng.random()))
            threads.append(threading.Thread(target=later, args=arguments, daemon=True))
            threads[-1].start()
        return threads

    # -- what is seen ----------------------------------------------------------------------------------------------

    def open_jobs(self) -> list[str]:
        """Accepted, and not seen to have ended."""
        with self._guard:
            return [job for job, promise in self.promises.items() if promise.outcome is None]

    def _watch(self) -> None:
        while not self._closing.wait(0.1):
            for job in self.open_jobs():
                with suppress(Exception):  # the S3 server may be away
                    self.promises[job].outcome = self.stage.direct.bucket.get_json(layout.outcome(job))

    def look_again(self) -> None:
        """Compare every outcome with what was seen first."""
        for job, promise in self.promises.items():
            now = self.stage.direct.bucket.get_json(layout.outcome(job))
            promise.changed = promise.changed or now != promise.outcome

    def digests(self, promise: Promise) -> dict[str, str]:
        """SHA-256 of the bytes of every model and masks file of a job, as they are in the bucket now."""
        assert promise.outcome is not None
        found = {}
        for level in promise.outcome["artifacts"]["levels"]:
            for name in ("model", "masks"):
                _, chunks = self.stage.direct.bucket.open(level[name]["key"])
                found[f"{name} {level['sparsity']}"] = hashlib.sha256(b"".join(chunks)).hexdigest()
        return found

    def listed(self) -> set[str]:
        """All jobs that the api lists."""
        jobs: set[str] = set()
        cursor = ""
        while True:
            path = f"/jobs?limit=200{cursor}"
            page = self.again_and_again(lambda client, path=path: client.get(path)).json()  # type: ignore[misc]
            jobs |= {entry["id"] for entry in page["items"]}
            if not page["next_cursor"]:
                return jobs
            cursor = f"&cursor={page['next_cursor']}"

    def not_told(self) -> list[str]:
        """Jobs that have ended, and no webhook said so."""
        told = {json.loads(got.body)["data"]["id"] for got in self.receiver.got}
        return [job for job, promise in self.promises.items() if promise.outcome is not None and job not in told]

    def unsettled_uploads(self) -> list[str]:
        """Accepted uploads that were never inspected."""
        states = {upload: self.stage.direct.get_upload(upload) for upload in self.uploads}
        return [upload for upload, view in states.items() if view is None or view.state not in ENDED]
