"""Play the worker: give a job its outcome, with artifacts in the bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from jobs import layout
from jobs.service import Service
from jobs.states import Event
from tests.api.live_api import zip_bytes

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}


def queued_job(http: httpx.Client, filename: str = "net.v2.pt2", **more: Any) -> dict[str, Any]:
    """Upload a model and data, create a job; return the job."""
    model = http.put(f"/models/{filename}", content=zip_bytes(50)).json()["id"]
    dataset = http.put("/datasets/data.npz", content=zip_bytes(50)).json()["id"]
    response = http.post("/jobs", json={"model": model, "calibration": dataset, "recipe": RECIPE, **more})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def finish(service: Service, job: str, report: Path, levels: dict[float, dict[str, Path]]) -> None:
    """Publish a success with these files, model and masks for each sparsity, as a worker does."""
    token = service.clock.claim(job)
    assert token is not None
    item = service.ledger.resolve(job, token)
    assert item is not None
    attempt = service.ledger.begin(item, token, "test")

    def store(path: Path) -> dict[str, Any]:
        stored = service.bucket.upload_file(layout.artifact(job, attempt.number, token, path.name), path)
        return {"key": stored.key, "size": stored.size, "sha256": stored.sha256}

    kept = [{"sparsity": s, **{name: store(path) for name, path in files.items()}} for s, files in levels.items()]
    artifacts = {"report": store(report), "levels": kept}
    result = {"levels": [{"sparsity": sparsity, "quality": {"accuracy": 1.0}} for sparsity in levels]}
    assert service.ledger.publish(item, token, "succeed", attempt=attempt, result=result, artifacts=artifacts)
    service.clock.release(job, token)


def accept(service: Service, upload: str, inspection: dict[str, Any]) -> None:
    """Publish what an inspection found."""
    _publish(service, upload, "succeed", result=inspection)


def reject(service: Service, upload: str, problem: dict[str, Any]) -> None:
    """Publish that an upload was found unusable, as an inspection does."""
    _publish(service, upload, "fail", problem=problem)


def _publish(service: Service, upload: str, event: Event, **found: dict[str, Any]) -> None:
    token = service.clock.claim(upload)
    assert token is not None
    item = service.ledger.resolve(upload, token)
    assert item is not None
    attempt = service.ledger.begin(item, token, "test")
    assert service.ledger.publish(item, token, event, attempt=attempt, **found)
    service.clock.release(upload, token)
