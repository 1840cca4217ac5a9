"""One api for all tests of this folder, a proxy before it and one before its S3 server; tests play the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from client import AsyncClient, Client, Retry
from jobs.ids import new_ulid
from jobs.keys import Keys
from tests.api import live_api
from tests.client.between import Between, between

QUICK = Retry(seconds=20, first_pause=0.02, longest_pause=0.1)


@pytest.fixture(scope="session")
def before_s3(servers: dict[str, str]) -> Iterator[Between]:
    port = urlsplit(servers["PRUNING_S3_ENDPOINT"]).port
    assert port is not None
    with between(port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def client_api(
    servers: dict[str, str], before_s3: Between, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[live_api.Api]:
    environment = {**servers, "PRUNING_S3_BUCKET": f"client-{new_ulid().lower()}"}
    more = {"s3_public_endpoint": before_s3.url, "api_stream_beat_seconds": "0.3", "api_rate_burst": "100000"}
    with live_api.api(environment, tmp_path_factory.mktemp("client"), api_keys="required", **more) as started:
        started.service.bucket.ensure()
        yield started


@pytest.fixture(scope="session")
def token(client_api: live_api.Api) -> str:
    """An API key: without one nothing is answered."""
    return Keys(client_api.service.bucket, client_api.service.clock).create("default", "tests", "write", by="test")[1]


@pytest.fixture
def proxy(client_api: live_api.Api) -> Iterator[Between]:
    """A proxy of this test's own before the api."""
    port = urlsplit(client_api.url).port
    assert port is not None
    with between(port) as started:
        yield started


@pytest.fixture
def parts_proxy(before_s3: Between) -> Iterator[Between]:
    before_s3.faults.clear()
    before_s3.requests.clear()
    before_s3.heads.clear()
    yield before_s3
    before_s3.faults.clear()


class Waiting:
    """`AsyncClient` with the face of `Client`: each call runs to its end in an event loop of its own."""

    def __init__(self, backend: str, *arguments: Any, **more: Any) -> None:
        self._backend, self._make = backend, partial(AsyncClient, *arguments, **more)

    def __repr__(self) -> str:
        return repr(self._make())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **more: Any) -> Any:
            async with self._make() as client:
                result = getattr(client, name)(*arguments, **more)
                if hasattr(result, "__aiter__"):
                    return iter([item async for item in result])
                return await result

        def run(*arguments: Any, **more: Any) -> Any:
            return anyio.run(partial(call, *arguments, **more), backend=self._backend)

        return run


Make = Callable[..., Client]


@pytest.fixture(params=["sync", "asyncio"])
def make(request: pytest.FixtureRequest, token: str) -> Iterator[Make]:
    """Makes a client: the one contract holds for both."""
    opened: list[Client] = []

    def made(url: str, key: str | None = token, retry: Retry = QUICK) -> Any:
        if request.param != "sync":
            return Waiting(request.param, url, key, retry=retry)
        opened.append(Client(url, key, retry=retry))
        return opened[-1]

    yield made
    for client in opened:
        client.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a small model and data; only their first bytes are right."""
    (tmp_path / "net.pt2").write_bytes(live_api.zip_bytes(5000))
    (tmp_path / "data.npz").write_bytes(live_api.zip_bytes(300))
    return tmp_path
