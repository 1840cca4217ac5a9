"""`prune run`: a job in this process, without a service; the bytes are those that the service gives."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import recipes
from cli.console import AsJson, command, missing, say, show, tell
from cli.progress import watch
from cli.recipes import Given, takes_recipe
from cli.submitting import summary
from cli.transfers import placed, put, targets
from client import Problem

if TYPE_CHECKING:
    from pruning_core.report import Progress

FileOption = Path | None


@command
@takes_recipe
def run(
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="MODEL", help="The model file.")],
    data: Annotated[
        Path, typer.Option("--data", "-d", exists=True, dir_okay=False, metavar="FILE", help="Calibration data.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", callback=placed, help="Where the pruned model goes.")
    ],
    given: Given,
    validation: Annotated[
        FileOption, typer.Option(exists=True, metavar="FILE", help="Data to measure quality on; default: --data.")
    ] = None,
    masks: Annotated[FileOption, typer.Option(exists=True, metavar="FILE", help="Masks to prune by.")] = None,
    save_masks: Annotated[FileOption, typer.Option(metavar="FILE", callback=placed, help="Where the masks go.")] = None,
    save_report: Annotated[
        FileOption, typer.Option(metavar="FILE", callback=placed, help="Where the report goes, as JSON.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Prune in this process, without a service; same options, same bytes.

    The file is read as data and nothing in it is run, but there is no sandbox around this: for files of strangers use
    the service.
    """
    given_files = {"model": model, "calibration": data, "validation": validation, "masks": masks}
    files = {role: path for role, path in given_files.items() if path is not None}
    with tempfile.TemporaryDirectory(prefix="prune-") as made:
        folder = Path(made)
        for role, path in files.items():
            (folder / role).symlink_to(path.resolve())
        result = _prune(folder, recipes.build(given, _parts, has_masks=masks is not None), device, model.name)
        levels = result["summary"]["levels"]
        saved = []
        for i, (_, target) in enumerate(targets(levels, output)):
            saved.append(_put(folder / f"pruned-{i}", target))
        if save_masks is not None:
            for i, (_, target) in enumerate(targets(levels, save_masks)):
                saved.append(_put(folder / f"masks-{i}.safetensors", target))
        if save_report is not None:
            saved.append(_put(folder / "report.json", save_report))
    if as_json:
        show({"state": "succeeded", "result": result["summary"], "files": [str(path) for path in saved]})
    else:
        summary(levels, aside=True)
        tell(*saved)


def _prune(folder: Path, recipe: dict[str, Any], device: str, name: str) -> dict[str, Any]:
    try:
        from worker.environment import process_environment
    except ImportError as error:
        raise missing("the core", "core,data", error) from None
    # As for the service's own processes, and before torch is imported: the last bits depend on it.
    os.environ.update({name: value for name, value in process_environment().items() if name != "PYTHONPATH"})
    try:
        from pruning_core.errors import PruningError
        from worker import work
    except ImportError as error:
        raise missing("the core", "core,data", error) from None

    began = time.monotonic()
    with watch(name) as shown:

        def report(step: Progress) -> None:
            passed = time.monotonic() - began
            eta = passed * (1 - step.fraction) / step.fraction if step.fraction > 0.05 and passed > 2 else None
            shown.step(step.stage, step.fraction, eta)

        try:
            return work.prune(folder, {"recipe": recipe, "device": device}, report)
        except PruningError as error:
            raise Problem(error.problem()) from None


def _parts() -> dict[str, str]:
    from pruning_core.recipe import catalogue

    return {name: str(entry["part"]) for name, entry in catalogue().items()}


def _put(source: Path, target: Path) -> Path:
    with put(target) as aside:
        shutil.copyfile(source, aside)
    say(f"saved {target}")
    return target
