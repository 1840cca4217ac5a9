"""The whole service on an S3 server of other make: upload in parts, prune, download past the api, delete all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx
import pytest

from cli.embedded import LOOPBACK, free_port
from cli.up import is_ready
from jobs.bucket import Bucket
from jobs.settings import Settings
from tests.jobs.conftest import SERVERS, moto_endpoint
from tests.jobs.inputs import digits, mlpnet
from tests.service.live import eventually, service

__all__ = ["moto_endpoint"]
RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("server", [name for name in SERVERS if name != "nanio"])
def test_a_job_from_upload_to_deletion(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    endpoint = request.getfixturevalue("moto_endpoint") if server == "moto" else os.environ["TEST_S3_ENDPOINT"]
    store = {"endpoint": endpoint, "bucket": "second-store"}
    store |= {name: os.environ.get(f"TEST_S3_{name.upper()}", "test") for name in ("access_key", "secret_key")}
    port, model, data = free_port(), mlpnet(), digits(100)
    with (
        service(tmp_path / "data", port, **{f"PRUNING_S3_{name.upper()}": value for name, value in store.items()}),
        httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=30, follow_redirects=True) as http,
    ):
        eventually(lambda: is_ready(port), 120, "the service is ready")
        body = {"kind": "model", "filename": "net.safetensors", "size": len(model)}
        here = http.post("/uploads", json=body).json()["links"]
        for part in http.post(here["urls"]).json()["parts"]:
            assert httpx.put(part["url"], content=model).status_code == 200
        sha256 = hashlib.sha256(model).hexdigest()
        sent = http.post(here["complete"], json={"sha256": sha256}).json()["id"]
        twin = http.put("/models/net.safetensors", content=model, params={"sha256": sha256}).json()["id"]
        dataset = http.put("/datasets/data.npz", content=data).json()["id"]
        job = http.post("/jobs", json={"model": sent, "calibration": dataset, "recipe": RECIPE}).json()["id"]
        eventually(lambda: http.get(f"/jobs/{job}").json()["state"] == "succeeded", 90, "the job has succeeded")
        pruned = http.get(f"/jobs/{job}/model")
        assert hashlib.sha256(pruned.content).hexdigest() == pruned.headers["etag"].strip('"')
        assert http.get(f"/jobs/{job}/model", params={"redirect": True}).content == pruned.content
        eventually(lambda: http.get(f"/models/{twin}").json()["state"] == "ready", 30, "the twin is inspected")
        assert http.get(f"/models/{sent}").json()["state"] == "ready"
        for path in (f"/jobs/{job}", f"/models/{sent}", f"/models/{twin}", f"/datasets/{dataset}"):
            answer = http.delete(path)
            assert answer.status_code == 204, answer.text
    bucket = Bucket(Settings(**{f"s3_{name}": value for name, value in store.items()}))
    try:
        assert [key for key in bucket.list("") if not key.startswith(("usage/", "audit/"))] == []
    finally:
        bucket.close()
