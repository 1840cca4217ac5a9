"""Who is answered: DNS rebinding, requests across sites, other machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from api.guard import Guard
from api.settings import ApiSettings
from jobs.keys import Keys
from tests.api.live_api import Api, api, problem, zip_bytes


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST.", "a.localhost"])
def test_loopback_names_are_answered(http: httpx.Client, host: str) -> None:
    assert http.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "user@localhost", "localhost/x"]
)
def test_other_names_are_refused(http: httpx.Client, host: str) -> None:
    problem(http.get("/jobs", headers={"Host": host}), 421, "unknown-host")


def test_a_page_of_another_origin_changes_nothing(http: httpx.Client, running_api: Api) -> None:
    data = zip_bytes(10)
    for origin in ("https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example"):
        problem(http.post("/models", content=data, headers={"Origin": origin}), 403, "foreign-origin")
    problem(http.post("/models", content=data, headers={"Sec-Fetch-Site": "cross-site"}), 403, "foreign-origin")
    assert http.put("/models", content=data, headers={"Origin": running_api.url}).status_code == 201
    assert http.get("/jobs", headers={"Origin": "https://evil.example"}).status_code == 200


def test_no_answer_may_be_read_by_another_origin(http: httpx.Client) -> None:
    response = http.get("/jobs", headers={"Origin": "https://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_names_and_origins_can_be_allowed(servers: dict[str, str], tmp_path: Path) -> None:
    with (
        api(
            servers,
            tmp_path,
            api_allowed_hosts="prune.example, Other.example",
            api_allowed_origins="https://ui.example",
            api_host="0.0.0.0",
            api_keys="required",
        ) as started,
        httpx.Client(base_url=started.url) as client,
    ):
        _, token = Keys(started.service.bucket, started.service.clock).create("default", "k", "write", by="test")
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.get("/healthz", headers={"Host": "other.example:443"}).status_code == 200
        problem(client.get("/healthz", headers={"Host": "evil.example"}), 421, "unknown-host")
        response = client.post("/jobs", content=b"{", headers={"Origin": "https://ui.example"})
        problem(response, 400, "malformed-request")


def test_it_does_not_listen_to_the_world_without_being_told() -> None:
    environment = {**os.environ, "PRUNING_API_HOST": "0.0.0.0", "PRUNING_API_PORT": "0"}
    done = subprocess.run([sys.executable, "-m", "api"], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "PRUNING_API_KEYS=required" in done.stderr


@pytest.mark.parametrize(
    ("peer", "keys", "status"),
    [
        ("127.0.0.1", "none", 204),
        ("::ffff:127.0.0.1", "none", 204),
        ("192.168.1.7", "none", 403),
        ("192.168.1.7", "required", 204),
    ],
)
def test_other_machines_are_refused_even_if_uvicorn_was_bound_to_all(
    peer: str, keys: Literal["none", "required"], status: int
) -> None:
    import anyio

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing to read")

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"localhost")],
        "client": (peer, 5),
    }
    anyio.run(Guard(inner, ApiSettings(keys=keys)), scope, receive, send)
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-For": "192.0.2.1"}, 403),
        ({"X-Forwarded-For": "127.0.0.1"}, 200),
        ({"X-Real-IP": "192.0.2.1"}, 403),
        ({"X-Real-IP": "127.0.0.1"}, 200),
        ({"Forwarded": "for=192.0.2.60;proto=http;by=203.0.113.43"}, 403),
        ({"Forwarded": 'for=127.0.0.1, For="[2001:db8::17]:4711"'}, 403),
        ({"Forwarded": 'for="[::1]:4711";host=x'}, 200),
        ({"Forwarded": "for=unknown"}, 403),
        ({"Forwarded": "proto=https"}, 200),
    ],
)
def test_a_proxy_here_does_not_let_other_machines_in_without_keys(
    http: httpx.Client, headers: dict[str, str], status: int
) -> None:
    response = http.get("/jobs", headers=headers)
    assert response.status_code == status
    if status == 403:
        assert "PRUNING_API_KEYS" in problem(response, 403, "remote-refused")["advice"]
