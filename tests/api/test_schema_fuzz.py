"""schemathesis over the whole OpenAPI document, against a real api that requires keys, with things to find in it.

A bounded, deterministic run is part of the suite. ``make apifuzz`` runs it for ``SECONDS`` with other data each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.keys import Keys
from tests.api import finished_job, live_api
from tests.api.live_api import Api, safetensors_bytes

#: Left out: data that fits the schema may still be refused. No schema says what bytes a model has, which cursor is one
#: of ours, or that a mask is named where the recipe needs one.
EXCLUDED = "positive_data_acceptance"
SECONDS = os.environ.get("PRUNING_APIFUZZ_SECONDS")


@pytest.fixture(scope="module")
def fuzzed(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, str]]]:
    """An api of its own, and the environment for schemathesis: a key, and ids that exist."""
    folder = tmp_path_factory.mktemp("fuzzed")
    quick = {"api_idle_seconds": "2", "api_max_wait_seconds": "1", "api_stream_seconds": "0.2"}
    quick |= {"api_rate_per_second": "100000", "api_rate_burst": "100000", "api_failures_per_minute": "100000"}
    quick |= {"webhook_networks": "192.0.2.0/24", "webhook_sender": "false"}
    with live_api.api(
        {**servers, "PRUNING_S3_BUCKET": "fuzz-tests"},
        folder,
        api_keys="required",
        max_upload_bytes=str(2**20),
        **quick,
    ) as started:
        started.service.bucket.ensure()
        _, token = Keys(started.service.bucket, started.service.clock).create("red", "fuzz", "admin", by="test")
        with httpx.Client(base_url=started.url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
            seeded = _seed(started, client, folder)
        yield started, {"FUZZ_TOKEN": token, "FUZZ_SEEDED": json.dumps(seeded)}


def _seed(api: Api, client: httpx.Client, folder: Path) -> dict[str, str]:
    job = finished_job.queued_job(client)
    (folder / "report.json").write_text("{}")
    (folder / "masks").write_bytes(safetensors_bytes())
    files = {"model": folder / "masks", "masks": folder / "masks"}
    finished_job.finish(api.service, job["id"], folder / "report.json", {0.5: files})
    mask = client.put("/masks/m.safetensors", content=safetensors_bytes()).json()["id"]
    other = finished_job.queued_job(client)
    hook = client.post("/webhooks", json={"url": "https://192.0.2.1/hook"}).json()["id"]
    parts = client.post("/uploads", json={"kind": "model", "size": 30}).json()["id"]
    return {
        "jobs": job["id"],
        "uploads": parts,
        "webhooks": hook,
        "models": other["model"],
        "datasets": other["calibration"],
        "masks": mask,
    }


@pytest.mark.timeout(int(float(SECONDS or 0)) + 180)
def test_answers_are_those_of_the_document(fuzzed: tuple[Api, dict[str, str]], tmp_path: Path) -> None:
    api, found = fuzzed
    # Models, datasets and masks have one set of calls in common.
    bounded = (
        "--generation-deterministic",
        "--exclude-path-regex",
        "^/(datasets|masks)",
        "--phases",
        "examples,coverage",
    )
    endless = ("--max-time", SECONDS or "", "--generation-database", "none")
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{api.url}/openapi.json", "--no-color"),
            *("--header", f"Authorization: Bearer {found['FUZZ_TOKEN']}"),
            *("--checks", "all", "--exclude-checks", EXCLUDED, "--continue-on-failure", "--no-shrink"),
            *("--warnings", "off", *(endless if SECONDS else bounded)),
        ],
        cwd=tmp_path,
        env={**os.environ, **found, "SCHEMATHESIS_HOOKS": "tests.api.fuzz_hooks", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    if SECONDS:
        print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-3000:]
    log = api.log.read_text("utf-8", "replace")
    assert "incident" not in log
    assert found["FUZZ_TOKEN"] not in log
    assert httpx.get(f"{api.url}/healthz").status_code == 200
