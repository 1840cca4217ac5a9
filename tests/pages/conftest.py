"""One api process for the tests of this folder, and jobs in it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.conftest import running_api
from tests.api.finished_job import RECIPE, finish, queued_job, reject
from tests.api.live_api import Api, zip_bytes
from tests.pages.documents import HOSTILE, document, level

__all__ = ["running_api"]


@pytest.fixture(scope="module")
def jobs(running_api: Api, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Jobs in every state but running, with hostile names where names can be."""
    folder, service = tmp_path_factory.mktemp("jobs"), running_api.service
    made: dict[str, str] = {}
    with httpx.Client(base_url=running_api.url, timeout=20) as client:
        for name in ("one", "several", "old", "queued", "cancelled"):
            made[name] = queued_job(client, labels={"x": HOSTILE[:200]})["id"]
        client.post(f"/jobs/{made['cancelled']}/cancel")
        bad = client.put("/models/bad.pt2", content=zip_bytes(50)).json()["id"]
        data = client.put("/datasets/data.npz", content=zip_bytes(50)).json()["id"]
        made["failed"] = client.post("/jobs", json={"model": bad, "calibration": data, "recipe": RECIPE}).json()["id"]
        reject(service, bad, {"title": HOSTILE, "detail": HOSTILE, "expected": [HOSTILE], "advice": HOSTILE})
        token = service.clock.claim(made["failed"])
        item = service.ledger.resolve(made["failed"], token or "")
        attempt = service.ledger.begin(item, token, "test")  # type: ignore[arg-type]
        problem = {"title": HOSTILE, "detail": HOSTILE, "received": {"x": HOSTILE}, "advice": HOSTILE}
        assert service.ledger.publish(item, token, "fail", attempt=attempt, problem=problem)  # type: ignore[arg-type]
    reports: dict[str, dict[str, Any]] = {
        "one": document(level(0.9, HOSTILE), text=HOSTILE),
        "several": document(level(0.5), level(0.9)),
        "old": {"pruning": {}},
    }
    for name, report in reports.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(report))
        files = dict.fromkeys(("model", "masks"), path)
        finish(service, made[name], path, {0.5: files, 0.9: files} if name == "several" else {0.9: files})
    return made
