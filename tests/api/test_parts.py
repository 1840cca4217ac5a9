"""Uploads in parts, deletion of jobs and downloads past the api, over HTTP."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.multipart import MIN_PART_BYTES
from tests.api.finished_job import finish, queued_job
from tests.api.live_api import Api, problem, zip_bytes

DATA = zip_bytes(1000)
SHA256 = hashlib.sha256(DATA).hexdigest()


def begin(http: httpx.Client, **more: Any) -> dict[str, Any]:
    body = {"kind": "model", "filename": "../net.v3.pt2", "size": len(DATA), "sha256": SHA256, **more}
    response = http.post("/uploads", json=body)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/uploads/{document['id']}" == document["links"]["self"]
    return document


def send(http: httpx.Client, document: dict[str, Any]) -> None:
    answer = http.post(document["links"]["urls"])
    assert answer.headers["cache-control"] == "no-store"
    for part in answer.json()["parts"]:
        assert httpx.put(part["url"], content=DATA).status_code == 200


def test_the_whole_way(http: httpx.Client) -> None:
    document = begin(http)
    assert (document["state"], document["parts"], document["received"]) == ("open", 1, [])
    missing = problem(http.post(document["links"]["complete"]), 409, "incomplete-upload")
    assert missing["missing"] == [1]
    send(http, document)
    assert http.get(document["links"]["self"]).json()["received"] == [1]
    for _ in range(2):
        response = http.post(document["links"]["complete"])
        assert response.status_code == 200, response.text
        assert response.headers["location"] == f"/models/{document['id']}"
        upload = response.json()
        assert (upload["state"], upload["filename"], upload["sha256"]) == ("inspecting", "net.v3.pt2", SHA256)
    shown = http.get(document["links"]["self"]).json()
    assert (shown["state"], shown["links"]["upload"]) == ("complete", f"/models/{document['id']}")
    assert http.get(f"/models/{document['id']}").json() == upload
    problem(http.delete(document["links"]["self"]), 409, "conflict")
    other = {"sha256": "0" * 64}
    problem(http.post(document["links"]["complete"], json=other), 409, "conflict")
    problem(http.post(document["links"]["urls"]), 404, "not-found")


def test_abort(http: httpx.Client) -> None:
    document = begin(http)
    send(http, document)
    assert http.delete(document["links"]["self"]).status_code == 204
    for call in (http.delete, http.get):
        problem(call(document["links"]["self"]), 404, "not-found")
    problem(http.post(document["links"]["complete"]), 404, "not-found")


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"kind": "job"}, 422, "invalid-request"),
        ({"size": 0}, 422, "invalid-request"),
        ({"size": "12"}, 422, "invalid-request"),
        ({"size": 2**20 + 1}, 413, "too-large"),
        ({"sha256": "abc"}, 422, "invalid-request"),
        ({"part_size": MIN_PART_BYTES - 1}, 422, "invalid-input"),
        ({"filename": "x" * 256}, 422, "invalid-request"),
        ({"url": "http://127.0.0.1/"}, 422, "invalid-request"),
    ],
    ids=str,
)
def test_what_is_refused(http: httpx.Client, body: dict[str, Any], status: int, slug: str) -> None:
    problem(http.post("/uploads", json={"kind": "model", "size": len(DATA), **body}), status, slug)


def test_bodies_that_cannot_be_read(http: httpx.Client) -> None:
    here = begin(http)["links"]
    for path in ("/uploads", here["urls"], here["complete"]):
        problem(http.post(path, content=b"{"), 400, "malformed-request")
        problem(http.post(path, content=b"[]"), 422, "invalid-request")
        problem(http.post(path, content=b"<a/>", headers={"Content-Type": "text/xml"}), 415, "unsupported-content-type")
    problem(http.post("/uploads"), 422, "invalid-request")
    problem(http.post(here["urls"], json={"parts": [2]}), 422, "invalid-input")
    problem(http.post(here["urls"], json={"parts": ["1"]}), 422, "invalid-request")
    problem(http.get("/uploads/mdl_x"), 404, "not-found")


def test_no_url_is_logged(http: httpx.Client, running_api: Api) -> None:
    send(http, begin(http))
    assert "X-Amz-Signature" not in running_api.log.read_text()


# -- jobs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(http: httpx.Client, running_api: Api, tmp_path: Path) -> str:
    job: str = queued_job(http)["id"]
    files = {name: tmp_path / name for name in ("model", "masks", "report")}
    for name, path in files.items():
        path.write_bytes(name.encode() * 100)
    report = files.pop("report")
    finish(running_api.service, job, report, {0.5: files})
    return job


def test_a_download_past_the_api(http: httpx.Client, running_api: Api, finished: str) -> None:
    for name in ("model", "masks", "report"):
        answer = http.get(f"/jobs/{finished}/{name}", params={"redirect": "true"})
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        url = httpx.URL(answer.headers["location"])
        assert str(url).startswith(running_api.environment["PRUNING_S3_ENDPOINT"])
        assert f"net.v2-{'pruned' if name == 'model' else name}" in url.params["response-content-disposition"]
        assert httpx.get(url).content == name.encode() * 100
        head = http.head(f"/jobs/{finished}/{name}", params={"redirect": "true"})
        assert httpx.head(head.headers["location"]).headers["content-length"] == str(len(name) * 100)
    problem(http.get(f"/jobs/{finished}/model", params={"redirect": "perhaps"}), 422, "invalid-request")
    problem(http.get(f"/jobs/{queued_job(http)['id']}/model", params={"redirect": "true"}), 409, "not-ready")


def test_a_job_is_deleted(http: httpx.Client, finished: str) -> None:
    assert http.delete(f"/jobs/{finished}").status_code == 204
    for path in ("", "/model", "/report", "/events"):
        problem(http.get(f"/jobs/{finished}{path}"), 404, "not-found")
    problem(http.delete(f"/jobs/{finished}"), 404, "not-found")
    assert finished not in http.get("/jobs").text
    open_ = queued_job(http)["id"]
    problem(http.delete(f"/jobs/{open_}"), 409, "conflict")


def test_a_job_makes_sense_without_its_model(http: httpx.Client, finished: str) -> None:
    job = http.get(f"/jobs/{finished}").json()
    assert http.delete(f"/models/{job['model']}").status_code == 204
    shown = http.get(f"/jobs/{finished}").json()
    assert shown == job
    assert shown["inputs"]["model"]["filename"] == "net.v2.pt2"
    answer = http.get(f"/jobs/{finished}/model")
    assert 'filename="net.v2-pruned' in answer.headers["content-disposition"]
    assert answer.content == b"model" * 100
