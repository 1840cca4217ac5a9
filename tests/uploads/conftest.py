"""Fixtures: a fresh service on the session's Redis, and on each of the S3 servers in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.service import Service
from jobs.settings import Settings
from tests.jobs.conftest import SERVERS, moto_endpoint, on_server, settings

__all__ = ["moto_endpoint", "settings"]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Which S3 server."""
    return str(request.param)


@pytest.fixture
def service(server: str, request: pytest.FixtureRequest, settings: Settings) -> Iterator[Service]:
    service = Service(on_server(server, settings, request))
    service.clock.redis.flushdb()
    service.bucket.ensure()
    yield service
    service.close()


@pytest.fixture
def hasty(service: Service) -> Iterator[Service]:
    """The same service, for which everything unfinished is abandoned at once."""
    hasty = Service(service.settings.model_copy(update={"abandoned_seconds": 1e-9}))
    yield hasty
    hasty.close()


@pytest.fixture
def without_redis(service: Service) -> Iterator[Service]:
    down = Service(service.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))
    yield down
    down.close()
