"""docs/examples/github-actions.yml: its steps, run in order as a runner would, against the running service."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.documents import DOCS, run_script

EXAMPLE = yaml.safe_load((DOCS / "examples" / "github-actions.yml").read_text("utf-8"))
STEPS = {step["name"]: step["run"] for step in EXAMPLE["jobs"]["prune"]["steps"] if "run" in step}


@pytest.mark.timeout(180)
def test_the_steps_run_and_a_drop_in_accuracy_fails(live: str, digits: Path, tmp_path: Path) -> None:
    shutil.copy(digits / "digits.pt2", tmp_path / "model.pt2")
    for name in ("calibration.npz", "validation.npz"):
        shutil.copy(digits / name, tmp_path)
    environment = {"PRUNING_URL": live, "GITHUB_SHA": "0123abc", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return run_script(code, tmp_path, environment)

    assert "pip install" in STEPS.pop("Install"), "the only step that is not run here: the package is installed"
    gate = STEPS["Fail on a drop in accuracy"]
    for script in STEPS.values():
        done = run(script)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "pruned.pt2").stat().st_size > 1000
    assert "|" in (tmp_path / "summary.md").read_text("utf-8")

    for worse in (gate.replace("0.05", "0"), gate.replace("0.79", "0.99"), f"{gate} --max-output-error 1e-9"):
        done = run(worse)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "FAIL" in done.stdout
    done = run("prune gate report.json")
    assert done.returncode == 2
    done = run("echo '{}' >empty.json; prune gate empty.json --min-sparsity 0.5")
    assert (done.returncode, "no report" in done.stderr) == (1, True)
