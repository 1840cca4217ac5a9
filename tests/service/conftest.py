"""The whole service, as `make up` runs it, for tests that use it over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.embedded import LOOPBACK, free_port
from cli.up import is_ready
from tests.service.live import eventually, service


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Base URL and process id of a running service; `live` has the URL alone."""
    port = free_port()
    with service(tmp_path_factory.mktemp("live"), port) as up:
        eventually(lambda: is_ready(port), 90, "the service is ready")
        yield f"http://{LOOPBACK}:{port}", up.pid


@pytest.fixture(scope="session")
def live(running: tuple[str, int]) -> str:
    """Base URL of a running service: real Redis, S3, uvicorn, and Celery workers, one per test session."""
    return running[0]


@pytest.fixture
def operator(running: tuple[str, int]) -> dict[str, str]:
    """The settings of that service's api: what its operator has in the environment."""
    parts = psutil.Process(running[1]).children()
    (api,) = (part for part in parts if part.cmdline()[-2:] == ["-m", "api"])
    return {name: value for name, value in api.environ().items() if name.startswith("PRUNING_")}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's trained network, calibration and validation data."""
    from demo.train import main

    folder = tmp_path_factory.mktemp("digits")
    main(folder)
    return folder
