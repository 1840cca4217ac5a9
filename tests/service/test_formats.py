"""Formats that people have, through the running service: sent, inspected, pruned, downloaded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from pyarrow import parquet

from pruning_core import read_model
from pruning_core.errors import PROBLEM_TYPE
from tests.formats.onnx_models import answers, floats, model, node
from tests.service.client import Client

HALF = {"algorithm": "wanda", "sparsity": 0.5}


@pytest.fixture(scope="module")
def client(live: str) -> Iterator[Client]:
    with Client(live) as client:
        yield client


def class_folders(path: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Path:
    """A zip of class folders with grey PNGs of pictures with values in 0..1."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, (picture, label) in enumerate(zip(x, y, strict=True)):
            png = io.BytesIO()
            Image.fromarray((picture * 255).round().astype(np.uint8)).save(png, "PNG")
            archive.writestr(f"digit-{label}/{i:04}.png", png.getvalue())
    return path


def test_pictures_in_class_folders(client: Client, digits: Path, tmp_path: Path) -> None:
    with np.load(digits / "calibration.npz") as arrays:
        x, y = arrays["x"][:100, 0], arrays["y"][:100]
    low, high = float(x.min()), float(x.max())
    model = client.send_file("models", digits / "digits.pt2")["id"]
    data = client.send_file("datasets", class_folders(tmp_path / "d.zip", (x - low) / (high - low), y))["id"]
    inspection = client.wait(f"/datasets/{data}", {"ready", "rejected"})["inspection"]
    assert inspection["format"] == "zip"
    assert inspection["samples"] == 100
    assert inspection["pictures"]["classes"] == [f"digit-{i}" for i in range(10)]
    client.wait(f"/models/{model}", {"ready"})

    recipe = {"select": HALF, "preprocess": {"mean": [-low / (high - low)], "std": [1 / (high - low)]}}
    planned = client.post("/plans", json={"model": model, "calibration": data, "recipe": recipe}).json()
    assert planned["recipe"]["preprocess"]["crop"] == [8, 8]
    assert planned["recipe"]["preprocess"]["channels"] == "l"
    for path in ("/plans", "/jobs"):
        wrong = {**recipe, "preprocess": {"crop": 9}}
        answer = client.post(path, json={"model": model, "calibration": data, "recipe": wrong})
        assert answer.status_code == 422
        assert answer.json()["type"] == PROBLEM_TYPE + "invalid-recipe"
        assert '"crop": [8, 8]' in answer.json()["advice"]

    job = client.prune(recipe, model, data)
    assert job["state"] == "succeeded", job
    report = client.get(f"/jobs/{job['id']}/report").json()
    assert report["preprocessing"]["calibration"]["of"] == 100
    assert report["pruning"]["dense"]["accuracy"] > 0.95, "labels follow the folders, values the network's own"


def test_onnx_comes_back_as_onnx(client: Client, tmp_path: Path) -> None:
    classes = 3
    rng = np.random.default_rng(0)
    arrays = {"w1": floats(3, 16), "b1": floats(16), "w2": floats(classes, 16, seed=1), "b2": floats(classes)}
    nodes = [
        node("GlobalAveragePool", ["x"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "w1"], ["product"]),
        node("Add", ["product", "b1"], ["hidden"]),
        node("Relu", ["hidden"], ["active"]),
        node("Gemm", ["active", "w2", "b2"], ["y"], transB=1),
    ]
    path, pruned = tmp_path / "net.onnx", tmp_path / "pruned.onnx"
    path.write_bytes(model(nodes, {"x": (1, ["n", 3, 8, 8])}, arrays))
    pictures = rng.integers(0, 256, (60, 8, 8, 3), np.uint8)
    rows = []
    for picture in pictures:
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        rows.append({"bytes": png.getvalue(), "path": None})
    parquet.write_table(pa.table({"image": rows, "label": rng.integers(0, classes, 60)}), tmp_path / "d.parquet")

    sent = client.send_file("models", path)["id"]
    data = client.send_file("datasets", tmp_path / "d.parquet")["id"]
    inspection = client.wait(f"/models/{sent}", {"ready", "rejected"})["inspection"]
    assert inspection["format"] == "onnx"
    assert [layer["shape"] for layer in inspection["layers"]] == [[16, 3], [3, 16]]
    job = client.prune({"select": {"algorithm": "sparsegpt", "sparsity": 0.5}}, sent, data)
    assert job["state"] == "succeeded", job
    answer = client.get(f"/jobs/{job['id']}/model")
    assert "net-pruned.onnx" in answer.headers["content-disposition"]
    pruned.write_bytes(answer.content)
    assert len(answer.content) == path.stat().st_size
    before, after = (onnx.load(file).graph.initializer for file in (path, pruned))
    zeros = sum(int((numpy_helper.to_array(item) == 0).sum()) for item in after if item.name in ("w1", "w2"))
    assert zeros == 48
    assert all(a.raw_data == b.raw_data for a, b in zip(before, after, strict=True) if a.name in ("b1", "b2"))
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    ours, theirs = read_model(pruned).run([x])[0], answers(pruned, [x])[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    report = client.get(f"/jobs/{job['id']}/report").json()
    agreement = (ours.argmax(1) == answers(path, [x])[0].argmax(1)).float().mean()
    assert report["pruning"]["levels"][0]["pruned"]["agreement"] == pytest.approx(float(agreement), abs=0.02)
