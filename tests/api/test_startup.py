"""Importing and starting: light, and without waiting for anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from cli.embedded import Keys, free_port, nanio, service_environment, wait_for
from tests.api.live_api import api, problem, zip_bytes
from tests.servers import running

PROBE = """
import json, socket, sys, time
socket.socket.connect = None  # importing must not connect anywhere
import api.app
print(json.dumps({"seconds": time.process_time(), "modules": sorted(sys.modules)}))
"""


def test_the_api_imports_no_torch_and_is_quick() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    result = json.loads(done.stdout)
    assert not {"torch", "numpy", "safetensors", "pandas", "PIL", "worker"} & set(result["modules"])
    assert result["seconds"] < 3, "CPU time, which a busy machine does not change much"


def test_it_answers_with_nothing_behind_it(tmp_path: Path) -> None:
    nowhere = service_environment(
        Keys(redis_password="x", s3_access_key="x", s3_secret_key="x"), redis_port=free_port(), s3_port=free_port()
    )
    with api(nowhere, tmp_path, redis_timeout="0.2") as up:
        assert httpx.get(f"{up.url}/healthz", timeout=5).status_code == 200
        spent = up.process.cpu_times()
        assert spent.user + spent.system < 3


@pytest.mark.timeout(90)
def test_it_waits_for_the_bucket_and_survives_without_redis(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    keys, redis_port, s3_port = Keys.of(data), free_port(), free_port()
    environment = service_environment(keys, redis_port=redis_port, s3_port=s3_port)
    with (
        api(environment, tmp_path, redis_timeout="0.2") as up,
        httpx.Client(base_url=up.url, timeout=30) as http,
    ):
        checks = problem(http.get("/readyz"), 503, "unavailable")["checks"]
        assert checks == {"bucket": False, "redis": False}
        response = http.put("/models", content=zip_bytes(10))
        assert "bucket" in problem(response, 503, "unavailable")["detail"]
        assert int(response.headers["retry-after"]) > 0
        with running(nanio(data, keys, s3_port), data / "s3.log"):
            wait_for(lambda: http.get("/readyz").json()["checks"]["bucket"], seconds=20, what="the bucket")
            # Without Redis everything that is promised still works (DESIGN, invariant 1).
            wait_for(lambda: http.put("/models", content=zip_bytes(10)).status_code == 201, seconds=20, what="upload")
            model = http.put("/models", content=zip_bytes(10)).json()["id"]
            dataset = http.put("/datasets", content=zip_bytes(10)).json()["id"]
            recipe = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
            response = http.post("/jobs", json={"model": model, "calibration": dataset, "recipe": recipe})
            assert response.status_code == 202, response.text
            assert http.get(f"/jobs/{response.json()['id']}").json()["state"] == "queued"
            assert [job["id"] for job in http.get("/jobs").json()["items"]] == [response.json()["id"]]
            assert not http.get("/readyz").json()["checks"]["redis"]


def test_it_ends_cleanly_when_asked(servers: dict[str, str], tmp_path: Path) -> None:
    with api(servers, tmp_path) as up:
        assert httpx.get(f"{up.url}/healthz").status_code == 200
        asked = time.monotonic()
    assert time.monotonic() - asked < 10
    log = up.log.read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log


def test_uvicorn_can_start_it_too(servers: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "uvicorn.log").open("wb") as log:
        command = [sys.executable, "-m", "uvicorn", "api.app:app", "--port", str(port)]
        process = subprocess.Popen(command, env={**os.environ, **servers}, stdout=log, stderr=log)
    try:

        def alive() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
            except httpx.HTTPError:
                return False

        wait_for(alive, seconds=20, what="uvicorn")
    finally:
        process.terminate()
        process.wait(20)
