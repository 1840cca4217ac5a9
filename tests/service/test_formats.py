"""Formats that people have, through the running service: sent, inspected, pruned, downloaded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pruning_core.errors import PROBLEM_TYPE
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
