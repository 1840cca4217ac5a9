"""Latency in onnxruntime: measured in the sandbox on the produced file, for ONNX only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pruning_core.report import Report
from tests.formats.onnx_models import export
from tests.worker.finished import finish
from worker.runtimes import onnx_runtime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
    return export(module, (torch.randn(4, 12),), tmp_path_factory.mktemp("onnx") / "net.onnx", "legacy")


def test_a_job_on_an_onnx_file_is_timed_in_onnxruntime_too(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(model.read_bytes())
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.standard_normal((40, 12)).astype(np.float32), y=random.integers(0, 5, 40))
    (tmp_path / "data.npz").rename(tmp_path / "calibration")
    finish(tmp_path, {"select": {"algorithm": "magnitude", "sparsity": 0.75}})
    (file,) = Report.model_validate_json((tmp_path / "report.json").read_bytes()).files
    (runtime,) = file.runtimes
    assert (file.format, runtime.name, runtime.version) == ("onnx", "onnxruntime", onnxruntime.__version__)
    assert min(runtime.latency_ms, runtime.latency_ms_before) > 0
    assert "onnxruntime" in file.speedup
    assert file.speedup.startswith("No speed-up here")


def test_what_onnxruntime_does_not_take_is_not_measured(model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(model.read_bytes()[:-40])
    assert onnx_runtime(model, tmp_path / "broken", [torch.randn(4, 12)], 0.1) is None
    assert onnx_runtime(model, model, [torch.randn(4, 13)], 0.1) is None
