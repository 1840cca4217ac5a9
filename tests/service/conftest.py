"""The whole service, as `make up` runs it, for tests that use it over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded import LOOPBACK, free_port
from cli.up import is_ready
from tests.service.live import eventually, service


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a running service: real Redis, S3, uvicorn, and Celery workers, one per test session."""
    port = free_port()
    with service(tmp_path_factory.mktemp("live"), port):
        eventually(lambda: is_ready(port), 90, "the service is ready")
        yield f"http://{LOOPBACK}:{port}"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's trained network, calibration and validation data."""
    from demo.train import main

    folder = tmp_path_factory.mktemp("digits")
    main(folder)
    return folder
