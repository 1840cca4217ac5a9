"""A model file against its report: what the service makes holds, and every kind of damage is seen."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning_core.verify import main, verify
from tests.jobs.inputs import digits, mlpnet
from worker import sandbox
from worker.sandbox import Limits

LIMITS = Limits(memory_bytes=3 * 2**30, cpu_seconds=100, file_bytes=2**28, wall_seconds=100)
MAGNITUDE = {"algorithm": "magnitude"}
RECIPES: dict[str, dict[str, Any]] = {
    "list": {**MAGNITUDE, "sparsity": [0.5, 0.9], "layers": {"exclude": ["fc3"]}},
    "2:4": {**MAGNITUDE, "pattern": "2:4"},
    "4x1": {**MAGNITUDE, "pattern": "4x1", "sparsity": 0.75},
    "goal": {**MAGNITUDE, "sparsity": {"max_accuracy_drop": 1.0, "precision": 0.2}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with what the worker made by a recipe."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = folders[name] = tmp_path_factory.mktemp("made")
            (folder / "model").write_bytes(mlpnet())
            (folder / "calibration").write_bytes(digits(80))
            arguments = {"recipe": {"select": RECIPES[name]}, "device": "cpu"}
            result = sandbox.run(
                "prune", folder, arguments, limits=LIMITS, on_progress=lambda _: None, stop=lambda: None
            )
            assert result.status == "ok", result.problem
        return folders[name]

    return make


def failed(*arguments: Any, **more: Any) -> set[str]:
    return {check.what for check in verify(*arguments, **more) if not check.holds}


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_worker_makes_holds(
    made: Callable[[str], Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(name)
    for i in range(2 if name == "list" else 1):
        files = [str(folder / file) for file in (f"pruned-{i}", "report.json", f"masks-{i}.safetensors", "model")]
        assert main([*files[:2], "--masks", files[2], "--dense", files[3]]) == 0
        shown = capsys.readouterr().out
        assert "FAIL" not in shown
        assert "untouched tensors" in shown
        assert ("layer fc3" in shown) == (name != "list")
        assert main(files[:2]) == 0


def test_files_of_another_level_do_not_pass(made: Callable[[str], Path]) -> None:
    folder = made("list")
    report = folder / "report.json"
    assert "masked weights are zero" in failed(folder / "pruned-0", report, masks=folder / "masks-1.safetensors")
    assert failed(folder / "pruned-1", report, masks=folder / "masks-0.safetensors") == {
        "masks have the pattern unstructured"
    }
    assert failed(folder / "model", report) == {"sha256"}
    assert failed(folder / "pruned-0", report, dense=folder / "pruned-1") == {"sha256 of the dense file"}


def changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> tuple[Path, Path]:
    """The model with other weights, and a report that gives its digest and size: only the contents can betray it."""
    with (folder / "pruned-0").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    weights = load_file(folder / "pruned-0")
    change(weights)
    model = tmp_path / "model.safetensors"
    save_file(weights, model, header["__metadata__"])
    report = json.loads((folder / "report.json").read_text())
    report["files"][0] |= {
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "size_bytes": model.stat().st_size,
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    return model, tmp_path / "report.json"


def test_every_kind_of_damage_is_seen(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("2:4")
    masks, dense = folder / "masks-0.safetensors", folder / "model"

    def damage(change: Callable[[dict[str, torch.Tensor]], None]) -> set[str]:
        return failed(*changed(folder, tmp_path, change), masks=masks, dense=dense)

    def revive(weights: dict[str, torch.Tensor]) -> None:
        row = weights["fc1.weight"][3]
        row[(row == 0).nonzero()[0]] = 1.0

    def move(weights: dict[str, torch.Tensor]) -> None:
        """One zero elsewhere: the counts stay."""
        row = weights["fc1.weight"][3]
        zero, other = (row == 0).nonzero()[0].item(), (row != 0).nonzero()[-1].item()
        row[zero], row[other] = 1.0, 0.0

    assert damage(lambda _: None) == set()
    assert damage(revive) == {"layer fc1", "sparsity", "pattern 2:4", "masked weights are zero"}
    assert damage(move) == {"pattern 2:4", "masked weights are zero"}
    assert damage(lambda weights: weights["fc1.bias"].add_(1e-6)) == {"untouched tensors"}
    assert damage(lambda weights: weights["fc2.weight"][0].zero_()) == {"layer fc2", "sparsity"}


def test_a_report_that_claims_too_much(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder, report = made("4x1"), tmp_path / "report.json"
    stated = json.loads((folder / "report.json").read_text())

    def with_level(**more: Any) -> set[str]:
        (level,) = stated["pruning"]["levels"]
        report.write_text(json.dumps({**stated, "pruning": {**stated["pruning"], "levels": [{**level, **more}]}}))
        return failed(folder / "pruned-0", report, masks=folder / "masks-0.safetensors")

    (level,) = stated["pruning"]["levels"]
    first, *rest = level["layers"]
    assert with_level() == set()
    assert with_level(sparsity=0.8) == {"sparsity"}
    assert with_level(layers=[{**first, "zeros": first["zeros"] + 1}, *rest]) == {"layer fc1"}
    assert with_level(layers=[{**first, "shape": [784, 40]}, *rest]) == {"layer fc1"}
    assert with_level(layers=[{**first, "name": "fc9"}, *rest]) >= {"layer fc9"}
    assert with_level(layers=rest) >= {"masks fit"}
    assert with_level(sparsity_target=0.9) == {"pattern 4x1", "masks have the pattern 4x1"}


@pytest.mark.parametrize("report", [b"", b"{}", b"[]", b"\xff", b'{"pruning": {}}'])
def test_what_is_no_report_or_no_model(made: Callable[[str], Path], tmp_path: Path, report: bytes) -> None:
    (tmp_path / "report.json").write_bytes(report)
    assert failed(made("2:4") / "pruned-0", tmp_path / "report.json") == {"report"}
    (tmp_path / "model").write_bytes(report or b"x")
    assert failed(tmp_path / "model", made("2:4") / "report.json") == {"files"}
    assert main([str(tmp_path / "none"), str(made("2:4") / "report.json")]) == 2


def test_as_a_command(made: Callable[[str], Path]) -> None:
    folder = made("2:4")
    command = [sys.executable, "-m", "pruning_core.verify", str(folder / "model"), str(folder / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "FAIL  sha256" in done.stdout
