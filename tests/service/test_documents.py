"""The README says what really runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_readme_shows_the_session_that_the_demo_runs() -> None:
    session = (ROOT / "demo" / "session.sh").read_text("utf-8")
    shown = session.partition("# [README begins]\n")[2].partition("# [README ends]")[0].strip()
    assert shown
    assert shown in (ROOT / "README.md").read_text("utf-8")


def test_ci_runs_the_readme_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text("utf-8").rstrip().endswith("make test")
    assert "make test" in (ROOT / "README.md").read_text("utf-8")


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_readme_library_example_runs(digits: Path, tmp_path: Path) -> None:
    example = (
        (ROOT / "README.md").read_text("utf-8").partition("As a library")[2].split("```")[1].removeprefix("python\n")
    )
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    (tmp_path / "example.py").write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nos.chdir({str(tmp_path)!r})\n{example}", "utf-8"
    )
    subprocess.run([sys.executable, tmp_path / "example.py"], check=True)
    assert (tmp_path / "digits-pruned.pt2").stat().st_size == (tmp_path / "digits.pt2").stat().st_size
