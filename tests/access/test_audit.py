"""The audit log: what is in it, that it survives outages of the bucket, and that keys never change unrecorded."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from jobs import layout
from jobs.audit import MAX_KEPT, Audit, Entry
from jobs.errors import Unavailable
from jobs.service import Service
from pruning_core.errors import InputError
from tests.access.conftest import Calling
from tests.access.test_routes import MAKERS
from tests.api.live_api import Api, wait_for

TODAY = datetime.now(UTC).date()


@pytest.fixture
def audit(service: Service) -> Audit:
    return Audit(service.bucket)


def entry(n: int = 0, tenant: str = "red", **more: Any) -> Entry:
    return Entry(tenant=tenant, by="key_x", action="create_job", target=f"job_{n}", status=202, **more)


def everything(audit: Audit, tenant: str = "red", limit: int = 3) -> list[Entry]:
    found, cursor = [], None
    while True:
        page, cursor = audit.page(tenant, TODAY - timedelta(days=3), cursor, limit)
        found += page
        assert len(page) == limit or cursor is None
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_over_objects_and_days(audit: Audit, limit: int) -> None:
    days = [datetime.now(UTC) - timedelta(days=n) for n in (2, 1, 0)]
    entries = [entry(n, at=days[n // 3]) for n in range(9)]
    for batch in (entries[:2], entries[2:6], entries[6:]):
        for one in batch:
            audit.note(one)
        audit.note(entry(99, tenant="blue"))
        audit.flush()
    assert everything(audit, limit=limit) == entries
    assert len(everything(audit, "blue")) == 3
    assert audit.page("red", TODAY)[0] == entries[6:]
    assert audit.page("green", TODAY) == ([], None)


def test_nothing_is_written_over(service: Service, audit: Audit) -> None:
    seen: dict[str, Any] = {}
    for n in range(3):
        audit.write(entry(n))
        now = {key: service.bucket.get_json(key) for key in service.bucket.list(layout.audit("red"))}
        assert len(now) == n + 1
        assert {key: now[key] for key in seen} == seen
        seen = now


def test_an_outage_loses_nothing(
    service: Service, audit: Audit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("gone")

    entries = [entry(n) for n in range(5)]
    caplog.set_level(logging.INFO, "audit")
    with monkeypatch.context() as patched:
        patched.setattr(service.bucket, "put_json", away)
        for one in entries:
            audit.note(one)
        for _ in range(2):
            with pytest.raises(Unavailable):
                audit.flush()
        with pytest.raises(Unavailable):
            audit.write(entry())
    assert caplog.text.count("done action=create_job") == 6, "each is a line of log at once"
    audit.flush()
    audit.flush()
    assert everything(audit) == entries


def test_what_cannot_be_kept_is_said(
    service: Service, audit: Audit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(service.bucket, "put_json", away)
    for n in range(MAX_KEPT + 2):
        audit._kept.append(entry(n)) if n < MAX_KEPT else audit.note(entry(n))
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [f"job_{n}" in line for n, line in enumerate(lost)] == [True, True]
    caplog.clear()
    audit._kept = type(audit._kept)(list(audit._kept)[:3])
    audit.stop(1)
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 3


@pytest.mark.parametrize("cursor", ["x", "!", "Li4vLi4=", "MjAyNi0xMS0yMS94Lmpzb24jMA=="])
def test_cursors_that_are_none(audit: Audit, cursor: str) -> None:
    with pytest.raises(InputError):
        audit.page("red", TODAY, cursor)


def test_a_key_does_not_change_unrecorded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(service.settings, ApiSettings())
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1)) as client:
        context = app.state.context
        id = client.post("/keys", json={"name": "k", "scope": "read"}).json()["id"]

        def away(_: Entry) -> None:
            raise Unavailable("the audit log cannot be written")

        monkeypatch.setattr(context.audit, "write", away)
        before = context.keys.page("default")
        for path, body in (
            ("/keys", {"name": "k", "scope": "read"}),
            (f"/keys/{id}/rotate", None),
            (f"/keys/{id}/revoke", None),
        ):
            assert client.post(path, json=body).status_code == 503
        assert context.keys.page("default") == before


def test_what_callers_do_is_recorded(guarded: Api, client_of: Calling) -> None:
    admin, reader = client_of("watched", "admin"), client_of("watched", "read")
    job = MAKERS["jobs"](admin)
    admin.post(f"/jobs/{job}/cancel", headers={"X-Request-Id": "ci-17"})
    reader.post(f"/jobs/{job}/cancel")
    reader.get(f"/jobs/{job}/model")
    reader.get(f"/jobs/{job}")
    key = MAKERS["keys"](admin)
    client_of("bystander", "admin").post("/keys", json={"name": "k", "scope": "read"})

    def shown() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = admin.get("/audit").json()["items"]
        return items

    wait_for(lambda: len(shown()) >= 8, seconds=10, what="the log")
    seen = [(item["action"], item["status"]) for item in shown()]
    assert sorted(seen, key=str) == sorted(
        [
            ("put_model", 201),
            ("put_dataset", 201),
            ("create_job", 202),
            ("cancel_job", 202),
            ("cancel_job", 403),
            ("download_model", 409),
            ("create_key", None),
            ("create_key", 201),
        ],
        key=str,
    )
    by_action = {(item["action"], item["status"]): item for item in shown()}
    assert by_action["create_job", 202]["target"] == job
    assert by_action["cancel_job", 202]["request_id"] == "ci-17"
    assert by_action["cancel_job", 202]["peer"] == "127.0.0.1"
    assert by_action["create_key", 201]["target"] == key
    assert by_action["put_model", 201]["target"].startswith("mdl_")
    assert by_action["cancel_job", 403]["by"] != by_action["cancel_job", 202]["by"]
    assert by_action["cancel_job", 403]["by"].startswith("key_")
    assert admin.get("/audit", params={"since": (TODAY + timedelta(days=1)).isoformat()}).json()["items"] == []
    assert httpx.get(f"{guarded.url}/audit").status_code == 401
