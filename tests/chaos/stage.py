"""The real service, each part of which may be killed at any moment and comes back, as under `cli.up`."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from cli.embedded import LOOPBACK, free_port
from jobs.records import JobView
from jobs.service import Service
from tests.chaos.proxy import S3Proxy
from tests.jobs.cluster import FAST, Cluster, settings_from

_ALWAYS = {
    # A job may be struck more often than a user's: what is asked here is whether its bytes are right in the end.
    "PRUNING_MAX_ATTEMPTS": "50",
    "OMP_NUM_THREADS": "1",
    # The disk is small, to be filled.
    "PRUNING_MIN_FREE_BYTES": str(64 * 2**20),
    # The harness listens for webhooks, on loopback and without TLS.
    **{"PRUNING_WEBHOOK_ALLOW_HTTP": "true", "PRUNING_WEBHOOK_NETWORKS": "127.0.0.0/8"},
    "PRUNING_WEBHOOK_SCHEDULE": "0, 1, 2, 5, 5, 5, 5, 5",
}
#: The defaults; to be measured by.
AS_DEPLOYED = {
    **{"PRUNING_LEASE_SECONDS": "10", "PRUNING_HEARTBEAT_SECONDS": "2", "PRUNING_RECONCILE_SECONDS": "2"},
    **{"PRUNING_REDIS_TIMEOUT": "2", "PRUNING_SHUTDOWN_SECONDS": "20"},
    **_ALWAYS,
}
#: For a run of a minute: leases that run out soon.
QUICK = {**FAST, **_ALWAYS}


class Stage(Cluster):
    """Redis, S3 behind a proxy, one api, several workers; a thread starts again what died."""

    def __init__(self, folder: Path, *, workers: int, seed: int, settings: dict[str, str]) -> None:
        self.proxy = S3Proxy(upstream=0, seed=seed)

        def in_front(port: int) -> int:
            self.proxy.upstream = port
            self.proxy.start()
            return self.proxy.port

        super().__init__(folder, in_front)
        self.api_port = free_port()
        self.url = f"http://{LOOPBACK}:{self.api_port}"
        self.environment |= {**settings, "PRUNING_API_PORT": str(self.api_port), "PRUNING_API_HOST": LOOPBACK}
        self.settings = settings_from(self.environment)
        # What the watcher sees must not depend on what is done to the service's own way to the bucket.
        self.direct = Service(self.settings.model_copy(update={"s3_endpoint": f"http://{LOOPBACK}:{self.s3_port}"}))
        self._start_part: dict[str, Callable[[], subprocess.Popen[bytes]]] = {
            "api": lambda: self._spawn((sys.executable, "-m", "api"), self.environment, "api")
        }
        for n in range(workers):
            name = f"w{n}"
            self._start_part[name] = lambda name=name: self.start_worker(name)  # type: ignore[misc]
        self.parts = {name: start() for name, start in self._start_part.items()}
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    @property
    def workers(self) -> dict[str, subprocess.Popen[bytes]]:
        return {name: process for name, process in self.parts.items() if name != "api"}

    def _keep(self) -> None:
        while not self._closing.wait(0.2):
            for name, process in list(self.parts.items()):
                if process.poll() is not None:
                    self._processes.remove(process)
                    self.parts[name] = self._start_part[name]()

    # -- what can be seen ------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def alive(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        return False

    def running(self, jobs: list[str]) -> list[JobView]:
        """Those of the jobs that a worker works on."""
        views = (self.direct.get_job(job) for job in jobs)
        return [view for view in views if view is not None and view.state == "running"]

    def pool_children(self, worker: str) -> list[psutil.Process]:
        """The processes that supervise: children of the worker's main process."""
        with suppress(psutil.NoSuchProcess):
            return [p for p in psutil.Process(self.parts[worker].pid).children() if "celery" in " ".join(p.cmdline())]
        return []

    def pruning_processes(self, worker: str) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """The fork servers of a worker, and what they forked."""
        servers, forks = [], []
        for supervisor in self.pool_children(worker):
            with suppress(psutil.NoSuchProcess):
                for server in supervisor.children():
                    servers.append(server)
                    forks += server.children()
        return servers, forks

    def left_over(self) -> list[str]:
        """Scratch folders of attempts."""
        return [path.name for path in (self.folder / "work").glob("attempt-*")]

    # -- faults that take time -------------------------------------------------------------------------------------

    def redis_away(self, seconds: float, *, wipe: bool) -> None:
        self.stop_redis()
        if wipe:
            shutil.rmtree(self.folder / "redis")
        time.sleep(seconds)
        self._processes.remove(self.redis)
        self.start_redis()

    def s3_away(self, seconds: float) -> None:
        self.stop_s3()
        time.sleep(seconds)
        self._processes.remove(self.s3)
        self.start_s3()

    def s3_slow(self, latency: float, seconds: float) -> None:
        self.proxy.latency = latency
        time.sleep(seconds)
        self.proxy.latency = 0.0

    def s3_failing(self, rate: float, seconds: float) -> None:
        self.proxy.error_rate = rate
        time.sleep(seconds)
        self.proxy.error_rate = 0.0

    def deliver_again(self, jobs: list[str], rng: random.Random) -> int:
        """Send messages for jobs that have one, a worker, or an outcome already."""
        sent = 0
        for job in rng.sample(jobs, min(8, len(jobs))):
            self.direct.clock.unhint(job)
            sent += self.direct.queue.enqueue(job)
        return sent

    def fill_disk(self, seconds: float) -> None:
        """Leave no byte on the file system that holds the bucket, Redis' file and the scratch space."""
        filler = self.folder / "filler"
        free = shutil.disk_usage(self.folder).free
        assert free < 2 * 2**30, "this is no file system of its own"
        try:
            with filler.open("wb", buffering=0) as file:
                with suppress(OSError):
                    while True:
                        file.write(bytes(2**20))
                with suppress(OSError):
                    while True:
                        file.write(bytes(512))
            time.sleep(seconds)
        finally:
            filler.unlink(missing_ok=True)

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        self.direct.close()
        super().close()
        self.proxy.stop()
