"""The calls of the README and of docs/api.md, made with curl itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.finished_job import finish, queued_job
from tests.api.live_api import Api, zip_bytes

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "30", "--noproxy", "*"]
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_files_go_up_as_the_readme_shows(running_api: Api, tmp_path: Path) -> None:
    data = zip_bytes(500_000)
    (tmp_path / "net work.pt2").write_bytes(data)
    url, name, digest = running_api.url, "net work.pt2", hashlib.sha256(data).hexdigest()
    into_folder = answer(curl("-T", name, f"{url}/models/", cwd=tmp_path))
    to_collection = answer(curl("-T", name, f"{url}/models?sha256={digest}", cwd=tmp_path))
    as_form = answer(curl("-F", f"file=@{name}", f"{url}/models", cwd=tmp_path))
    as_body = answer(curl("--data-binary", f"@{name}", f"{url}/models", cwd=tmp_path))
    piped = answer(_pipe(url, data))
    assert {document["sha256"] for document in (into_folder, to_collection, as_form, as_body, piped)} == {digest}
    assert [into_folder["filename"], as_form["filename"], piped["filename"]] == [name, name, "piped.pt2"]


def _pipe(url: str, data: bytes) -> subprocess.CompletedProcess[str]:
    command = ["curl", "--silent", "--fail-with-body", "--max-time", "30", "-T", "-", f"{url}/models/piped.pt2"]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_big_upload_waits_for_100_continue(running_api: Api, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(zip_bytes(1_000_000))
    done = curl("-v", "-H", "Expect: 100-continue", "-T", "net.pt2", f"{running_api.url}/models", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "HTTP/1.1 100 Continue" in done.stderr


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(running_api: Api, tmp_path: Path) -> None:
    with (tmp_path / "large.pt2").open("wb") as file:
        file.truncate(2**33)
    expecting = curl(
        *("-H", "Expect: 100-continue", "-w", "%{size_upload}", "-T", "large.pt2", f"{running_api.url}/models"),
        cwd=tmp_path,
    )
    assert expecting.returncode == 22
    body, _, sent = expecting.stdout.rpartition("}")
    assert json.loads(body + "}")["status"] == 413
    assert sent == "0"
    # A client that does not wait for a go-ahead gets the same answer.
    eager = curl("-H", "Expect:", "-T", "large.pt2", f"{running_api.url}/models", cwd=tmp_path)
    assert json.loads(eager.stdout)["status"] == 413


def test_a_job_is_posted_as_the_readme_shows(running_api: Api, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(zip_bytes(50))
    url = running_api.url
    model = answer(curl("-T", "net.pt2", f"{url}/models/", cwd=tmp_path))["id"]
    data = answer(curl("-T", "net.pt2", f"{url}/datasets/", cwd=tmp_path))["id"]
    body = {"model": model, "calibration": data, "recipe": {"select": {"algorithm": "chita", "sparsity": 0.9}}}
    job = answer(curl("-X", "POST", f"{url}/jobs", "-d", json.dumps(body), cwd=tmp_path))
    assert job["state"] == "queued"
    assert answer(curl("-X", "POST", f"{url}/jobs/{job['id']}/cancel", cwd=tmp_path))["state"] == "cancelled"


def test_a_result_comes_down_and_an_interrupted_one_is_resumed(running_api: Api, tmp_path: Path) -> None:
    content = os.urandom(2_000_003)
    (tmp_path / "pruned").write_bytes(content)
    with httpx.Client(base_url=running_api.url) as http:
        job = queued_job(http, "my net.pt2")["id"]
    made = tmp_path / "pruned"
    finish(running_api.service, job, made, {0.5: {"model": made, "masks": made}})
    url = f"{running_api.url}/jobs/{job}/model"
    assert curl("-LO", url, cwd=tmp_path).returncode == 0
    assert (tmp_path / "model").read_bytes() == content
    assert curl("-LOJ", url, cwd=tmp_path).returncode == 0
    assert (tmp_path / "my_net-pruned.pt2").read_bytes() == content
    (tmp_path / "model").write_bytes(content[:777_777])
    assert curl("-LO", "-C", "-", url, cwd=tmp_path).returncode == 0
    assert (tmp_path / "model").read_bytes() == content
    assert curl("-r", "-10", "-o", "tail", url, cwd=tmp_path).returncode == 0
    assert (tmp_path / "tail").read_bytes() == content[-10:]
