"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, as in the worker's processes (see worker/environment.py): nobody spins while he waits, and
# the processes of the suite, with the services they start, share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
)

import filelock
import psutil

from cli.embedded import LOOPBACK, free_port
from cli.up import is_ready
from tests.servers import embedded_servers
from tests.service.live import eventually, service


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, str]]:
    """Environment variables of a real Redis and a real S3 that live as long as the test session.

    Tests that wipe or stop a server start their own with `tests.servers.embedded_servers`.
    """
    with embedded_servers() as environment:
        yield environment


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
    """A folder with the demo's trained network, calibration and validation data; the suite's processes share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits"
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "validation.npz").is_file():
            from demo.train import main

            main(folder)
    return folder


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    """What a task does to its process must not reach the tests after it: other threads give other last bits."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None and sys.modules["torch"].get_num_threads() != before:
        sys.modules["torch"].set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chaos first, which waits on clocks for a minute; then files by how many tests they have.

    This is the order in which the suite's processes take the files (xdist's own would have chaos last).
    """
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name != "test_chaos.py", -tests[item.path]))
