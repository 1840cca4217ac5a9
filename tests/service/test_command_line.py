"""`prune` against the running service: a real worker prunes, and what is saved is what the service has."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.cli.shell import environment
from tests.documents import DOCS, run, snippets

Page = tuple[Path, subprocess.CompletedProcess[str]]
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
def page(live: str, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A folder in which every block of docs/cli.md has run, in order, and what the commands said."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copy(digits / "digits.pt2", folder / "net.pt2")
    for name in ("calibration.npz", "validation.npz"):
        shutil.copy(digits / name, folder)
    return folder, run(snippets(DOCS / "cli.md", "sh", "python"), folder, {"PRUNING_URL": live})


def test_submit_wait_and_save_is_one_command(live: str, page: Page) -> None:
    folder, said = page
    with httpx.Client(base_url=live) as http:
        (job,) = http.get("/jobs", params={"label": "team=vision", "state": "succeeded"}).json()["items"]
        saved = (folder / "pruned.pt2").read_bytes()
        assert hashlib.sha256(saved).hexdigest() == job["result"]["levels"][0]["sha256"]
        assert saved == http.get(f"/jobs/{job['id']}/model").content
    assert job["recipe"] == {"select": {"algorithm": "magnitude", "sparsity": 0.9}}
    assert f"{job['id']}  succeeded  100%" in said.stderr, "without a terminal: lines, not a bar"
    assert "\x1b" not in said.stderr


def test_run_gives_the_bytes_of_the_service(page: Page) -> None:
    folder, _ = page
    assert (folder / "local.pt2").read_bytes() == (folder / "pruned.pt2").read_bytes()
    report = json.loads((folder / "local.json").read_text("utf-8"))
    assert report["files"][0]["sha256"] == hashlib.sha256((folder / "pruned.pt2").read_bytes()).hexdigest()


def test_python_and_the_commands_do_the_same(page: Page) -> None:
    folder, said = page
    assert (folder / "from-python.pt2").stat().st_size == (folder / "pruned.pt2").stat().st_size
    assert "outcome" in said.stdout
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
