"""Jobs through real HTTP; no worker runs, so they stay queued."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from jobs.ids import is_id
from pruning_core.errors import ModelError
from tests.api.finished_job import RECIPE, queued_job, reject
from tests.api.live_api import Api, problem, safetensors_bytes, zip_bytes


@pytest.fixture(scope="module")
def ids(running_api: Api) -> tuple[str, str]:
    with httpx.Client(base_url=running_api.url) as client:
        model = client.put("/models/net.pt2", content=zip_bytes(50)).json()["id"]
        return model, client.put("/datasets/data.npz", content=zip_bytes(50)).json()["id"]


@pytest.fixture
def wanted(ids: tuple[str, str]) -> dict[str, Any]:
    return {"model": ids[0], "calibration": ids[1], "recipe": RECIPE}


def test_a_job_is_recorded_shown_listed_and_cancelled(http: httpx.Client, wanted: dict[str, Any]) -> None:
    response = http.post("/jobs", json={**wanted, "validation": wanted["calibration"], "labels": {"team": "vision"}})
    assert response.status_code == 202, response.text
    job = response.json()
    here = f"/jobs/{job['id']}"
    assert is_id("job", job["id"])
    assert response.headers["location"] == here
    assert (job["state"], job["progress"], job["attempt"], job["labels"]) == ("queued", 0, 0, {"team": "vision"})
    assert job["recipe"] == RECIPE
    assert job["links"]["cancel"] == f"{here}/cancel"
    assert http.get(here).json()["state"] == "queued"
    assert job["id"] in [item["id"] for item in http.get("/jobs").json()["items"]]
    response = http.post(f"{here}/cancel")
    assert response.status_code == 202
    assert response.json()["state"] == "cancelled"
    assert http.post(f"{here}/cancel").json()["ended_at"] == response.json()["ended_at"]
    assert "cancel" not in response.json()["links"]


def test_a_list_of_jobs_is_filtered_and_cut_into_pages(http: httpx.Client, wanted: dict[str, Any]) -> None:
    made = [http.post("/jobs", json={**wanted, "labels": {"run": f"r{n % 2}"}}).json()["id"] for n in range(4)]
    first = http.get("/jobs", params={"limit": 3}).json()
    assert [job["id"] for job in first["items"]] == [made[3], made[2], made[1]]
    following = http.get("/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert following["items"][0]["id"] == made[0]
    http.post(f"/jobs/{made[0]}/cancel")
    cancelled = http.get("/jobs", params={"state": "cancelled"}).json()["items"]
    assert made[0] in [job["id"] for job in cancelled]
    assert {job["state"] for job in cancelled} == {"cancelled"}
    labelled = http.get("/jobs", params={"label": "run=r1"}).json()["items"]
    assert [job["id"] for job in labelled] == [made[3], made[1]]
    problem(http.get("/jobs", params={"state": "asleep"}), 422, "invalid-request")
    problem(http.get("/jobs", params={"label": "r1"}), 422, "invalid-request")
    problem(http.get("/jobs", params={"limit": 1000}), 422, "invalid-request")
    problem(http.get("/jobs", params={"cursor": "nonsense"}), 422, "invalid-input")


def test_the_same_key_makes_one_job(http: httpx.Client, wanted: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "the pipeline's run 17"}
    first = http.post("/jobs", json=wanted, headers=headers)
    again = http.post("/jobs", json=wanted, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == again.headers["location"]
    other = http.post("/jobs", json={**wanted, "labels": {"a": "b"}}, headers=headers)
    assert problem(other, 409, "conflict")["job"] == first.json()["id"]
    problem(http.post("/jobs", json=wanted, headers={"Idempotency-Key": "x" * 300}), 422, "invalid-request")


def changed(wanted: dict[str, Any], **select: Any) -> dict[str, Any]:
    return {**wanted, "recipe": {"select": {**RECIPE["select"], **select}}}


@pytest.mark.parametrize(
    "sparsity",
    [1, 1.0, -0.1, 1.5, 90, "0.9", None, True, [], [0.9, 0.5], [0.5, 1], ["a"], {}, {"max_accuracy_drop": 2}],
)
def test_a_sparsity_out_of_range_is_refused(http: httpx.Client, wanted: dict[str, Any], sparsity: Any) -> None:
    document = problem(http.post("/jobs", json=changed(wanted, sparsity=sparsity)), 422, "invalid-recipe")
    assert any(error["field"].startswith("recipe.select.sparsity") for error in document["errors"])


MASKED = {"select": {"algorithm": "magnitude", "pattern": "mask"}}


def test_a_mask_is_uploaded_and_named_by_a_job(http: httpx.Client, wanted: dict[str, Any]) -> None:
    upload = http.put("/masks/masks.safetensors", content=safetensors_bytes())
    assert upload.status_code == 201, upload.text
    mask = upload.json()["id"]
    assert is_id("mask", mask)
    assert upload.headers["location"] == f"/masks/{mask}" == upload.json()["links"]["self"]
    assert http.get(f"/masks/{mask}").json()["state"] == "inspecting"
    assert mask in [item["id"] for item in http.get("/masks").json()["items"]]
    document = problem(http.put("/masks/net.pt2", content=zip_bytes(50)), 415, "unsupported-media")
    assert document["received"] == "a zip archive"
    assert "boolean" in document["expected"]

    response = http.post("/jobs", json={**wanted, "recipe": MASKED, "masks": mask})
    assert response.status_code == 202, response.text
    assert response.json()["masks"] == mask
    assert problem(http.delete(f"/masks/{mask}"), 409, "conflict")["job"] == response.json()["id"]
    http.post(f"/jobs/{response.json()['id']}/cancel")
    assert http.delete(f"/masks/{mask}").status_code == 204
    problem(http.post("/jobs", json={**wanted, "recipe": MASKED, "masks": mask}), 404, "not-found")


def test_a_mask_that_is_missing_or_not_used_is_refused(http: httpx.Client, wanted: dict[str, Any]) -> None:
    mask = http.put("/masks", content=safetensors_bytes()).json()["id"]
    document = problem(http.post("/jobs", json={**wanted, "recipe": MASKED}), 422, "invalid-recipe")
    assert document["field"] == "masks"
    document = problem(http.post("/jobs", json={**wanted, "masks": mask}), 422, "invalid-recipe")
    assert (document["field"], document["received"]) == ("masks", mask)
    document = problem(
        http.post("/jobs", json={**wanted, "recipe": MASKED, "masks": wanted["model"]}), 404, "not-found"
    )
    assert document["field"] == "masks"
    problem(http.post("/jobs", json={**wanted, "recipe": MASKED, "masks": 7}), 422, "invalid-request")


def test_an_unknown_algorithm_or_field_is_refused(http: httpx.Client, wanted: dict[str, Any]) -> None:
    document = problem(http.post("/jobs", json=changed(wanted, algorithm="magic")), 422, "invalid-recipe")
    assert "magic" in document["detail"]
    assert "chita" in document["detail"]
    document = problem(http.post("/jobs", json=changed(wanted, strength=11)), 422, "invalid-recipe")
    assert "strength" in document["detail"]
    document = problem(http.post("/jobs", json={**wanted, "recipy": 1}), 422, "invalid-request")
    assert document["errors"] == [{"field": "body.recipy", "problem": "Extra inputs are not permitted"}]
    problem(http.post("/jobs", json={**wanted, "recipe": {**RECIPE, "speed": "fast"}}), 422, "invalid-recipe")
    problem(http.post("/jobs", json={**wanted, "recipe": {**RECIPE, "refine": {}}}), 422, "invalid-recipe")
    problem(http.post("/jobs", json=changed(wanted, pattern={"type": "n:m"})), 422, "invalid-recipe")
    problem(http.post("/jobs", json={**wanted, "recipe": {}}), 422, "invalid-recipe")
    document = problem(http.post("/jobs", json={}), 422, "invalid-request")
    assert {error["field"] for error in document["errors"]} == {"body.model", "body.calibration", "body.recipe"}


@pytest.mark.parametrize("field", ["model", "calibration", "validation"])
@pytest.mark.parametrize(
    "id", ["mdl_01JD3Z8Q9W3V6Y6T0B1C2D3E4F", "dst_01JD3Z8Q9W3V6Y6T0B1C2D3E4F", "", "../x", "é" * 9]
)
def test_an_unknown_id_is_not_found(http: httpx.Client, wanted: dict[str, Any], field: str, id: str) -> None:
    document = problem(http.post("/jobs", json={**wanted, field: id}), 404, "not-found")
    assert document["field"] == field


@pytest.mark.parametrize("path", ["/jobs/job_01JD3Z8Q9W3V6Y6T0B1C2D3E4F", "/jobs/nonsense", "/jobs/mdl_x"])
def test_an_unknown_job_is_not_found(http: httpx.Client, path: str) -> None:
    problem(http.get(path), 404, "not-found")
    problem(http.post(f"{path}/cancel"), 404, "not-found")
    for name in ("model", "masks", "report"):
        problem(http.get(f"{path}/{name}"), 404, "not-found")


def test_a_job_without_a_result_has_nothing_to_download(http: httpx.Client) -> None:
    job = queued_job(http)
    for name in ("model", "masks", "report"):
        assert "queued" in problem(http.get(f"/jobs/{job['id']}/{name}"), 409, "not-ready")["detail"]


def test_a_rejected_model_is_refused_with_what_was_found(
    http: httpx.Client, running_api: Api, wanted: dict[str, Any]
) -> None:
    model = http.put("/models/broken.pt2", content=zip_bytes(50)).json()["id"]
    found = ModelError("The archive is cut.", advice="Send it again.").problem()
    reject(running_api.service, model, found)
    shown = http.get(f"/models/{model}").json()
    assert (shown["state"], shown["problem"]) == ("rejected", found)
    document = problem(http.post("/jobs", json={**wanted, "model": model}), 422, "rejected-upload")
    assert document["problem"] == found


def test_an_upload_that_a_job_needs_is_kept(http: httpx.Client) -> None:
    job = queued_job(http)
    assert problem(http.delete(f"/models/{job['model']}"), 409, "conflict")["job"] == job["id"]
    http.post(f"/jobs/{job['id']}/cancel")
    assert http.delete(f"/models/{job['model']}").status_code == 204


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a b": "x"},
        {"a": 1},
        {"a": "x" * 300},
        {"a" * 64: "x"},
        {f"l{n}": "x" for n in range(33)},
        ["a"],
    ],
)
def test_labels_out_of_bounds_are_refused(http: httpx.Client, wanted: dict[str, Any], labels: Any) -> None:
    document = problem(http.post("/jobs", json={**wanted, "labels": labels}), 422, "invalid-request")
    assert "labels" in document["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": }',
        b"model=x",
        b"\xff\xfe",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bad_json_is_refused(http: httpx.Client, body: bytes) -> None:
    response = http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    problem(response, 400, "malformed-request")


@pytest.mark.parametrize("document", [[], "text", 7, None])
def test_json_that_is_no_object_is_refused(http: httpx.Client, document: Any) -> None:
    problem(http.post("/jobs", content=json.dumps(document)), 422, "invalid-request")


def test_a_json_body_over_the_cap_is_refused(http: httpx.Client, wanted: dict[str, Any]) -> None:
    body = json.dumps({**wanted, "labels": {"a": "x" * 2**20}}).encode()
    problem(http.post("/jobs", content=body), 413, "too-large")
    problem(http.post("/jobs", content=iter([body[: 2**19], body[2**19 :]])), 413, "too-large")


def test_only_json_is_read_and_what_curl_calls_it(http: httpx.Client, wanted: dict[str, Any]) -> None:
    body = json.dumps(wanted).encode()
    for accepted in ("application/json; charset=utf-8", "application/x-www-form-urlencoded", "application/a+json"):
        assert http.post("/jobs", content=body, headers={"Content-Type": accepted}).status_code == 202
    response = http.post("/jobs", content=body, headers={"Content-Type": "text/xml"})
    assert problem(response, 415, "unsupported-content-type")["received"] == "text/xml"


def test_unknown_paths_and_methods_are_problems_too(http: httpx.Client) -> None:
    problem(http.get("/nothing/here"), 404, "no-such-path")
    response = http.delete("/jobs")
    assert problem(response, 405, "method-not-allowed")["expected"] == ["GET", "POST"]
    assert response.headers["allow"] == "GET, POST"
    assert http.request("PATCH", "/models/x").headers["allow"] == "DELETE, GET, PUT"
