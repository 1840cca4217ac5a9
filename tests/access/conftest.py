"""Fixtures: a fresh service, and one api process that requires keys, on the session's real Redis and S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from jobs.keys import Keys, Scope
from tests.api import live_api
from tests.jobs.conftest import service, settings

__all__ = ["service", "settings"]

Calling = Callable[..., httpx.Client]


@pytest.fixture(scope="session")
def guarded(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[live_api.Api]:
    """An api that requires keys; no worker runs."""
    folder = tmp_path_factory.mktemp("guarded")
    with live_api.api(
        {**servers, "PRUNING_S3_BUCKET": "access-tests"}, folder, api_keys="required", api_failures_burst="10000"
    ) as started:
        started.service.bucket.ensure()
        yield started


@pytest.fixture(scope="session")
def keys(guarded: live_api.Api) -> Keys:
    return Keys(guarded.service.bucket, guarded.service.clock)


@pytest.fixture(scope="session")
def client_of(guarded: live_api.Api, keys: Keys) -> Iterator[Calling]:
    """Makes clients: of a tenant and a scope, each with a key of its own."""
    clients: dict[tuple[str, Scope], httpx.Client] = {}

    def client(tenant: str, scope: Scope = "write") -> httpx.Client:
        if (tenant, scope) not in clients:
            _, token = keys.create(tenant, "test", scope, by="test")
            headers = {"Authorization": f"Bearer {token}"}
            clients[tenant, scope] = httpx.Client(base_url=guarded.url, timeout=20, headers=headers)
        return clients[tenant, scope]

    yield client
    for made in clients.values():
        made.close()
