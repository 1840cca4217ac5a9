"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before torch is imported, as in the worker's processes (see worker/environment.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.servers import embedded_servers


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, str]]:
    """Environment variables of a real Redis and a real S3 that live as long as the test session.

    Tests that wipe or stop a server start their own with `tests.servers.embedded_servers`.
    """
    with embedded_servers() as environment:
        yield environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what waits on real clocks first: with several processes the rest fills the gaps, not the end."""
    items.sort(key=lambda item: "tests/service" not in item.path.as_posix())
