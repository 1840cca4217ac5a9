"""One cluster and one api for all tests of this folder; tests play the worker. Redis may be killed and wiped."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api import live_api
from tests.jobs.cluster import Cluster, cluster, eventually


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("events")) as started:
        yield started


@pytest.fixture(scope="session")
def api(running: Cluster) -> Iterator[live_api.Api]:
    with live_api.api(running.environment, running.folder, api_stream_beat_seconds="0.3", log_format="json") as started:
        with httpx.Client(base_url=started.url) as client:
            eventually(lambda: client.get("/models").status_code == 200, 20, "the bucket")
        yield started


@pytest.fixture
def http(api: live_api.Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, timeout=30) as client:
        yield client
