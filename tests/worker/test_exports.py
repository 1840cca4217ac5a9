"""A finished job handed on: a run in a real MLflow store, and a folder as hubs have them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import yaml

from cli import exports
from cli.exports import main, write_folder
from pruning_core.report import Report
from tests.jobs.inputs import digits, mlpnet
from tests.worker.finished import finish

RECIPE = {"select": {"algorithm": "wanda", "sparsity": [0.5, 0.8]}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "model").write_bytes(mlpnet())
    (folder / "calibration").write_bytes(digits(64))
    finish(folder, RECIPE)
    shutil.copy(folder / "pruned-1", folder / "net.safetensors")
    return folder


def test_a_run_in_mlflow(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own imports
        mlflow = pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(f"file://{tmp_path}/runs")
        files = ["--model", str(job / "net.safetensors"), "--masks", str(job / "masks-1.safetensors")]
        assert main(["mlflow", str(job / "report.json"), *files, "--name", "nightly"]) == 0
        client = mlflow.MlflowClient()
        run = client.get_run(capsys.readouterr().out.split()[-1])
        accuracies = client.get_metric_history(run.info.run_id, "pruned.accuracy")
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    report = Report.model_validate_json((job / "report.json").read_bytes())
    assert run.info.run_name == "nightly"
    assert run.data.params["algorithm"] == "wanda"
    assert run.data.params["sha256.model"] == report.inputs["model"]
    levels = report.pruning.levels
    assert {m.step: m.value for m in accuracies} == {round(1000 * one.sparsity): one.pruned.accuracy for one in levels}
    assert run.data.metrics["file.compact_bytes"] == report.files[-1].compact_bytes
    assert artifacts == {"report.json", "net.safetensors", "masks-1.safetensors"}


def test_a_folder_as_hubs_have_them(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["folder", str(job / "report.json"), "--model", str(job / "net.safetensors")]
    arguments += ["--masks", str(job / "masks-1.safetensors"), "-o", str(tmp_path / "hub")]
    assert main(arguments) == main(arguments) == 0
    hub = tmp_path / "hub"
    assert {path.name for path in hub.iterdir()} == {"README.md", "net.safetensors", "masks.safetensors", "report.json"}
    assert (hub / "net.safetensors").read_bytes() == (job / "pruned-1").read_bytes()
    _, front, text = (hub / "README.md").read_text("utf-8").split("---\n", 2)
    about = yaml.safe_load(front)
    report = Report.model_validate_json((job / "report.json").read_bytes())
    assert about["pruning"]["sha256"] == report.files[1].sha256
    assert about["pruning"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert "wanda" in about["tags"]
    assert "No speed-up here" in text


def test_files_that_do_not_belong_together_are_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--model", str(job / "model"), "-o", str(tmp_path / "hub")]
    assert main(["folder", str(job / "report.json"), *other]) == 1
    assert "none of those" in capsys.readouterr().err
    (tmp_path / "no-report.json").write_text(json.dumps({"a": 1}))
    assert main(["folder", str(tmp_path / "no-report.json"), *other]) == 1
    assert main(["folder", str(tmp_path / "nothing.json"), *other]) == 1
    assert not (tmp_path / "hub").exists()


def test_names_cannot_become_markup(job: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "[x](javascript:alert(1))<script>|.safetensors"
    shutil.copy(job / "pruned-1", hostile)
    card = (write_folder(tmp_path / "hub", job / "report.json", model=hostile) / "README.md").read_text("utf-8")
    assert "<script>" not in card
    assert "\n# \\[x](" in card
    assert exports.level_of(exports.read_report(job / "report.json"), hostile) == 1
