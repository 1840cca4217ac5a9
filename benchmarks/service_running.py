"""The service's processes, as a benchmark needs them: on loopback, with the ports known."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from cli.embedded import LOOPBACK, Keys, answers, free_port, nanio, service_environment, valkey, wait_for
from jobs.service import Service
from jobs.settings import Settings


class Running:
    """Redis and the S3 server from the beginning; api and worker when they are asked for."""

    def __init__(self, folder: Path) -> None:
        keys = Keys.of(folder)
        self.folder, self.s3_port, self.port = folder, free_port(), free_port()
        redis = free_port()
        self.environment = {
            **service_environment(keys, redis_port=redis, s3_port=self.s3_port),
            "PRUNING_WORK_DIR": str(folder / "work"),
            "PRUNING_API_PORT": str(self.port),
            # The rebuild of the list from the bucket is measured by itself.
            "PRUNING_RESCAN_SECONDS": "86400",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        for part in (valkey(folder, keys, redis), nanio(folder, keys, self.s3_port)):
            self.start(part.command, part.environment, part.name)
            wait_for(part.ready, seconds=30, what=part.name)
        fields = Settings.model_fields
        known = {name.removeprefix("PRUNING_").lower(): value for name, value in self.environment.items()}
        self.settings = Settings(**{name: value for name, value in known.items() if name in fields})
        self.service = Service(self.settings)
        self.service.bucket.ensure()

    def start(self, command: tuple[str, ...], environment: dict[str, str], name: str) -> None:
        """Start one more process, to be ended by `close`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        self._processes.append(process)

    def start_api(self) -> None:
        """Start the api, and wait until it listens."""
        self.start((sys.executable, "-m", "api"), self.environment, "api")
        wait_for(lambda: answers(self.port), seconds=60, what="the api")

    def start_worker(self) -> None:
        """Start one worker for both queues, and wait until the service is ready."""
        command = (sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-Q", "jobs,inspections", "-c", "1")
        self.start((*command, "--without-gossip", "--without-mingle"), self.environment, "worker")
        client = httpx.Client(base_url=f"http://{LOOPBACK}:{self.port}")
        wait_for(lambda: client.get("/readyz").status_code == 200, seconds=60, what="the worker")

    def close(self) -> None:
        """End everything, the last one first."""
        self.service.close()
        for process in reversed(self._processes):
            process.terminate()
            process.wait(60)


@contextmanager
def running() -> Iterator[Running]:
    """Run it in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-service-", ignore_cleanup_errors=True) as folder:
        service = Running(Path(folder))
        try:
            yield service
        finally:
            service.close()
