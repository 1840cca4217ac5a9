"""Hand a finished job's files on to other tools: log them to MLflow, or lay them out as a Hugging Face-style folder.

Both take the files as they were downloaded (`GET /jobs/{id}/report`, `/model`, `/masks`), so they need no service and
no torch: ``python -m cli.exports mlflow report.json --model net-pruned.pt2`` and ``… folder report.json -o pruned/
--model net-pruned.pt2 --masks masks.safetensors``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pruning_core.errors import InputError, PruningError
from pruning_core.report import FileReport, LevelReport, Quality, Report

#: MLflow refuses longer values of parameters.
_LONGEST = 500


class ExportError(InputError):
    """The files do not belong together, or a library that is needed is not installed."""

    slug = "export"
    title = "Cannot be handed on"


def read_report(path: Path) -> Report:
    """Return a report.

    Raises:
        ExportError: The file is none.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ExportError("This is no report of a pruning job.", received=str(error.errors()[0]["msg"])[:200]) from None


def level_of(report: Report, model: Path | None) -> int | None:
    """Return which level a model file is, by its SHA-256; None without a file.

    Raises:
        ExportError: It is none of them.
    """
    if model is None:
        return None
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    digests = [file.sha256 for file in report.files]
    if digest not in digests:
        raise ExportError(
            "The model is none of those that the report is about.",
            expected=digests,
            received=digest,
            advice="Download model and report of the same job.",
        )
    return digests.index(digest)


# -- MLflow --------------------------------------------------------------------------------------------------------


def parameters(report: Report, level: int | None = None) -> dict[str, str]:
    """Return what was asked, as MLflow's parameters."""
    pruning = report.pruning
    chosen = pruning.levels[level if level is not None else -1]
    found: dict[str, Any] = {
        "algorithm": pruning.algorithm,
        "refine": pruning.refine,
        "pattern": pruning.pattern,
        "goal": pruning.goal,
        "seed": pruning.seed,
        "device": pruning.device,
        **{f"option.{name}": value for name, value in chosen.options.items()},
        **{f"refine_option.{name}": value for name, value in (chosen.refine_options or {}).items()},
        **{f"sha256.{name}": value for name, value in report.inputs.items()},
        **{f"version.{name}": value for name, value in pruning.versions.items()},
    }
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in found.items() if v is not None}
    return {name: text[:_LONGEST] for name, text in texts.items()}


def metrics(level: LevelReport, file: FileReport, dense: Quality) -> dict[str, float]:
    """Return what was measured on one model, as MLflow's metrics."""
    found: dict[str, Any] = {"sparsity": level.sparsity}
    for name, quality in (("dense", dense), ("pruned", level.pruned), ("magnitude", level.magnitude)):
        found |= {f"{name}.{key}": value for key, value in quality.model_dump(exclude={"samples"}).items()}
    for key, value in file.model_dump().items():
        found[f"file.{key}"] = value
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def log_to_mlflow(
    report: Path, *, model: Path | None = None, masks: Path | None = None, name: str | None = None
) -> str:
    """Log a job as one run: parameters, metrics with one step for each level (in thousandths of sparsity), the files.

    Where to is MLflow's own matter (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``).

    Returns:
        The run's id.

    Raises:
        ExportError: MLflow is not installed, or the files do not belong together.
    """
    try:
        import mlflow
    except ImportError:
        raise ExportError(
            "MLflow is not installed.", advice="pip install mlflow (or mlflow-skinny) beside this package."
        ) from None
    known = read_report(report)
    level = level_of(known, model)
    with mlflow.start_run(run_name=name or f"{known.pruning.algorithm} pruning") as run:
        mlflow.log_params(parameters(known, level))
        for one, file in zip(known.pruning.levels, known.files, strict=True):
            mlflow.log_metrics(metrics(one, file, known.pruning.dense), step=round(1000 * one.sparsity))
        for path in (report, model, masks):
            if path is not None:
                mlflow.log_artifact(str(path))
    return str(run.info.run_id)


# -- a folder as model hubs have them ------------------------------------------------------------------------------


def write_folder(target: Path, report: Path, *, model: Path, masks: Path | None = None) -> Path:
    """Lay out a model as hubs do: the file, its masks, the report, and a model card (README.md) made of the report.

    Args:
        target: The folder; made if it is not there. Files in it of the same names are replaced.
        report: Of the job.
        model: The pruned model; its name is kept.
        masks: Its masks.

    Returns:
        The folder.

    Raises:
        ExportError: The files do not belong together.
    """
    known = read_report(report)
    level = level_of(known, model)
    assert level is not None
    target.mkdir(parents=True, exist_ok=True)
    for path, name in ((model, model.name), (masks, "masks.safetensors"), (report, "report.json")):
        if path is not None and path.resolve() != (target / name).resolve():
            shutil.copyfile(path, target / name)
    (target / "README.md").write_text("\n".join(_card(known, level, model.name)) + "\n", "utf-8")
    return target


def _card(report: Report, level: int, name: str) -> Iterator[str]:
    pruning, made, file = report.pruning, report.pruning.levels[level], report.files[level]
    front: Mapping[str, Any] = {
        "tags": ["pruning", "sparse", pruning.algorithm, *([pruning.refine] if pruning.refine else [])],
        "pruning": {
            "sparsity": made.sparsity,
            "pattern": made.pattern,
            "sha256": file.sha256,
            "dense_sha256": report.inputs.get("model"),
        },
    }
    yield "---"
    yield from (f"{key}: {json.dumps(value)}" for key, value in front.items())  # JSON is YAML
    yield "---"
    yield ""
    yield f"# {_plain(name)}"
    yield ""
    yield (
        f"{made.sparsity:.2%} of the prunable weights are zero ({_plain(json.dumps(made.pattern))}), chosen by "
        f"{pruning.algorithm}{f' and refined by {pruning.refine}' if pruning.refine else ''}. Measured on the "
        f"{pruning.data} data ({made.pruned.samples} samples):"
    )
    yield ""
    yield "| | dense | pruned | magnitude pruning |"
    yield "|---|---|---|---|"
    for key in ("accuracy", "loss", "agreement", "output_error"):
        values = [getattr(quality, key) for quality in (pruning.dense, made.pruned, made.magnitude)]
        if any(value is not None for value in values):
            shown = " | ".join("-" if value is None else f"{value:.4g}" for value in values)
            yield f"| {key.replace('_', ' ')} | {shown} |"
    yield ""
    packed, before = file.compressed_bytes, file.compressed_bytes_before
    yield f"Bytes: {file.size_bytes:,} ({packed:,} under zstd; before: {before:,})."
    yield ""
    yield _plain(file.speedup)
    yield ""
    yield f"`report.json` has the rest. {_plain(report.how_to_check)}"


def _plain(text: str) -> str:
    """Return a text that a renderer of Markdown shows as it is."""
    line = " ".join(text.split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[").replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Returns:
        The exit status: 0, or 1 with a message on standard error.
    """
    parser = argparse.ArgumentParser(prog="prune export", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command, about in (("mlflow", "log a job to MLflow"), ("folder", "lay a model out as hubs do")):
        sub = commands.add_parser(command, help=about)
        sub.add_argument("report", type=Path, help="the job's report.json")
        sub.add_argument("--model", type=Path, required=command == "folder", help="the pruned model, as downloaded")
        sub.add_argument("--masks", type=Path, help="its masks.safetensors")
        if command == "folder":
            sub.add_argument("-o", "--output", type=Path, required=True, help="the folder")
        else:
            sub.add_argument("--name", help="of the run")
    given = parser.parse_args(arguments)
    try:
        if given.command == "mlflow":
            print(log_to_mlflow(given.report, model=given.model, masks=given.masks, name=given.name))
        else:
            print(write_folder(given.output, given.report, model=given.model, masks=given.masks))
    except (PruningError, OSError) as error:
        detail = error.detail if isinstance(error, PruningError) else str(error)
        advice = f" {error.advice}" if isinstance(error, PruningError) and error.advice else ""
        print(f"export: {detail}{advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
