"""One api process for all tests of this folder, on the session's Redis and S3; no worker runs."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api import live_api

#: Of schemathesis' own process, which tells it what there is.
collect_ignore = ["fuzz_hooks.py"]


@pytest.fixture(scope="session")
def running_api(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[live_api.Api]:
    folder = tmp_path_factory.mktemp("api")
    with live_api.api(
        {**servers, "PRUNING_S3_BUCKET": "api-tests"}, folder, max_upload_bytes=str(2**20), api_idle_seconds="2"
    ) as started:
        with httpx.Client(base_url=started.url) as client:
            live_api.wait_for(lambda: client.get("/models").status_code == 200, seconds=20, what="the bucket")
        yield started


@pytest.fixture
def http(running_api: live_api.Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running_api.url, timeout=20) as client:
        yield client
