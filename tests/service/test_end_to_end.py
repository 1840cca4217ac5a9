"""The main job through the running service: files go in over HTTP and come back pruned, as the library prunes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file, save_file

from pruning_core import Recipe, prune, read_dataset, read_model, write_model
from pruning_core.calibration import bind
from pruning_core.pipeline import finish
from pruning_core.report import Report
from pruning_core.verify import verify
from tests.service.client import Client

ASSETS = Path(os.environ.get("PRUNING_ASSETS", Path(__file__).resolve().parents[3] / "shared" / "assets"))
WEIGHTS = 89632  # prunable ones of the demo's network
CHITA_90 = {"select": {"algorithm": "chita", "sparsity": 0.9, "structure": "block"}}


@pytest.fixture(scope="module")
def client(live: str) -> Iterator[Client]:
    with Client(live) as client:
        yield client


@pytest.fixture(scope="module")
def uploads(client: Client, digits: Path) -> dict[str, dict[str, Any]]:
    return {
        "model": client.send_file("models", digits / "digits.pt2"),
        "calibration": client.send_file("datasets", digits / "calibration.npz"),
        "validation": client.send_file("datasets", digits / "validation.npz"),
    }


@pytest.fixture(scope="module")
def job(client: Client, uploads: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ended = client.prune(
        CHITA_90, uploads["model"]["id"], uploads["calibration"]["id"], validation=uploads["validation"]["id"]
    )
    assert ended["state"] == "succeeded", ended
    return ended


def test_model_is_inspected_and_says_what_can_be_pruned(client: Client, uploads: dict[str, dict[str, Any]]) -> None:
    model = client.wait(f"/models/{uploads['model']['id']}", {"ready", "rejected"})
    assert model["state"] == "ready", model
    inspection = model["inspection"]
    assert [layer["weights"] for layer in inspection["layers"]] == [288, 18432, 36864, 32768, 1280]
    assert inspection["parameters"] == WEIGHTS + 2 * (32 + 64 + 64) + 128 + 10
    assert inspection["inputs"][0]["shape"] == [None, 1, 8, 8]


def test_bytes_equal_the_librarys(client: Client, digits: Path, job: dict[str, Any], tmp_path: Path) -> None:
    network = read_model(digits / "digits.pt2")
    data = bind(read_dataset(digits / "calibration.npz"), network.inputs)
    write_model(
        finish(prune(network, data, Recipe.parse(CHITA_90))).network, digits / "digits.pt2", tmp_path / "pruned.pt2"
    )
    served = client.get(f"/jobs/{job['id']}/model").content
    assert hashlib.sha256(served).hexdigest() == hashlib.sha256((tmp_path / "pruned.pt2").read_bytes()).hexdigest()


def test_downloaded_model_is_sparse_exact_and_better_than_magnitude(
    client: Client, digits: Path, job: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "pruned.pt2").write_bytes(client.get(f"/jobs/{job['id']}/model").content)
    masks = load_safetensors(client.get(f"/jobs/{job['id']}/masks").content)
    report = Report.model_validate(client.get(f"/jobs/{job['id']}/report").json())
    state = torch.export.load(tmp_path / "pruned.pt2").state_dict
    zeros = 0
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert not state[name][~mask].any(), "a pruned weight is not zero"
        zeros += int((state[name] == 0).sum())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.9 * WEIGHTS)
    (level,), (file,) = report.pruning.levels, report.files
    assert level.sparsity == pytest.approx(zeros / WEIGHTS)
    assert level.pattern_holds
    assert report.pruning.data == "validation"

    program = torch.export.load(tmp_path / "pruned.pt2").module()
    with np.load(digits / "validation.npz") as held_out:
        right = (program(torch.from_numpy(held_out["x"])).argmax(1).numpy() == held_out["y"]).mean()
    assert level.pruned.accuracy == pytest.approx(right, abs=1e-9), "measured, not requested"
    assert level.magnitude.accuracy is not None
    assert right > level.magnitude.accuracy
    assert file.sha256 == hashlib.sha256((tmp_path / "pruned.pt2").read_bytes()).hexdigest()
    assert "no speed-up" in file.speedup.lower() or "faster" in file.speedup.lower()


def test_a_list_of_sparsities_comes_back_as_models_that_verify_offline(
    client: Client, digits: Path, uploads: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = {"select": {"algorithm": "magnitude", "sparsity": [0.5, 0.9]}}
    ended = client.prune(recipe, uploads["model"]["id"], uploads["calibration"]["id"])
    assert ended["state"] == "succeeded", ended
    (tmp_path / "report.json").write_bytes(client.get(ended["links"]["report"]).content)
    for level in ended["result"]["levels"]:
        for name, link in level["links"].items():
            (tmp_path / name).write_bytes(client.get(link).content)
        assert hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest() == level["sha256"]
        files = (tmp_path / "model", tmp_path / "report.json")
        checks = verify(*files, masks=tmp_path / "masks", dense=digits / "digits.pt2")
        assert all(check.holds for check in checks), checks
    curve = [level["quality"]["accuracy"] for level in ended["result"]["levels"]]
    assert curve[0] > curve[1], "the curve falls: a tenth of the weights is too little for magnitude pruning"
    assert client.get(f"/jobs/{ended['id']}/model").status_code == 400


def test_the_masks_of_one_job_are_the_pattern_of_the_next(
    client: Client, job: dict[str, Any], uploads: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    masks = client.get(f"/jobs/{job['id']}/masks").content
    (tmp_path / "masks.safetensors").write_bytes(masks)
    upload = client.send_file("masks", tmp_path / "masks.safetensors")
    inspected = client.wait(f"/masks/{upload['id']}", {"ready", "rejected"})
    assert inspected["state"] == "ready", inspected
    assert inspected["inspection"]["kept"] == WEIGHTS - round(0.9 * WEIGHTS)
    assert inspected["inspection"]["weights"] == WEIGHTS
    recipe = {"select": {"algorithm": "magnitude", "pattern": "mask"}}
    ended = client.prune(recipe, uploads["model"]["id"], uploads["calibration"]["id"], masks=upload["id"])
    assert ended["state"] == "succeeded", ended
    assert client.get(f"/jobs/{ended['id']}/masks").content == masks


def test_layers_left_out_stay_as_they_were(
    client: Client, digits: Path, uploads: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = {"select": {"algorithm": "magnitude", "sparsity": 0.5, "layers": {"exclude": ["classifier.*"]}}}
    ended = client.prune(recipe, uploads["model"]["id"], uploads["calibration"]["id"])
    assert ended["state"] == "succeeded", ended
    (tmp_path / "pruned.pt2").write_bytes(client.get(f"/jobs/{ended['id']}/model").content)
    dense = torch.export.load(digits / "digits.pt2").state_dict
    pruned = torch.export.load(tmp_path / "pruned.pt2").state_dict
    changed = {name for name in dense if not torch.equal(dense[name], pruned[name])}
    assert changed == {"features.0.weight", "features.3.weight", "features.7.weight"}


@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"the papers' checkpoints are not at {ASSETS} (set PRUNING_ASSETS)")
def test_papers_mlpnet_as_safetensors_comes_back_as_safetensors(client: Client, tmp_path: Path) -> None:
    weights = load_file(ASSETS / "mlpnet_mnist.safetensors")
    save_file(weights, tmp_path / "mlpnet.safetensors", {"config": json.dumps({"architecture": "mlpnet-mnist"})})
    with np.load(ASSETS / "mnist_train.npz") as train:
        x = ((train["x"][:2000].reshape(-1, 784) / 255 - 0.1307) / 0.3081).astype(np.float32)
        np.savez(tmp_path / "mnist.npz", x=x, y=train["y"][:2000].astype(np.int64))
    ended = client.prune(
        CHITA_90,
        client.send_file("models", tmp_path / "mlpnet.safetensors")["id"],
        client.send_file("datasets", tmp_path / "mnist.npz")["id"],
    )
    assert ended["state"] == "succeeded", ended
    pruned = load_safetensors(client.get(f"/jobs/{ended['id']}/model").content)
    assert {name: tensor.shape for name, tensor in pruned.items()} == {n: t.shape for n, t in weights.items()}
    assert sum(int((tensor == 0).sum()) for tensor in pruned.values()) >= round(0.9 * 32360)
