"""Bad input that only a worker can find, through the running service: rejected uploads, jobs that fail with the reason.

What the api finds by itself is tested in tests/api.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from pruning_core.errors import PROBLEM_TYPE
from tests.service.bad_files import bad_datasets, bad_masks, bad_models, npz, sound_model
from tests.service.client import Client

MODELS = (
    *("truncated.pt2", "pickled.pt2", "elementwise.pt2", "training.pt2"),
    *("shapes.safetensors", "code.pt2", "views.pt2", "header.safetensors"),
)
DATASETS = ("nan.npz", "truncated.npz", "bomb.npz", "surrogate.safetensors", "objects.npz")
MASKS = ("numbers.safetensors", "truncated.safetensors", "nothing.safetensors", "bytes.safetensors")
MAGNITUDE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
MASKED = {"select": {"algorithm": "magnitude", "pattern": "mask"}}
SECONDS = 110
#: Of each part, resident: none opens what was sent but the sandbox, which has torch in it.
MOST_MEMORY = 600 * 2**20


@pytest.fixture(scope="module")
def client(live: str) -> Iterator[Client]:
    with Client(live) as client:
        yield client


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marker") / "code-ran"


@pytest.fixture(scope="module")
def sent(
    client: Client, marker: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], str]]:
    """Send all at once, so that they are inspected while the tests look at them one by one."""
    folder = tmp_path_factory.mktemp("bad")
    files = {"models": bad_models(folder, marker), "datasets": bad_datasets(), "masks": bad_masks()}
    assert tuple(map(tuple, files.values())) == (MODELS, DATASETS, MASKS)
    uploads = {}
    for kind, named in files.items():
        for name, (data, slug) in named.items():
            answer = client.put(f"/{kind}/{name}", content=data)
            assert answer.status_code == 201, answer.text
            uploads[f"{kind}/{name}"] = (answer.json(), slug)
    return uploads


@pytest.fixture(scope="module")
def model(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return client.send_file("models", sound_model(tmp_path_factory.mktemp("sound") / "sound.pt2"))


def dataset(client: Client, x: np.ndarray, **more: np.ndarray) -> str:
    answer = client.put("/datasets/data.npz", content=npz(x=x, **more))
    assert answer.status_code == 201, answer.text
    identity: str = answer.json()["id"]
    return identity


@pytest.fixture(scope="module")
def good_data(client: Client) -> str:
    random = np.random.default_rng(0)
    return dataset(client, random.standard_normal((40, 8)).astype(np.float32), y=random.integers(0, 4, 40))


def assert_says_what_to_know(problem: dict[str, Any], slug: str) -> None:
    assert problem["type"] == PROBLEM_TYPE + slug, problem
    assert 400 <= problem["status"] < 500
    assert problem["title"]
    assert len(problem["detail"]) > 10
    assert "expected" in problem or "advice" in problem, problem
    assert "Traceback" not in str(problem)
    assert "/work" not in str(problem)


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_rejected_with_the_reason_and_runs_nothing(
    client: Client, sent: dict[str, tuple[dict[str, Any], str]], good_data: str, marker: Path, name: str
) -> None:
    upload, slug = sent[f"models/{name}"]
    seen = client.wait(f"/models/{upload['id']}", {"ready", "rejected"}, SECONDS)
    assert seen["state"] == "rejected", seen
    assert_says_what_to_know(seen["problem"], slug)
    assert not marker.exists()
    answer = client.post("/jobs", json={"model": upload["id"], "calibration": good_data, "recipe": MAGNITUDE})
    assert_refused_because_of(answer, "model", seen["problem"])


@pytest.mark.parametrize("name", DATASETS)
def test_a_bad_dataset_is_rejected_with_the_reason(
    client: Client, sent: dict[str, tuple[dict[str, Any], str]], model: dict[str, Any], name: str
) -> None:
    upload, slug = sent[f"datasets/{name}"]
    seen = client.wait(f"/datasets/{upload['id']}", {"ready", "rejected"}, SECONDS)
    assert seen["state"] == "rejected", seen
    assert_says_what_to_know(seen["problem"], slug)
    answer = client.post("/jobs", json={"model": model["id"], "calibration": upload["id"], "recipe": MAGNITUDE})
    assert_refused_because_of(answer, "calibration", seen["problem"])


@pytest.mark.parametrize("name", MASKS)
def test_a_bad_mask_is_rejected_with_the_reason(
    client: Client, sent: dict[str, tuple[dict[str, Any], str]], model: dict[str, Any], good_data: str, name: str
) -> None:
    upload, slug = sent[f"masks/{name}"]
    seen = client.wait(f"/masks/{upload['id']}", {"ready", "rejected"}, SECONDS)
    assert seen["state"] == "rejected", seen
    assert_says_what_to_know(seen["problem"], slug)
    answer = client.post(
        "/jobs", json={"model": model["id"], "calibration": good_data, "recipe": MASKED, "masks": upload["id"]}
    )
    assert_refused_because_of(answer, "masks", seen["problem"])


def test_a_mask_that_does_not_fit_the_model_fails_the_job(
    client: Client, model: dict[str, Any], good_data: str, tmp_path: Path
) -> None:
    save_file({"0.weight": torch.ones(16, 9, dtype=torch.bool)}, tmp_path / "masks.safetensors")
    upload = client.send_file("masks", tmp_path / "masks.safetensors")
    ended = client.prune(MASKED, model["id"], good_data, masks=upload["id"])
    assert ended["state"] == "failed", ended
    assert_says_what_to_know(ended["error"], "invalid-mask")
    assert ended["error"]["status"] == 422
    assert "0.weight" in ended["error"]["detail"]
    assert (ended["error"]["expected"], ended["error"]["received"]) == (["bool", 16, 8], ["bool", 16, 9])


def assert_refused_because_of(answer: httpx.Response, field: str, problem: dict[str, Any]) -> None:
    assert answer.status_code == 422, answer.text
    document = answer.json()
    assert document["type"] == PROBLEM_TYPE + "rejected-upload"
    assert (document["field"], document["problem"]) == (field, problem)


def test_the_reason_names_what_is_wrong(client: Client, sent: dict[str, tuple[dict[str, Any], str]]) -> None:
    def problem(kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = client.wait(f"/{kind}/{sent[f'{kind}/{name}'][0]['id']}", {"rejected"}, SECONDS)[
            "problem"
        ]
        return found

    assert "no linear or convolution layer" in problem("models", "elementwise.pt2")["detail"]
    assert "eval()" in str(problem("models", "training.pt2"))
    assert "fc3" in str(problem("models", "shapes.safetensors"))
    assert "nan" in str(problem("datasets", "nan.npz")).lower()
    assert "x" in str(problem("datasets", "objects.npz"))


def test_data_that_does_not_fit_the_model_fails_the_job(client: Client, model: dict[str, Any]) -> None:
    ended = client.prune(MAGNITUDE, model["id"], dataset(client, np.zeros((20, 9), np.float32)))
    assert ended["state"] == "failed", ended
    assert_says_what_to_know(ended["error"], "invalid-dataset")
    assert (ended["error"]["dataset"], ended["error"]["array"]) == ("calibration", "x")
    assert (ended["error"]["expected"], ended["error"]["received"]) == (["samples", 8], [20, 9])
    answer = client.get(f"/jobs/{ended['id']}/model")
    assert answer.status_code == 409
    assert answer.json()["error"] == ended["error"]


def test_a_recipe_that_leaves_no_layer_fails_the_job(client: Client, model: dict[str, Any], good_data: str) -> None:
    recipe = {"select": {**MAGNITUDE["select"], "layers": {"exclude": ["*"]}}}
    ended = client.prune(recipe, model["id"], good_data)
    assert ended["state"] == "failed"
    assert_says_what_to_know(ended["error"], "nothing-to-prune")


def test_a_job_queued_before_its_model_was_rejected_fails_with_that_problem(
    client: Client, good_data: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pt2"
    sound = sound_model(tmp_path / "sound.pt2").read_bytes()
    broken.write_bytes(sound[:-200])
    upload = client.send_file("models", broken)
    assert upload["state"] == "inspecting"
    ended = client.prune(MAGNITUDE, upload["id"], good_data)
    rejected = client.wait(f"/models/{upload['id']}", {"rejected"}, SECONDS)
    assert ended["state"] == "failed"
    found = ended["error"]
    assert rejected["problem"]["type"] in {found["type"], found.get("problem", {}).get("type")}, found


def test_the_service_still_works_after_all_this(client: Client, model: dict[str, Any], good_data: str) -> None:
    ended = client.prune(MAGNITUDE, model["id"], good_data)
    assert ended["state"] == "succeeded", ended
    parts = service_memory(client.base_url.port)
    assert any("api" in name for name in parts), parts
    assert all(size < MOST_MEMORY for size in parts.values()), parts


def service_memory(port: int | None) -> dict[str, int]:
    """Command line -> resident bytes, of each long-lived process of the service that answers at this port."""
    here = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "cli.up" in (process.info["cmdline"] or ()) and process.environ().get("PORT") == str(port)
    ]
    parts = [part for up in here for part in up.children(recursive=True)]
    found = {}
    for part in parts:
        with contextlib.suppress(psutil.Error):
            found[f"{part.pid} {' '.join(part.cmdline())}"[:200]] = part.memory_info().rss
    return found
