"""What is done to the service, when, and how long it takes to recover."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import psutil

from jobs.records import JobView
from tests.chaos.stage import Stage

Kind = Literal[
    "worker killed",
    "supervisor killed",
    "pruning process killed",
    "fork server killed",
    "worker stopped (SIGTERM)",
    "api killed",
    "Redis killed",
    "Redis killed and wiped",
    "S3 server killed",
    "S3 slow",
    "S3 failing",
    "messages delivered again",
    "disk full",
]

#: How often each happens in a whole run, and in the short one.
WHOLE: dict[Kind, int] = {
    "worker killed": 16,
    "supervisor killed": 7,
    "pruning process killed": 12,
    "fork server killed": 5,
    "worker stopped (SIGTERM)": 6,
    "api killed": 7,
    "Redis killed": 6,
    "Redis killed and wiped": 5,
    "S3 server killed": 6,
    "S3 slow": 4,
    "S3 failing": 6,
    "messages delivered again": 6,
    "disk full": 3,
}
SHORT: dict[Kind, int] = {**dict.fromkeys(WHOLE, 1), "worker killed": 2}
#: The kinds that hit one worker, best one that has a job.
AT_A_WORKER: tuple[Kind, ...] = (
    *("worker killed", "supervisor killed", "pruning process killed", "fork server killed"),
    "worker stopped (SIGTERM)",
)
#: The kinds that end a process.
KILLS = tuple(kind for kind in WHOLE if "killed" in kind)

_PATIENCE = 120.0


@dataclass
class Strike:
    """One fault.

    Attributes:
        kind: What was done.
        held: Seconds that the harness itself kept the part away.
        job: The job that was struck, where it hits one.
        recovered: Seconds from the end of what the harness did until the job was worked on again (or had ended), or
            until the service did what it could not do; None: not (yet), or there was nothing to recover.
        watched: Whether there was something to recover.
    """

    kind: Kind
    held: float = 0.0
    job: str | None = None
    recovered: float | None = None
    watched: bool = False


def schedule(counts: dict[Kind, int], rng: random.Random) -> list[Kind]:
    """All faults in the order of the seed."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    return kinds


@dataclass
class Striker:
    """Does faults one after another, and has recoveries watched meanwhile."""

    stage: Stage
    rng: random.Random
    open_jobs: Callable[[], list[str]]
    strikes: list[Strike] = field(default_factory=list)
    _watching: list[threading.Thread] = field(default_factory=list)

    def strike(self, kind: Kind) -> Strike:
        strike = Strike(kind)
        self.strikes.append(strike)
        stage, rng = self.stage, self.rng
        if kind in AT_A_WORKER:
            self._at_a_worker(kind, strike)
            return strike
        began = time.monotonic()
        match kind:
            case "api killed":
                stage.parts["api"].kill()
                self._until(strike, stage.alive)
                return strike
            case "Redis killed":
                stage.redis_away(rng.uniform(0.2, 2), wipe=False)
            case "Redis killed and wiped":
                stage.redis_away(rng.uniform(0.2, 2), wipe=True)
            case "S3 server killed":
                stage.s3_away(rng.uniform(0.2, 2))
            case "S3 slow":
                stage.s3_slow(0.15, 3)
            case "S3 failing":
                stage.s3_failing(0.25, 3)
            case "disk full":
                stage.fill_disk(4)
            case "messages delivered again":
                stage.deliver_again(self.open_jobs(), rng)
                return strike
        strike.held = time.monotonic() - began
        self._until(strike, self._an_outcome_after(set(self.open_jobs())))
        return strike

    def wait(self) -> None:
        for thread in self._watching:
            thread.join()

    def _at_a_worker(self, kind: Kind, strike: Strike) -> None:
        """Hit a worker that has a job, if one has within a moment."""
        deadline = time.monotonic() + 5
        while not (running := self.stage.running(self.open_jobs())) and time.monotonic() < deadline:
            time.sleep(0.05)
        view = self.rng.choice(running) if running else None
        name = view.attempts[-1].worker.partition("@")[0] if view else self.rng.choice(sorted(self.stage.workers))
        strike.job = view.id if view else None
        supervisors = self.stage.pool_children(name)
        servers, forks = self.stage.pruning_processes(name)
        process = self.stage.parts[name]
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if kind == "worker killed":
                process.kill()
            elif kind == "worker stopped (SIGTERM)":
                process.send_signal(signal.SIGTERM)
            else:
                of_kind = {"supervisor killed": supervisors, "pruning process killed": forks or servers}
                for victim in of_kind.get(kind, servers):
                    os.kill(victim.pid, signal.SIGKILL)
        if view is not None:
            self._until(strike, self._taken_up_again(view))

    def _taken_up_again(self, before: JobView) -> Callable[[], bool]:
        def again() -> bool:
            view = self.stage.direct.get_job(before.id)
            return view is not None and (view.attempt > before.attempt or view.ended_at is not None)

        return again

    def _an_outcome_after(self, open_then: set[str]) -> Callable[[], bool]:
        def ended() -> bool:
            return not open_then or bool(open_then - set(self.open_jobs()))

        return ended

    def _until(self, strike: Strike, recovered: Callable[[], bool]) -> None:
        began, strike.watched = time.monotonic(), True

        def watch() -> None:
            while time.monotonic() - began < _PATIENCE:
                with suppress(Exception):
                    if recovered():
                        strike.recovered = time.monotonic() - began
                        return
                time.sleep(0.05)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        self._watching.append(thread)
