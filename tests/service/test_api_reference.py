"""docs/api.md does what it says: its shell blocks run, in order, against the running service."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs import errors as jobs_errors
from pruning_core import errors as core_errors
from tests.documents import DOCS, run, snippets

REFERENCE = DOCS / "api.md"


@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_reference_runs(live: str, operator: dict[str, str], digits: Path, tmp_path: Path) -> None:
    shutil.copy(digits / "digits.pt2", tmp_path / "net.pt2")
    for name in ("calibration.npz", "validation.npz"):
        shutil.copy(digits / name, tmp_path)
    blocks = snippets(REFERENCE, "sh")
    assert len(blocks) >= 6
    run(blocks, tmp_path, {**operator, "URL": live})
    assert {"net-pruned.pt2", "report.json", "masks.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_the_reference_names_every_problem() -> None:
    from api import errors as api_errors

    text = REFERENCE.read_text("utf-8")
    for module in (core_errors, jobs_errors, api_errors):
        for error in vars(module).values():
            if isinstance(error, type) and issubclass(error, core_errors.PruningError):
                assert f"`{error.slug}`" in text, error.slug
