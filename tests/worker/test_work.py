"""The real tasks in the real sandbox, on a small exported network: what is inspected, pruned, verified, reported."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file
from torch import Tensor, nn

from pruning_core import expand as expand_command
from pruning_core.compact import LEVEL, expand
from pruning_core.errors import PruningError
from pruning_core.formats.masks import write_masks
from pruning_core.report import Progress, Report
from pruning_core.verify import verify as verify_file
from worker import sandbox
from worker.sandbox import Limits, Result
from worker.work import verify

LIMITS = Limits(memory_bytes=3 * 2**30, cpu_seconds=120, file_bytes=2**28, wall_seconds=100)
RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.75}}


def run(task: str, folder: Path, arguments: dict[str, Any] | None = None, seen: list[Progress] | None = None) -> Result:
    steps = [] if seen is None else seen
    return sandbox.run(task, folder, arguments or {}, limits=LIMITS, on_progress=steps.append, stop=lambda: None)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()),
        )
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` and ``calibration``."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(Small().eval(), (torch.randn(2, 1, 6, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")
    (folder / "model.pt2").rename(folder / "model")
    rng = np.random.default_rng(0)
    with (folder / "calibration").open("wb") as file:
        np.savez(file, x=rng.standard_normal((40, 1, 6, 6)), y=rng.integers(0, 4, 40))
    return folder


@pytest.fixture
def work(files: Path, tmp_path: Path) -> Path:
    for name in ("model", "calibration"):
        shutil.copy(files / name, tmp_path / name)
    return tmp_path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inspect_model(work: Path) -> None:
    result = run("inspect_model", work)
    assert result.value is not None, result.problem
    assert result.value["format"] == "pt2"
    assert result.value["parameters"] == sum(p.numel() for p in Small().parameters())
    assert result.value["layers"] == [
        {"name": "body.0", "weight": "body.0.weight", "kind": "conv", "shape": [8, 1, 3, 3], "weights": 72},
        {"name": "body.3", "weight": "body.3.weight", "kind": "conv", "shape": [8, 8, 3, 3], "weights": 576},
        {"name": "head", "weight": "head.weight", "kind": "linear", "shape": [4, 288], "weights": 1152},
    ]
    assert result.value["unprunable"] == {}
    assert result.value["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 1, 6, 6]}]
    assert result.value["batch"] is None


def test_inspect_model_without_layers(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.ReLU(), (torch.randn(2, 3),)), tmp_path / "model.pt2")
    (tmp_path / "model.pt2").rename(tmp_path / "model")
    result = run("inspect_model", tmp_path)
    assert result.status == "failed"
    assert result.problem is not None
    assert result.problem["type"].endswith(":nothing-to-prune")


def test_inspect_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"PK\x03\x04 and no more")
    result = run("inspect_model", tmp_path)
    assert result.status == "failed"
    assert result.problem is not None
    assert result.problem["type"].endswith(":invalid-model")


def test_inspect_dataset(work: Path) -> None:
    (work / "calibration").rename(work / "dataset")
    result = run("inspect_dataset", work)
    assert result.value == {
        "format": "npz",
        "arrays": {"x": {"dtype": "float64", "shape": [40, 1, 6, 6]}, "y": {"dtype": "int64", "shape": [40]}},
        "samples": 40,
        "labels": True,
    }
    with (work / "dataset").open("wb") as file:
        np.savez(file, x=np.array([[1.0, np.nan]]))
    result = run("inspect_dataset", work)
    assert result.status == "failed"
    assert result.problem is not None
    assert "(0, 1)" in result.problem["detail"]


@pytest.mark.parametrize("algorithm", ["magnitude", "chita"])
def test_prune_end_to_end_twice_the_same(work: Path, algorithm: str) -> None:
    recipe = {"select": {"algorithm": algorithm, "sparsity": 0.75}, "seed": 3}
    shutil.copy(work / "calibration", work / "validation")
    seen: list[Progress] = []
    arguments = {"recipe": recipe, "device": "cpu", "sha256": {"model": sha256(work / "model")}}
    result = run("prune", work, arguments, seen)
    assert result.status == "ok", result.problem
    assert result.value is not None
    assert result.value["levels"] == [0.75]

    report = Report.model_validate_json((work / "report.json").read_text())
    (level,), (file,) = report.pruning.levels, report.files
    assert report.inputs == {name: sha256(work / name) for name in ("model", "calibration", "validation")}
    assert report.pruning.algorithm == result.value["summary"]["algorithm"] == algorithm
    assert level.sparsity == pytest.approx(0.75, abs=1e-3)
    assert report.pruning.data == "validation"
    assert file.format == "pt2"
    assert file.sha256 == sha256(work / "pruned-0") == result.value["summary"]["levels"][0]["sha256"]
    content = (work / "pruned-0").read_bytes()
    assert file.size_bytes == len(content)
    assert file.compressed_bytes == len(zstandard.ZstdCompressor(level=LEVEL).compress(content))
    assert file.compact_bytes == len((work / "compact-0").read_bytes())
    assert file.compact_bytes < file.compressed_bytes
    assert expand((work / "compact-0").read_bytes()) == content
    assert file.macs is not None
    assert file.macs_before is not None
    assert 0 < file.macs < file.macs_before
    assert file.latency_ms > 0
    assert file.batch == 40
    assert "No speed-up" in file.speedup

    assert all(check.holds for check in verify_file(work / "compact-0", work / "report.json", dense=work / "model"))
    assert expand_command.main([str(work / "compact-0"), str(work / "again.pt2")]) == 0
    assert (work / "again.pt2").read_bytes() == content
    assert expand_command.main([str(work / "model"), str(work / "again.pt2")]) == 1
    assert expand_command.main([str(work / "nothing"), str(work / "again.pt2")]) == 2

    masks = load_file(work / "masks-0.safetensors")
    shutil.copy(work / "pruned-0", work / "pruned.pt2")
    state = torch.export.load(work / "pruned.pt2").state_dict
    original = Small().state_dict()
    assert set(masks) == {"body.0.weight", "body.3.weight", "head.weight"}
    assert set(state) == set(original)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert not state[name][~mask].any()
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(0.25 * 1800, abs=1)

    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    first = {name: sha256(work / name) for name in ("pruned-0", "masks-0.safetensors")}
    shutil.rmtree(work / "checkpoints")
    again = run("prune", work, arguments)
    assert again.status == "ok"
    assert {name: sha256(work / name) for name in first} == first


def test_a_list_of_sparsities_gives_a_model_for_each(work: Path) -> None:
    recipe = {"select": {"algorithm": "magnitude", "sparsity": [0.5, 0.75, 0.9]}}
    result = run("prune", work, {"recipe": recipe, "device": "cpu"})
    assert result.value is not None, result.problem
    assert result.value["levels"] == [0.5, 0.75, 0.9]
    report = Report.model_validate_json((work / "report.json").read_text())
    for i, (sparsity, level, file) in enumerate(
        zip((0.5, 0.75, 0.9), report.pruning.levels, report.files, strict=True)
    ):
        zeros = sum(int((~mask).sum()) for mask in load_file(work / f"masks-{i}.safetensors").values())
        assert zeros == round(sparsity * 1800)
        assert level.sparsity_requested == sparsity
        assert file.sha256 == sha256(work / f"pruned-{i}")
        shown = result.value["summary"]["levels"][i]
        assert (shown["sparsity"], shown["sha256"]) == (sparsity, file.sha256)
        assert 0 <= shown["quality"]["accuracy"] <= 1

    alone = run("prune", work, {"recipe": {"select": {"algorithm": "magnitude", "sparsity": 0.75}}, "device": "cpu"})
    assert alone.status == "ok"
    assert sha256(work / "pruned-0") == report.files[1].sha256, "a level is what a job of its own gives"


def test_a_mask_that_was_downloaded_prunes_the_same(work: Path) -> None:
    assert run("prune", work, {"recipe": RECIPE, "device": "cpu"}).status == "ok"
    first = sha256(work / "pruned-0")
    shutil.copy(work / "masks-0.safetensors", work / "mask")
    inspected = run("inspect_mask", work).value
    assert inspected is not None
    assert (inspected["weights"], inspected["kept"]) == (1800, 450)
    assert inspected["masks"][0] | {"kept": 0} == {
        "name": "body.0.weight",
        "shape": [8, 1, 3, 3],
        "weights": 72,
        "kept": 0,
    }

    (work / "mask").rename(work / "masks")
    recipe = {"select": {"algorithm": "magnitude", "pattern": "mask"}}
    result = run("prune", work, {"recipe": recipe, "device": "cpu", "sha256": {"masks": sha256(work / "masks")}})
    assert result.value is not None, result.problem
    assert result.value["levels"] == [0.75]
    assert sha256(work / "pruned-0") == first
    assert json.loads((work / "report.json").read_text())["inputs"]["masks"] == sha256(work / "masks")


def test_a_mask_that_does_not_fit_names_the_weight(work: Path) -> None:
    recipe = {"select": {"algorithm": "magnitude", "pattern": "mask"}}
    for masks, words in (
        ({"head.weight": torch.ones(4, 287, dtype=torch.bool)}, ("head.weight", 288, 287)),
        ({"tail.weight": torch.ones(4, 288, dtype=torch.bool)}, ("tail.weight", "head.weight")),
    ):
        write_masks(masks, work / "masks")
        result = run("prune", work, {"recipe": recipe, "device": "cpu"})
        assert result.status == "failed"
        assert result.problem is not None
        assert result.problem["status"] == 422
        assert result.problem["type"].endswith(":invalid-mask")
        assert all(str(word) in json.dumps(result.problem) for word in words), result.problem


def test_data_that_does_not_fit_names_the_dataset(work: Path) -> None:
    with (work / "validation").open("wb") as file:
        np.savez(file, x=np.zeros((3, 1, 6, 7), np.float32))
    result = run("prune", work, {"recipe": RECIPE})
    assert result.status == "failed"
    assert result.problem is not None
    assert result.problem["dataset"] == "validation"
    assert result.problem["expected"] == ["samples", 1, 6, 6]


def test_an_impossible_recipe(work: Path) -> None:
    result = run("prune", work, {"recipe": {"select": {"algorithm": "magic", "sparsity": 0.5}}})
    assert result.status == "failed"
    assert result.problem is not None
    assert result.problem["type"].endswith(":invalid-recipe")


def test_a_file_damaged_on_the_way_is_worth_a_retry(work: Path) -> None:
    result = run("prune", work, {"recipe": RECIPE, "sha256": {"calibration": "0" * 64}})
    assert result.status == "died"
    assert result.problem is not None
    assert "damaged" in json.dumps(result.problem)


def test_verify_sees_every_kind_of_damage() -> None:
    given = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([-0.0])}
    good = {"w": torch.tensor([0.0, 2.0]), "b": torch.tensor([-0.0])}
    masks = {"w": torch.tensor([False, True])}
    verify(good, good, given, masks)
    for produced, computed in (
        ({"w": good["w"]}, good),
        ({**good, "w": torch.tensor([0.0, 3.0])}, good),
        ({**good, "b": torch.tensor([0.0])}, good),
        ({**good, "b": torch.tensor([0.0])}, {**good, "b": torch.tensor([0.0])}),
        ({**good, "w": given["w"]}, {**good, "w": given["w"]}),
    ):
        with pytest.raises(PruningError):
            verify(produced, computed, given, masks)
