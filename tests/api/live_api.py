"""A real uvicorn process for tests, and what they ask of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil

from cli.embedded import LOOPBACK, answers, free_port, wait_for
from jobs.service import Service
from jobs.settings import Settings
from pruning_core.errors import PROBLEM_TYPE


@dataclass(frozen=True, kw_only=True)
class Api:
    """One running api process."""

    url: str
    environment: dict[str, str]
    process: psutil.Process
    log: Path

    @cached_property
    def service(self) -> Service:
        """The same use cases, in this process: to play the worker, and to look into the bucket."""
        return Service(self.settings)

    @property
    def settings(self) -> Settings:
        names = {name.removeprefix("PRUNING_").lower(): value for name, value in self.environment.items()}
        return Settings(**{name: value for name, value in names.items() if name in Settings.model_fields})


@contextmanager
def api(servers: dict[str, str], folder: Path, **settings: str) -> Iterator[Api]:
    """Run ``python -m api`` on a free port; keywords become further PRUNING_ variables."""
    port = free_port()
    environment = {**servers, "PRUNING_API_PORT": str(port)}
    environment |= {f"PRUNING_{name.upper()}": value for name, value in settings.items()}
    log = folder / f"api-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            env={**os.environ, **environment},
            stdout=out,
            stderr=out,
        )
    try:
        wait_for(lambda: answers(port) or process.poll() is not None, seconds=30, what="the api")
        assert process.poll() is None, log.read_text()
        url, watched = f"http://{LOOPBACK}:{port}", psutil.Process(process.pid)
        started = Api(url=url, environment=environment, process=watched, log=log)
        try:
            yield started
        finally:
            if "service" in started.__dict__:
                started.service.close()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """Assert that this is that problem document, and that it says what a person needs; return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == PROBLEM_TYPE + slug, document
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return document


def zip_bytes(size: int = 10_000, name: str = "archive/data") -> bytes:
    """A sound zip archive with incompressible content."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, os.urandom(size))
    return out.getvalue()


def safetensors_bytes(size: int = 64) -> bytes:
    """A sound safetensors file with one float32 tensor."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)
