"""Latency, dense beside pruned: in turns, with an interval, in every runtime there is; said plainly."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pruning_core.network import Graph, Input, Network, Node, Ref
from pruning_core.report import Report, RuntimeReport
from tests.formats.onnx_models import export
from tests.worker.finished import finish
from worker import runtimes
from worker.measure import sentence
from worker.runtimes import compare, median_interval, onnx_runtime
from worker.semi_structured import semi_structured, timed, two_of_four


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


def test_both_take_turns_and_the_ratio_comes_with_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def run(name: str, milliseconds: float) -> None:
        order.append(name)
        clock[0] += milliseconds / 1000

    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: clock[0])
    timing = compare(lambda: run("dense", 3.0), lambda: run("pruned", 2.0), seconds=60.0)
    assert (timing.before, timing.after) == (pytest.approx(3.0), pytest.approx(2.0))
    assert timing.ratio_interval == (pytest.approx(1.5), pytest.approx(1.5))
    assert len(order) == 32
    assert order[2:6] in (["dense", "pruned", "pruned", "dense"], ["pruned", "dense", "dense", "pruned"])


def test_the_interval_of_a_median_covers_it() -> None:
    random = np.random.default_rng(0)
    for count in (6, 9, 15):
        inside = 0
        for _ in range(2000):
            interval = median_interval(random.exponential(size=count).tolist())
            assert interval is not None
            inside += interval[0] <= np.log(2) <= interval[1]
        assert inside / 2000 > 0.94
    assert median_interval([1.0] * 5) is None
    assert median_interval([]) is None


def _runtime(name: str, ratio: float, interval: tuple[float, float] | None) -> RuntimeReport:
    return RuntimeReport(name=name, version="1", latency_ms=2.0, latency_ms_before=2.0 * ratio, ratio_interval=interval)


def test_faster_is_said_only_where_the_whole_interval_says_so() -> None:
    noise, real = _runtime("eager", 1.2, (0.97, 1.4)), _runtime("2:4 kernels", 1.5, (1.4, 1.6))
    text = sentence(8, [noise], (1000, 250))
    assert text.startswith("No speed-up here")
    assert "ratio 1.20 (95 % interval 0.97 to 1.40)" in text
    assert "4.0 times smaller" in text
    assert sentence(8, [noise, real], (1000, 250)).startswith("Faster: 1.50 times in 2:4 kernels.")
    assert sentence(8, [_runtime("eager", 9.0, None)], (1000, 250)).startswith("No speed-up here")


@pytest.fixture(scope="module")
def networks() -> tuple[Network, Network]:
    torch.manual_seed(0)
    node = partial(Node, op="aten.linear.default")
    graph = Graph(
        weights={"v": "first.weight", "w": "last.weight"},
        inputs=("x",),
        nodes=[
            node(name="h", arguments={"input": Ref("x"), "weight": Ref("v")}, outputs="h"),
            node(name="y", arguments={"input": Ref("h"), "weight": Ref("w")}, outputs="y"),
        ],
        outputs=("y",),
    )
    weights = {"first.weight": torch.randn(32, 64), "last.weight": torch.randn(10, 32)}
    inputs = [Input(name="x", dtype=torch.float32, shape=(None, 64))]
    dense = Network(graph=graph, weights=weights, parameters=list(weights), inputs=inputs)
    keep = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(32, 16)
    return dense, dense.with_weights({"first.weight": weights["first.weight"] * keep})


def test_only_weights_with_two_zeros_in_every_four_go_to_two_of_four_kernels(networks: tuple[Network, Network]) -> None:
    dense, pruned = networks
    assert two_of_four(dense) == []
    assert two_of_four(pruned) == ["first.weight"]


def test_two_of_four_kernels_are_timed_beside_dense_ones_and_checked(networks: tuple[Network, Network]) -> None:
    """The kernels need a GPU; all around them does not: here a weight is 'packed' into itself."""
    inputs = [torch.randn(4, 64)]
    found = timed(*networks, inputs, 0.2, lambda weight: weight.clone())
    assert found is not None
    assert found.name == "2:4 kernels (float16)"
    assert min(found.latency_ms, found.latency_ms_before) > 0
    assert timed(*networks, inputs, 0.2, lambda weight: 2 * weight) is None

    def refuse(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not a multiple of the tile")

    assert timed(*networks, inputs, 0.2, refuse) is None
    assert semi_structured(*networks, inputs, 0.2) is None, "a CPU has no such kernels"


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU with 2:4 kernels (NVIDIA, compute capability 8.0 or more)",
)
def test_two_of_four_kernels_on_a_gpu(networks: tuple[Network, Network]) -> None:
    dense, pruned = (network.to("cuda") for network in networks)
    assert semi_structured(dense, pruned, [torch.randn(64, 64, device="cuda")], 1.0) is not None
