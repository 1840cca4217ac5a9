"""Batch-norm statistics computed anew: against hooks on the eager module, and through a whole job."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_core.algorithms import FolderCheckpoints
from pruning_core.algorithms.recalibration import statistics
from pruning_core.calibration import Dataset
from pruning_core.formats import same_bits, write_model
from pruning_core.network import Network
from pruning_core.pipeline import Pruned, finish, prune
from pruning_core.recipe import Recipe
from pruning_core.report import FileReport, Report
from pruning_core.verify import verify
from tests.core.exported import exported
from tests.formats import zoo

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func about itself


@pytest.mark.parametrize("name", ["cnn", "depthwise"])
def test_statistics_equal_what_the_eager_modules_see(name: str) -> None:
    network, data, _ = exported(name)
    halved = {layer.weight: network.weights[layer.weight] / 2 for layer in network.layers}
    found = statistics(network, [[x[:7] for x in data.inputs], [x[7:20] for x in data.inputs]], halved)

    torch.manual_seed(0)
    module = zoo.make(name).module
    with torch.no_grad():
        for key, weight in halved.items():
            module.get_parameter(key).copy_(weight)
    norms = {key: part for key, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert sorted(found) == sorted(f"{key}.{name}" for key in norms for name in ("running_mean", "running_var"))
    for key, norm in norms.items():  # in execution order: each sees those before it as they are now
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            module(*(x[:20] for x in data.inputs))
        handle.remove()
        mean, variance = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3))
        assert torch.allclose(found[f"{key}.running_mean"], mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(found[f"{key}.running_var"], variance, rtol=1e-4, atol=1e-8)
        norm.running_mean, norm.running_var = mean, variance


def test_a_network_without_batch_norm_stays_as_it_is() -> None:
    network, data, _ = exported("mlp")
    assert statistics(network, [data.inputs], {}) == {}
    (report,) = job("mlp").report.levels
    assert report.recalibrated == ()
    assert "There is no batch norm to recalibrate." in report.notes


def job(name: str, checkpoints: FolderCheckpoints | None = None, network: Network | None = None) -> Pruned:
    """Prune a network on samples whose labels are those it gives with the right statistics."""
    given, data, _ = exported(name)
    right = given.with_weights(statistics(given, [data.inputs], {}))
    data = Dataset(inputs=data.inputs, labels=right.run(data.inputs)[0].argmax(-1))
    recipe = {
        "select": {"algorithm": "magnitude", "sparsity": 0.3},
        "refine": {"algorithm": "snows", "targets": "local", "window": 0, "recalibrate": True},
    }
    pruned: Pruned = finish(prune(network or given, data, Recipe.parse(recipe), checkpoints=checkpoints))
    return pruned


def about(file: Path) -> FileReport:
    data = file.read_bytes()
    sizes = dict.fromkeys(("size_bytes", "size_bytes_before", "compressed_bytes", "compressed_bytes_before"), len(data))
    return FileReport(
        format="pt2",
        sha256=hashlib.sha256(data).hexdigest(),
        latency_ms=1.0,
        latency_ms_before=1.0,
        batch=1,
        speedup="",
        **sizes,
    )


def test_a_job_names_what_it_replaced_and_the_file_can_be_verified(tmp_path: Path) -> None:
    given, _, archive = exported("cnn")
    wrong = {name: value * 9 for name, value in given.weights.items() if name.endswith("running_var")}
    network = given.with_weights(wrong)
    pruned = job("cnn", FolderCheckpoints(tmp_path, "f"), network)
    (level,) = pruned.levels
    changed = {name for name, value in level.network.weights.items() if not same_bits(value, network.weights[name])}
    assert changed == {*level.masks, *level.report.recalibrated}
    assert level.report.recalibrated
    assert all(name.endswith(("running_mean", "running_var")) for name in level.report.recalibrated)

    again = job("cnn", FolderCheckpoints(tmp_path, "f"), network)
    assert again.report.resumed
    assert all(same_bits(again.network.weights[name], value) for name, value in pruned.network.weights.items())

    exports, dense, file, report = (tmp_path / name for name in ("exported", "dense", "pruned", "report.json"))
    exports.write_bytes(archive)
    write_model(network, exports, dense)
    write_model(level.network, dense, file)
    document = Report(
        pruning=pruned.report,
        files=(about(file),),
        inputs={"model": hashlib.sha256(dense.read_bytes()).hexdigest()},
        how_to_check="",
    )
    report.write_text(document.model_dump_json(), "utf-8")
    assert [check for check in verify(file, report, dense=dense) if not check.holds] == []
    stated = json.loads(report.read_text("utf-8"))
    stated["pruning"]["levels"][0]["recalibrated"] = []
    report.write_text(json.dumps(stated), "utf-8")
    assert [check.what for check in verify(file, report, dense=dense) if not check.holds] == ["untouched tensors"]
