"""Play the worker, step by step; and read a stream of events as a client does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from jobs.ledger import Item
from jobs.records import Attempt
from jobs.service import Service
from pruning_core.report import Progress
from tests.api.finished_job import finish, queued_job

__all__ = ["Event", "Turn", "end", "queued_job", "stream"]


@dataclass
class Turn:
    """One attempt at one job."""

    service: Service
    job: str
    token: str = field(init=False)
    item: Item = field(init=False)
    attempt: Attempt = field(init=False)

    def __post_init__(self) -> None:
        token = self.service.clock.claim(self.job)
        assert token is not None
        item = self.service.ledger.resolve(self.job, token)
        assert item is not None
        self.token, self.item = token, item
        self.attempt = self.service.ledger.begin(item, token, "player")

    def progress(self, stage: str, fraction: float) -> None:
        self.service.clock.renew(self.job, self.token)
        self.service.clock.report(
            self.job,
            Progress(stage=stage, done=0, total=1, fraction=fraction),
            started=self.attempt.started_at.timestamp(),
        )

    def give_back(self) -> None:
        self.service.ledger.give_back(self.job, self.attempt, "shutdown")
        self.service.clock.release(self.job, self.token)

    def fail(self) -> None:
        problem = {
            "type": "urn:pruning-service:problem:diverged",
            "title": "t",
            "status": 422,
            "detail": "It diverged.",
        }
        assert self.service.ledger.publish(self.item, self.token, "fail", attempt=self.attempt, problem=problem)
        self.service.clock.release(self.job, self.token)


def end(service: Service, job: str, folder: Path) -> None:
    """Publish a success."""
    report = folder / "report.json"
    report.write_text("{}")
    finish(service, job, report, {0.5: {"model": report, "masks": report}})


@dataclass(frozen=True)
class Event:
    name: str
    data: dict[str, Any]
    id: str


@contextmanager
def stream(http: httpx.Client, job: str, last: str | None = None) -> Iterator[Iterator[Event]]:
    headers = {} if last is None else {"Last-Event-ID": last}
    with http.stream("GET", f"/jobs/{job}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events(response.iter_lines())


def events(lines: Iterator[str]) -> Iterator[Event]:
    found: dict[str, str] = {}
    for line in lines:
        if line == "":
            if "data" in found:
                yield Event(found["event"], json.loads(found["data"]), found["id"])
            found = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            found[name] = value
