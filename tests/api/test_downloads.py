"""Downloads through real HTTP: whole, in part, conditional, verified."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from api.digests import as_header
from tests.api.finished_job import finish, queued_job
from tests.api.live_api import Api, problem


@dataclass
class Finished:
    here: str
    data: dict[str, bytes]

    def etag(self, name: str) -> str:
        return f'"{hashlib.sha256(self.data[name]).hexdigest()}"'


@pytest.fixture(scope="module")
def job(running_api: Api, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("artifacts")
    data = {"model": os.urandom(3_000_001), "masks": os.urandom(999), "report": b'{"pruning": {}}'}
    paths: dict[str, Path] = {}
    for name, content in data.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    with httpx.Client(base_url=running_api.url) as client:
        made = queued_job(client)
    service = running_api.service
    finish(service, made["id"], paths.pop("report"), {0.5: paths})
    return Finished(here=f"/jobs/{made['id']}", data=data)


@pytest.mark.parametrize(
    ("name", "filename", "media_type"),
    [
        ("model", "net.v2-pruned.pt2", "application/octet-stream"),
        ("masks", "net.v2-masks.safetensors", "application/octet-stream"),
        ("report", "net.v2-report.json", "application/json"),
    ],
)
def test_a_result_comes_whole_named_and_verifiable(
    http: httpx.Client, job: Finished, name: str, filename: str, media_type: str
) -> None:
    assert http.get(job.here).json()["links"][name] == f"{job.here}/{name}"
    response = http.get(f"{job.here}/{name}")
    assert response.status_code == 200
    assert response.content == job.data[name]
    headers = response.headers
    assert headers["content-disposition"] == f'attachment; filename="{filename}"'
    assert headers["content-type"] == media_type
    assert headers["content-length"] == str(len(job.data[name]))
    assert headers["etag"] == job.etag(name)
    assert headers["content-digest"] == as_header(hashlib.sha256(job.data[name]).hexdigest())
    assert headers["accept-ranges"] == "bytes"
    head = http.head(f"{job.here}/{name}")
    assert head.status_code == 200
    assert head.content == b""
    assert {key: head.headers[key] for key in ("etag", "content-length", "content-disposition")} == {
        key: headers[key] for key in ("etag", "content-length", "content-disposition")
    }


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-", 1_000_000, 3_000_001),
        ("bytes=-5", 2_999_996, 3_000_001),
        ("bytes=2999999-99999999", 2_999_999, 3_000_001),
    ],
)
def test_one_range_is_served(http: httpx.Client, job: Finished, wanted: str, start: int, stop: int) -> None:
    response = http.get(f"{job.here}/model", headers={"Range": wanted})
    assert response.status_code == 206
    assert response.content == job.data["model"][start:stop]
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/3000001"
    assert response.headers["content-length"] == str(stop - start)
    assert response.headers["etag"] == job.etag("model")
    # RFC 9530: Content-Digest is of what is sent, Repr-Digest of the file.
    assert "content-digest" not in response.headers
    assert response.headers["repr-digest"] == as_header(hashlib.sha256(job.data["model"]).hexdigest())


def test_a_range_behind_the_end_is_refused(http: httpx.Client, job: Finished) -> None:
    response = http.get(f"{job.here}/model", headers={"Range": "bytes=3000001-"})
    problem(response, 416, "range-not-satisfiable")
    assert response.headers["content-range"] == "bytes */3000001"


def test_a_range_counts_only_for_the_same_file(http: httpx.Client, job: Finished) -> None:
    same = http.get(f"{job.here}/masks", headers={"Range": "bytes=1-2", "If-Range": job.etag("masks")})
    other = http.get(f"{job.here}/masks", headers={"Range": "bytes=1-2", "If-Range": job.etag("model")})
    assert (same.status_code, other.status_code) == (206, 200)
    assert other.content == job.data["masks"]


def test_what_the_client_has_is_not_sent_again(http: httpx.Client, job: Finished) -> None:
    response = http.get(f"{job.here}/model", headers={"If-None-Match": f'"x", {job.etag("model")}'})
    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == job.etag("model")
    assert http.get(f"{job.here}/masks", headers={"If-None-Match": job.etag("model")}).status_code == 200


def test_each_level_is_found_by_its_sparsity(running_api: Api, http: httpx.Client, tmp_path: Path) -> None:
    levels: dict[float, dict[str, Path]] = {}
    for sparsity in (0.5, 0.9, 0.875):
        levels[sparsity] = {}
        for name in ("model", "masks", "compact"):
            levels[sparsity][name] = path = tmp_path / f"{name}-{sparsity}"
            path.write_text(path.name)
    (tmp_path / "report").write_text("{}")
    made = queued_job(http)
    finish(running_api.service, made["id"], tmp_path / "report", levels)
    here = f"/jobs/{made['id']}"
    job = http.get(here).json()
    assert [level["sparsity"] for level in job["result"]["levels"]] == [0.5, 0.9, 0.875]
    for level in job["result"]["levels"]:
        for name, link in level["links"].items():
            response = http.get(link)
            assert response.text == f"{name}-{level['sparsity']}"
            assert f"-{level['sparsity']}." in response.headers["content-disposition"]
            assert http.head(link).headers["etag"] == response.headers["etag"]
    assert http.get(f"{here}/model", params={"sparsity": "0.90"}).text == "model-0.9"
    assert http.get(f"{here}/report").text == "{}"

    for name in ("model", "masks", "compact"):
        document = problem(http.get(f"{here}/{name}"), 400, "level-needed")
        assert document["expected"] == [0.5, 0.9, 0.875]
        assert "?sparsity=" in document["advice"]
        document = problem(http.get(f"{here}/{name}?sparsity=0.91"), 404, "not-found")
        assert (document["expected"], document["received"]) == ([0.5, 0.9, 0.875], 0.91)
        for wrong in ("", "high", "nan", "-1", "2", "1e400"):
            problem(http.get(f"{here}/{name}", params={"sparsity": wrong}), 422, "invalid-request")


def test_the_only_level_may_be_named(http: httpx.Client, job: Finished) -> None:
    assert http.get(f"{job.here}/model?sparsity=0.5").content == job.data["model"]
    problem(http.get(f"{job.here}/model?sparsity=0.6"), 404, "not-found")


def test_a_succeeded_job_cannot_be_cancelled(http: httpx.Client, job: Finished) -> None:
    problem(http.post(f"{job.here}/cancel"), 409, "conflict")


def test_clients_that_leave_half_way_do_not_use_up_the_downloads(running_api: Api, job: Finished) -> None:
    host, _, port = running_api.url.removeprefix("http://").partition(":")
    for _ in range(80):  # more than the concurrent downloads and the pooled connections to the bucket
        with socket.create_connection((host, int(port)), timeout=20) as peer:
            peer.sendall(f"GET {job.here}/model HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert peer.recv(1000)
    response = httpx.get(f"{running_api.url}{job.here}/model", timeout=20)
    assert response.content == job.data["model"]
