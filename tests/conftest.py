"""Fixtures shared by every room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import embedded_servers


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, str]]:
    """Environment variables of a real Redis and a real S3 that live as long as the test session.

    Tests that wipe or stop a server start their own with `tests.servers.embedded_servers`.
    """
    with embedded_servers() as environment:
        yield environment
