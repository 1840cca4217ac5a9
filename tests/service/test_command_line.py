"""`prune` against the running service: a real worker prunes, and what is saved is what the service has."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pruning_core.verify import verify
from tests.cli.shell import environment, put_on_path

ROOT = Path(__file__).resolve().parents[2]


def prune(url: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a script would: no terminal."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def pruned(live: str, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A folder with what `prune submit --wait` saved, the job it printed, and what it said."""
    folder = tmp_path_factory.mktemp("prune")
    files = (digits / "digits.pt2", "--data", digits / "calibration.npz", "--validation", digits / "validation.npz")
    options = ("--algorithm", "magnitude", "--sparsity", 0.9, "--label", "team=vision", "--wait", "-o", "pruned.pt2")
    done = prune(live, folder, "submit", *files, *options, "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def test_submit_wait_and_save_is_one_command(live: str, pruned: tuple[Path, dict[str, Any], str]) -> None:
    folder, job, said = pruned
    assert job["state"] == "succeeded"
    assert job["labels"] == {"team": "vision"}
    assert job["recipe"] == {"select": {"algorithm": "magnitude", "sparsity": 0.9}}
    assert job["files"] == ["pruned.pt2"]
    saved = (folder / "pruned.pt2").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == job["result"]["levels"][0]["sha256"]
    assert saved == httpx.get(f"{live}/jobs/{job['id']}/model").content
    assert "succeeded  100%" in said, "without a terminal: lines, not a bar"
    assert "\x1b" not in said


def test_report_and_masks_verify_offline(live: str, digits: Path, pruned: tuple[Path, dict[str, Any], str]) -> None:
    folder, job, _ = pruned
    done = prune(live, folder, "report", job["id"])
    assert json.loads(done.stdout) == httpx.get(f"{live}/jobs/{job['id']}/report").json()
    (folder / "report.json").write_text(done.stdout, "utf-8")
    assert prune(live, folder, "download", job["id"], "masks", "-o", "masks.safetensors").returncode == 0
    files = ("pruned.pt2", "report.json", "--masks", "masks.safetensors", "--dense", digits / "digits.pt2")
    done = prune("http://127.0.0.1:9", folder, "verify", *files, "--json")
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)
    assert checks["holds"]
    assert len(checks["checks"]) == len(
        verify(
            *(folder / name for name in ("pruned.pt2", "report.json")),
            masks=folder / "masks.safetensors",
            dense=digits / "digits.pt2",
        )
    )


def test_a_job_that_fails_ends_with_1_and_the_reason(live: str, digits: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((10, 3), np.float32))
    files = (digits / "digits.pt2", "--data", "wrong.npz")
    done = prune(live, tmp_path, "submit", *files, "--sparsity", 0.5, "--wait", "--json")
    assert done.returncode == 1
    job = json.loads(done.stdout)
    assert job["state"] == "failed"
    assert job["error"]["detail"] in done.stderr
    assert job["error"]["expected"] is not None


@pytest.mark.timeout(240)
def test_the_page_of_the_command_line_runs(live: str, digits: Path, tmp_path: Path) -> None:
    shutil.copy(digits / "digits.pt2", tmp_path / "net.pt2")
    for name in ("calibration.npz", "validation.npz"):
        shutil.copy(digits / name, tmp_path)
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    (tmp_path / "program.py").write_text(program, "utf-8")
    script = "\n".join(["set -euo pipefail", *blocks, "python3 program.py >events.txt"])
    variables = put_on_path(environment(tmp_path, live), tmp_path / "bin")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "from-python.pt2").read_bytes() == (tmp_path / "pruned.pt2").read_bytes()
    assert "outcome" in (tmp_path / "events.txt").read_text("utf-8")
    first, another = (json.loads((tmp_path / f"{name}.json").read_text("utf-8")) for name in ("first", "another"))
    assert first["id"] != another["id"]
