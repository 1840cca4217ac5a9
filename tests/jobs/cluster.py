"""A whole service without the api: real Redis, real S3, real Celery workers, each of which a test may kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cli.embedded import Keys, Part, free_port, nanio, service_environment, valkey, wait_for
from jobs.records import JobView
from jobs.service import Service
from jobs.settings import Settings
from jobs.states import ENDED

#: Short times, so that recovery is quick to watch.
FAST = {
    "PRUNING_LEASE_SECONDS": "3",
    "PRUNING_HEARTBEAT_SECONDS": "0.4",
    "PRUNING_RECONCILE_SECONDS": "0.4",
    "PRUNING_REDIS_TIMEOUT": "1",
    "PRUNING_SHUTDOWN_SECONDS": "10",
    "PRUNING_LOG_FORMAT": "text",
    "OMP_NUM_THREADS": "1",
}


def settings_from(environment: dict[str, str], **more: Any) -> Settings:
    """Settings as these variables say, whatever the environment of the test run has."""
    prefix = "PRUNING_"
    known = {n.removeprefix(prefix).lower(): v for n, v in environment.items() if n.startswith(prefix)}
    return Settings(**{**known, **more})


def eventually(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


class Cluster:
    """Servers and workers on loopback, under one folder."""

    def __init__(self, folder: Path, in_front_of_s3: Callable[[int], int] = lambda port: port) -> None:
        """Start the servers.

        Args:
            folder: Holds all they store, and every log.
            in_front_of_s3: Port of the S3 server -> port that the service is told; tests put a proxy between.
        """
        self.folder = folder
        self.keys = Keys.of(folder)
        self.redis_port, self.s3_port = free_port(), free_port()
        self.environment = {
            **service_environment(self.keys, redis_port=self.redis_port, s3_port=in_front_of_s3(self.s3_port)),
            **FAST,
            "PRUNING_WORK_DIR": str(folder / "work"),
        }
        self.settings = settings_from(self.environment)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._hand: subprocess.Popen[bytes] | None = None
        self.redis = self.start_redis()
        self.s3 = self.start_s3()
        self.service = Service(self.settings)
        self.service.bucket.ensure()

    # -- servers ---------------------------------------------------------------------------------------------------

    def start_redis(self) -> subprocess.Popen[bytes]:
        self.redis = self._start(valkey(self.folder, self.keys, self.redis_port))
        return self.redis

    def stop_redis(self) -> None:
        self.redis.kill()
        self.redis.wait()

    def wipe_redis(self, seconds_down: float = 0.0) -> None:
        """Kill Redis, delete all it knew, start it again on the same port."""
        self.stop_redis()
        shutil.rmtree(self.folder / "redis")
        time.sleep(seconds_down)
        self.start_redis()

    def start_s3(self) -> subprocess.Popen[bytes]:
        self.s3 = self._start(nanio(self.folder, self.keys, self.s3_port))
        return self.s3

    def stop_s3(self) -> None:
        self.s3.kill()
        self.s3.wait()

    def _start(self, part: Part) -> subprocess.Popen[bytes]:
        process = self._spawn(part.command, part.environment, part.name)
        wait_for(part.ready, seconds=30, what=part.name)
        return process

    # -- workers ---------------------------------------------------------------------------------------------------

    def start_worker(
        self, name: str, *, app: str = "worker.app", queues: str = "jobs,inspections", **environment: str
    ) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queues, "-c", "1")
        options = ("-n", f"{name}@test", "--loglevel", "INFO", "--without-gossip", "--without-mingle")
        self._workers.append(self._spawn((*command, *options), {**self.environment, **environment}, name))
        return self._workers[-1]

    @contextmanager
    def worker(self, name: str, **options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that is stopped at the end of the block, if it still runs."""
        process = self.start_worker(name, **options)
        try:
            yield process
        finally:
            self._end(process)

    def hand(self) -> subprocess.Popen[bytes]:
        """A living worker that tests share, to save its start; a test that ends it just asks for the next."""
        if self._hand is None or self._hand.poll() is not None:
            self._hand = self.start_worker("hand")
        return self._hand

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def kill(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """SIGKILL the worker's main process and nothing else; return what it had started."""
        family = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        worker.wait()
        return family

    # -- jobs ------------------------------------------------------------------------------------------------------

    def wait(self, job: str, seconds: float = 60, until: Callable[[JobView], bool] | None = None) -> JobView:
        def reached() -> JobView | None:
            view = self.service.get_job(job)
            assert view is not None
            return view if (until(view) if until else view.state in ENDED) else None

        view: JobView = eventually(reached, seconds, f"{job} {'as wanted' if until else 'ended'}")
        return view

    def model_bytes(self, job: str, sparsity: float | None = None) -> bytes:
        stored = self.service.artifact(job, "model", sparsity)
        return b"".join(self.service.bucket.open(stored.key)[1])

    def keys_of(self, job: str) -> list[str]:
        return list(self.service.bucket.list(f"jobs/{job}/"))

    # -- end -------------------------------------------------------------------------------------------------------

    def _spawn(self, command: tuple[str, ...], environment: dict[str, str], name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what was started: workers first."""
        self.service.close()
        self._end(*self._workers)
        self._end(*reversed(self._processes))

    def _end(self, *processes: subprocess.Popen[bytes]) -> None:
        """SIGTERM to all at once, for a worker takes seconds to leave its queue; then wait for each."""
        alive = [process for process in processes if process.poll() is None]
        family = [child for process in alive for child in psutil.Process(process.pid).children(recursive=True)]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        for process in alive:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in psutil.wait_procs(family, timeout=5)[1]:
            child.kill()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    running = Cluster(folder)
    try:
        yield running
    finally:
        running.close()
