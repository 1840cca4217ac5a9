"""Keys over HTTP: how they are sent, made, rotated, revoked, and what happens when the bucket is away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import cli.keys
from api.settings import ApiSettings
from cli.embedded import free_port
from jobs.keys import Keys
from tests.access.conftest import Calling
from tests.access.test_routes import MAKERS
from tests.api.live_api import Api, api, problem, wait_for


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": "{token}"},
        {"Authorization": "{token}"},
        {"Authorization": "Basic {token}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer {token} {token}"},
        {"Authorization": "Bearer {token}x"},
        {"Cookie": "token={token}"},
    ],
)
def test_one_way_to_send_a_key(guarded: Api, keys: Keys, headers: dict[str, str]) -> None:
    _, token = keys.create("red", "test", "read", by="test")
    sent = {name: value.replace("{token}", token) for name, value in headers.items()}
    refused = httpx.get(f"{guarded.url}/jobs", headers=sent)
    problem(refused, 401, "unauthenticated")
    assert token[-20:] not in refused.text
    problem(httpx.get(f"{guarded.url}/jobs", params={"key": token, "access_token": token}), 401, "unauthenticated")
    assert httpx.get(f"{guarded.url}/jobs", headers={"authorization": f"bEARER {token}"}).status_code == 200


def test_two_keys_in_one_request_are_refused(guarded: Api, keys: Keys) -> None:
    tokens = [keys.create("red", "test", "read", by="test")[1] for _ in range(2)]
    headers = [("Authorization", f"Bearer {token}") for token in tokens]
    problem(httpx.get(f"{guarded.url}/jobs", headers=headers), 401, "unauthenticated")


def test_life_of_a_key(guarded: Api, client_of: Calling) -> None:
    admin = client_of("life", "admin")
    made = admin.post("/keys", json={"name": "ci", "scope": "write"})
    assert made.status_code == 201, made.text
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    token = key.pop("token")
    with httpx.Client(base_url=guarded.url, headers=bearer(token)) as client:
        assert client.get("/jobs").status_code == 200
        problem(client.get("/keys"), 403, "insufficient-scope")
        shown = admin.get(made.headers["location"]).json()
        assert {**shown, "last_used_at": None} == key
        assert shown["last_used_at"]
        rotated = admin.post(f"/keys/{key['id']}/rotate", params={"grace_seconds": 60}).json()
        assert rotated["id"] == key["id"]
        assert client.get("/jobs").status_code == 200, "the old secret goes on for the grace period"
        client.headers = httpx.Headers(bearer(rotated["token"]))
        assert client.get("/jobs").status_code == 200
        assert admin.post(f"/keys/{key['id']}/revoke").json()["state"] == "revoked"
        problem(client.get("/jobs"), 401, "unauthenticated")
    listed = admin.get("/keys", params={"limit": 1}).json()
    assert listed["next_cursor"] == listed["items"][0]["id"]
    rest = admin.get("/keys", params={"cursor": listed["next_cursor"]}).json()
    assert [item["id"] for item in rest["items"]] == [key["id"]]
    assert rest["next_cursor"] is None
    assert "sha256" not in json.dumps(rest) + json.dumps(rotated)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "", "scope": "read"},
        {"name": "k", "scope": "root"},
        {"name": "k", "scope": "read", "tenant": "blue"},
        {"name": "k", "scope": "read", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "k", "scope": "read", "expires_at": "2120-01-01T00:00:00"},
    ],
)
def test_keys_that_cannot_be_made(client_of: Calling, body: dict[str, str]) -> None:
    assert client_of("life", "admin").post("/keys", json=body).status_code == 422


def test_revocation_reaches_every_process_within_seconds(
    guarded: Api, keys: Keys, client_of: Calling, tmp_path: Path
) -> None:
    key, token = keys.create("red", "test", "read", by="test")
    job = MAKERS["jobs"](client_of("red"))
    with (
        api(guarded.environment, tmp_path) as second,
        httpx.stream("GET", f"{second.url}/jobs/{job}/events", headers=bearer(token), timeout=20) as stream,
    ):
        assert stream.status_code == 200
        urls = [guarded.url, second.url]
        assert [httpx.get(f"{url}/jobs", headers=bearer(token)).status_code for url in urls] == [200, 200]
        keys.revoke("red", key.id, by="test")
        for url in urls:
            wait_for(
                lambda url=url: httpx.get(f"{url}/jobs", headers=bearer(token)).status_code == 401,  # type: ignore[misc]
                seconds=7,
                what="the revocation",
            )
        told: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):  # cut, as if this end had hung up
            told.extend(stream.iter_text())
        assert "queued" in "".join(told)
    log = second.log.read_text()
    assert "Traceback" not in log
    assert "incident" not in log


def test_without_its_bucket_it_says_503_and_not_401(servers: dict[str, str], tmp_path: Path) -> None:
    away = {**servers, "PRUNING_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with api(away, tmp_path, api_keys="required") as up:
        token = f"prk_01ARZ3NDEKTSV4RRFFQ69G5FAV_{'0' * 64}"
        answer = httpx.get(f"{up.url}/jobs", headers=bearer(token), timeout=60)
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"]
        problem(httpx.get(f"{up.url}/jobs"), 401, "unauthenticated")
        assert httpx.get(f"{up.url}/healthz").status_code == 200


def test_the_operators_command(
    guarded: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in guarded.environment.items():
        monkeypatch.setenv(name, value)

    def operator(*arguments: str) -> tuple[int, str, str]:
        status = cli.keys.main(["--tenant", "first", *arguments])
        return status, *capsys.readouterr()

    command = [sys.executable, "-m", "cli.keys", "--tenant", "first", "create", "--scope", "write", "--name", "ci"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    token = made.stdout.strip()
    assert httpx.get(f"{guarded.url}/jobs", headers=bearer(token)).status_code == 200
    listed = operator("list")
    (key,) = [json.loads(line) for line in listed[1].splitlines()]
    assert (key["tenant"], key["scope"], key["name"], key["state"]) == ("first", "write", "ci", "active")
    again = operator("rotate", key["id"])
    assert httpx.get(f"{guarded.url}/jobs", headers=bearer(again[1].strip())).status_code == 200
    assert operator("revoke", key["id"])[0] == 0
    wrong = operator("--tenant", "other", "revoke", key["id"])
    assert wrong[:2] == (1, "")
    assert "no key of this id" in wrong[2]
    said = made.stderr + listed[1] + listed[2] + again[2] + wrong[2]
    assert token.rpartition("_")[2] not in said


def test_loopback_needs_no_key_and_the_settings_say_so() -> None:
    assert not ApiSettings().keys_required
    assert ApiSettings(keys="required").keys_required
