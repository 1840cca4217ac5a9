"""The command as a shell finds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path, url: str = "http://127.0.0.1:9") -> dict[str, str]:
    """Variables for `python -m cli`: this checkout, that service, and nothing remembered from elsewhere."""
    own = {"PRUNING_URL": url, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "no_proxy": "*"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PRUNING_API_KEY", "COLUMNS")}
    return {**kept, **own}


def put_on_path(variables: dict[str, str], folder: Path) -> dict[str, str]:
    """Put `prune` of this checkout, and the `python3` that runs it, first on the PATH; both under this folder."""
    folder.mkdir()
    (folder / "prune").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cli "$@"\n', "utf-8")
    (folder / "prune").chmod(0o755)
    python = str(Path(sys.executable).parent)
    return {**variables, "PATH": os.pathsep.join([str(folder), python, variables["PATH"]])}
