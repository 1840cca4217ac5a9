"""Fixtures: a fresh service on the session's real Redis and S3, and the bucket on two different S3 servers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded import LOOPBACK, answers, free_port, wait_for
from jobs.bucket import Bucket
from jobs.ids import new_ulid
from jobs.service import Service
from jobs.settings import Settings
from tests.jobs.cluster import FAST, settings_from
from tests.servers import own_database


@pytest.fixture
def settings(servers: dict[str, str], tmp_path: Path) -> Settings:
    # A Redis database and a bucket of its own: other tests use the same servers.
    return settings_from(
        {**own_database(servers, 7), **FAST},
        s3_bucket=f"test-{new_ulid().lower()}",
        work_dir=tmp_path / "work",
        max_upload_bytes=40 * 2**20,
    )


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    service = Service(settings)
    service.clock.redis.flushdb()
    service.bucket.ensure()
    yield service
    service.close()


@pytest.fixture(scope="session")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second S3 server, of other make: it honours If-None-Match, and lists as S3 does."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", LOOPBACK, "-p", str(port)]
    with (tmp_path_factory.mktemp("moto") / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
    try:
        wait_for(lambda: answers(port), seconds=30, what="moto")
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.terminate()
        process.wait(10)


#: A third one, that somebody runs: TEST_S3_ENDPOINT, and if it looks at keys TEST_S3_ACCESS_KEY, TEST_S3_SECRET_KEY.
SERVERS = ["nanio", "moto", *(["other"] if "TEST_S3_ENDPOINT" in os.environ else [])]


def on_server(server: str, settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The settings, with another S3 server."""
    if server == "nanio":
        return settings
    if server == "moto":
        return settings.model_copy(update={"s3_endpoint": request.getfixturevalue("moto_endpoint")})
    names = ("endpoint", "access_key", "secret_key")
    given = {f"s3_{name}": os.environ.get(f"TEST_S3_{name.upper()}") for name in names}
    return settings.model_copy(update={name: value for name, value in given.items() if value is not None})


@pytest.fixture(params=SERVERS)
def bucket(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Bucket]:
    settings = on_server(request.param, settings, request)
    bucket = Bucket(settings)
    bucket.ensure()
    yield bucket
    bucket.close()
