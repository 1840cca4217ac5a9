"""`prune` against the running service: a real worker prunes, and what is saved is what the service has."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.cli.shell import environment, put_on_path

ROOT = Path(__file__).resolve().parents[2]
#: The first test waits for the page to run, and perhaps for the service to start.
pytestmark = pytest.mark.timeout(240)


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
def page(live: str, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which every block of docs/cli.md has run, in order, and what the commands said."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copy(digits / "digits.pt2", folder / "net.pt2")
    for name in ("calibration.npz", "validation.npz"):
        shutil.copy(digits / name, folder)
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    (folder / "program.py").write_text(program, "utf-8")
    script = "\n".join(["set -euo pipefail", *blocks, "python3 program.py >events.txt"])
    variables = put_on_path(environment(folder, live), folder / "bin")
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stderr


def test_submit_wait_and_save_is_one_command(live: str, page: tuple[Path, str]) -> None:
    folder, said = page
    with httpx.Client(base_url=live) as http:
        (job,) = http.get("/jobs", params={"label": "team=vision", "state": "succeeded"}).json()["items"]
        saved = (folder / "pruned.pt2").read_bytes()
        assert hashlib.sha256(saved).hexdigest() == job["result"]["levels"][0]["sha256"]
        assert saved == http.get(f"/jobs/{job['id']}/model").content
    assert job["recipe"] == {"select": {"algorithm": "magnitude", "sparsity": 0.9}}
    assert f"{job['id']}  succeeded  100%" in said, "without a terminal: lines, not a bar"
    assert "\x1b" not in said


def test_run_gives_the_bytes_of_the_service(page: tuple[Path, str]) -> None:
    folder, _ = page
    assert (folder / "local.pt2").read_bytes() == (folder / "pruned.pt2").read_bytes()
    report = json.loads((folder / "local.json").read_text("utf-8"))
    assert report["files"][0]["sha256"] == hashlib.sha256((folder / "pruned.pt2").read_bytes()).hexdigest()


def test_python_and_the_commands_do_the_same(page: tuple[Path, str]) -> None:
    folder, _ = page
    assert (folder / "from-python.pt2").stat().st_size == (folder / "pruned.pt2").stat().st_size
    assert "outcome" in (folder / "events.txt").read_text("utf-8")
    assert (folder / "report.html").read_text("utf-8").lower().startswith("<!doctype html>")


def test_a_job_that_fails_ends_with_1_and_the_reason(live: str, digits: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((10, 3), np.float32))
    files = (digits / "digits.pt2", "--data", "wrong.npz")
    done = prune(live, tmp_path, "submit", *files, "--sparsity", 0.5, "--wait", "--json")
    assert done.returncode == 1
    job = json.loads(done.stdout)
    assert job["state"] == "failed"
    assert job["error"]["detail"] in done.stderr
    assert job["error"]["expected"] is not None
