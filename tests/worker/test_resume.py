"""A pruning process that is killed: the next one goes on from its finished steps, and ends with the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning_core.report import Progress, Report
from tests.jobs.inputs import digits, mlpnet
from worker import sandbox
from worker.sandbox import Limits, Result

LIMITS = Limits(memory_bytes=3 * 2**30, cpu_seconds=200, file_bytes=2**28, wall_seconds=100)
LEVELS = [n / 8 for n in range(1, 8)]
QUICK = {"structure": "block", "ridge": 0.01, "swaps": 0, "samples": 100}
RECIPE = {"select": {"algorithm": "chita", "sparsity": LEVELS, **QUICK}}


def run(
    folder: Path,
    recipe: dict[str, Any],
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], str | None] = lambda: None,
) -> Result:
    arguments = {"recipe": recipe, "device": "cpu"}
    return sandbox.run("prune", folder, arguments, limits=LIMITS, on_progress=on_progress, stop=stop)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "model").write_bytes(mlpnet())
    (folder / "calibration").write_bytes(digits(150))
    return folder


@pytest.fixture(scope="module")
def undisturbed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(files, tmp_path_factory.mktemp("undisturbed") / "work")
    assert run(folder, RECIPE).status == "ok"
    return folder


class Enough(Exception):  # noqa: N818
    """Ends a run from its progress."""


def steps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Each finished step, and what changes when it is done again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("checkpoints/*.checkpoint")
    }


def killed(folder: Path) -> dict[str, tuple[int, int]]:
    """Run until a few steps are done, and kill the process; return those steps."""

    def watch(_: Progress) -> None:
        if len(steps_of(folder)) >= 2:
            raise Enough

    with pytest.raises(Enough):
        run(folder, RECIPE, watch)
    return steps_of(folder)


def test_finished_steps_are_not_done_again(files: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(files, tmp_path / "work")
    done = killed(folder)
    everything = steps_of(undisturbed)
    assert 2 <= len(done) < len(everything)
    assert not (folder / "report.json").exists()

    result = run(folder, RECIPE)
    assert result.status == "ok", result.problem
    after = steps_of(folder)
    assert {name: after[name] for name in done} == done, "a step that was done was done again"
    assert set(after) == set(everything)
    for name in [
        f"{kind}-{i}{suffix}"
        for i in range(len(LEVELS))
        for kind, suffix in (("pruned", ""), ("masks", ".safetensors"))
    ]:
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    reports = [Report.model_validate_json((where / "report.json").read_text()) for where in (folder, undisturbed)]
    assert reports[0].pruning.levels == reports[1].pruning.levels
    assert (reports[0].pruning.resumed, reports[1].pruning.resumed) == (len(done), 0)


def test_with_every_step_done_little_is_left_to_do(undisturbed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "work")
    seen: list[Progress] = []
    assert run(folder, RECIPE, seen.append).status == "ok"
    first, again = (
        sum(
            stage.cpu_seconds
            for stage in Report.model_validate_json((where / "report.json").read_text()).pruning.stages
            if stage.name not in ("evaluate", "choose")
        )
        for where in (undisturbed, folder)
    )
    assert again < first / 2
    assert "gradients" not in {step.stage for step in seen}


def test_a_damaged_step_and_one_of_another_job_are_done_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "work")
    first, second, *_ = sorted((folder / "checkpoints").iterdir())
    first.write_bytes(second.read_bytes())
    second.write_bytes(second.read_bytes()[:-7] + bytes(7))
    assert run(folder, RECIPE).status == "ok"
    assert (folder / "pruned-0").read_bytes() == (undisturbed / "pruned-0").read_bytes()
    for name in (first.name, second.name):
        assert (folder / "checkpoints" / name).read_bytes() == (undisturbed / "checkpoints" / name).read_bytes()

    before = steps_of(folder)
    assert run(folder, {**RECIPE, "seed": 1}).status == "ok"
    after = steps_of(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before), "another recipe takes none of them"
