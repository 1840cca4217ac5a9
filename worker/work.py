"""The tasks themselves, run inside the sandbox: inspect a model, a dataset or a mask; prune."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning_core import pipeline
from pruning_core.algorithms import FolderCheckpoints
from pruning_core.calibration import Dataset, Pictures, bind, prepare, read_dataset
from pruning_core.errors import DatasetError, ModelError, NothingToPrune, PruningError, RecipeError
from pruning_core.formats import model_format, read_model, same_bits, write_model
from pruning_core.formats.masks import read_masks, write_masks
from pruning_core.network import Input
from pruning_core.recipe import Recipe
from pruning_core.report import LevelReport, Preprocessing, Progress, Report
from worker.checkpoints import fingerprint
from worker.measure import Meter, compacted

#: Where the fraction stands when pruning itself begins and ends.
_BEGIN, _END = 0.02, 0.95
#: Of a model; the supervisor takes results of up to 16 MiB (`worker.sandbox`).
_DESCRIPTION_BYTES = 12 * 2**20


def inspect_model(folder: Path, _arguments: dict[str, Any], _report: Callable[[Progress], None]) -> dict[str, Any]:
    """Say what the file ``model`` holds.

    Raises:
        ModelError: It cannot be read, or has no layer that could be pruned.
    """
    path = folder / "model"
    network = read_model(path)
    if not network.layers:
        raise NothingToPrune(
            "The model has no linear or convolution layer with a weight of its own.",
            expected="at least one prunable layer",
            advice="'unprunable' says why each weight is out of reach.",
            unprunable=dict(network.unprunable),
        )
    found = {
        "format": model_format(path),
        "parameters": network.parameter_count,
        "layers": [
            {
                "name": layer.name,
                "weight": layer.weight,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "weights": network.weights[layer.weight].numel(),
            }
            for layer in network.layers
        ],
        "unprunable": dict(network.unprunable),
        "inputs": [{"name": i.name, "dtype": _name(i.dtype), "shape": list(i.shape)} for i in network.inputs],
        "batch": network.batch,
    }
    if (size := len(json.dumps(found))) > _DESCRIPTION_BYTES:
        raise ModelError(
            "The model has more layers, or longer names, than can be described.",
            expected=f"a description of at most {_DESCRIPTION_BYTES} bytes",
            received=f"{size} bytes, {len(network.layers)} layers",
        )
    return found


def inspect_dataset(folder: Path, _arguments: dict[str, Any], _report: Callable[[Progress], None]) -> dict[str, Any]:
    """Say what the file ``dataset`` holds.

    Raises:
        DatasetError: It cannot be read, or can be no dataset.
    """
    raw = read_dataset(folder / "dataset")
    if isinstance(raw, Pictures):
        return {
            "format": raw.format,
            "arrays": {},
            "samples": raw.samples,
            "labels": raw.has_labels,
            "pictures": {"probed": [list(size) for size in raw.probe()], "classes": list(raw.classes)},
        }
    return {
        "format": raw.format,
        "arrays": {name: {"dtype": _name(array.dtype), "shape": list(array.shape)} for name, array in raw.items()},
        "samples": raw.samples,
        "labels": raw.has_labels,
    }


def inspect_mask(folder: Path, _arguments: dict[str, Any], _report: Callable[[Progress], None]) -> dict[str, Any]:
    """Say what the file ``mask`` holds.

    Raises:
        MaskError: It cannot be read, or holds something else than boolean arrays.
    """
    masks = read_masks(folder / "mask")
    each = [
        {"name": name, "shape": list(mask.shape), "weights": mask.numel(), "kept": int(mask.sum())}
        for name, mask in masks.items()
    ]
    return {
        "format": "safetensors",
        "weights": sum(mask["weights"] for mask in each),
        "kept": sum(mask["kept"] for mask in each),
        "masks": each,
    }


def prune(folder: Path, arguments: dict[str, Any], report: Callable[[Progress], None]) -> dict[str, Any]:
    """Prune ``model`` with ``calibration`` (and ``validation``, and ``masks``) by the recipe.

    Writes for each level, counted from 0, ``pruned-<i>`` (same format as the model), ``masks-<i>.safetensors`` (bool,
    True = kept, by weight name) and ``compact-<i>`` (`pruning_core.compact`), and one ``report.json``. Each pruned file
    is read again and compared with what was computed, bit for bit. Steps that ``checkpoints`` holds are not done again.

    Raises:
        InputError: Recipe, model, data or masks cannot be used, alone or together.
    """
    recipe = Recipe.parse(arguments["recipe"])
    device = _device(arguments.get("device", "auto"))
    _deterministic(recipe.seed, device)
    report(Progress(stage="read", done=0, total=1, fraction=0.0))
    hashes = _checked_hashes(folder, arguments.get("sha256", {}))
    network = read_model(folder / "model")
    read = {
        name: _dataset(folder, name, network.inputs, recipe) for name in ("calibration", "validation") if name in hashes
    }
    calibration, validation = read["calibration"][0], read["validation"][0] if "validation" in read else None
    preprocessing = {name: how for name, (_, how) in read.items() if how is not None}
    if recipe.preprocess is not None and not preprocessing:
        raise RecipeError(
            "The recipe says how to preprocess pictures, but the data are arrays, which are used as they are.",
            expected="pictures: Parquet, or a zip or tar of class folders",
            advice='Leave out "preprocess", or send pictures.',
        )
    masks = read_masks(folder / "masks") if "masks" in hashes else None
    checkpoints = FolderCheckpoints(folder / "checkpoints", fingerprint(hashes, recipe, device))
    report(Progress(stage="read", done=1, total=1, fraction=_BEGIN))

    steps = pipeline.prune(
        *(network, calibration, recipe),
        validation=validation,
        device=device,
        masks=masks,
        checkpoints=checkpoints,
    )
    pruned = _run(steps, report)

    files = []
    total = 3 * len(pruned.levels)
    meter = Meter(folder / "model", network, calibration, device, files=len(pruned.levels))
    for i, level in enumerate(pruned.levels):
        path = folder / f"pruned-{i}"
        report(_last(Progress(stage="write", done=3 * i, total=total, fraction=0.0)))
        write_model(level.network, folder / "model", path)
        write_masks(level.masks, folder / f"masks-{i}.safetensors")
        report(_last(Progress(stage="verify", done=3 * i + 1, total=total, fraction=0.0)))
        produced = read_model(path)
        verify(produced.weights, level.network.weights, network.weights, level.masks, level.report.recalibrated)
        report(_last(Progress(stage="measure", done=3 * i + 2, total=total, fraction=0.0)))
        small = folder / f"compact-{i}"
        small.write_bytes(compacted(path, produced, level.masks))
        files.append(meter.measure(path, produced, small))
    document = Report(
        pruning=pruned.report,
        files=tuple(files),
        inputs=hashes,
        how_to_check=_how_to_check(recipe, device),
        preprocessing=preprocessing,
    )
    (folder / "report.json").write_text(document.model_dump_json(indent=1), "utf-8")
    report(_last(Progress(stage="measure", done=total, total=total, fraction=0.0)))
    return {"levels": [_name_of(level) for level in pruned.report.levels], "summary": _summary(document)}


def verify(
    produced: Mapping[str, Tensor],
    computed: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    replaced: Collection[str] = (),
) -> None:
    """Check the produced file's tensors: those computed, exactly zero where a mask says so, else untouched.

    Args:
        produced: Name -> tensor of the file, read again.
        computed: Of the pruned network,
        given: and of the dense one.
        masks: Weight name -> bool.
        replaced: Names of others that may differ from what was given.

    Raises:
        PruningError: They are not; a defect of this program, not of the user's files.
    """
    if produced.keys() != computed.keys() or produced.keys() != given.keys():
        raise PruningError("The produced file does not hold the names of the model.")
    for name, weight in produced.items():
        if not same_bits(weight, computed[name]):
            raise PruningError(f"The produced file differs from what was computed in {name!r}.", weight=name)
        if name not in masks and name not in replaced and not same_bits(weight, given[name]):
            raise PruningError(f"{name!r} took no part in pruning, but was changed.", weight=name)
    for name, mask in masks.items():
        if produced[name].shape != mask.shape or bool(produced[name][~mask].any()):
            raise PruningError(f"The mask of {name!r} does not hold in the produced file.", weight=name)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TASKS = {
    "prune": prune,
    "inspect_model": inspect_model,
    "inspect_dataset": inspect_dataset,
    "inspect_mask": inspect_mask,
}


def _run(steps: Any, report: Callable[[Progress], None]) -> pipeline.Pruned:
    """Run the pruning generator to its end; its fraction becomes a part of the whole job's."""
    while True:
        try:
            step: Progress = next(steps)
        except StopIteration as end:
            pruned: pipeline.Pruned = end.value
            return pruned
        report(step.model_copy(update={"fraction": _BEGIN + (_END - _BEGIN) * step.fraction}))


def _last(step: Progress) -> Progress:
    """Return a step of what comes after pruning, with the whole job's fraction."""
    return step.model_copy(update={"fraction": _END + (1 - _END) * step.done / step.total})


def _dataset(
    folder: Path, name: str, inputs: tuple[Input, ...], recipe: Recipe
) -> tuple[Dataset, Preprocessing | None]:
    try:
        raw = read_dataset(folder / name)
        return prepare(raw, inputs, recipe.preprocess) if isinstance(raw, Pictures) else (bind(raw, inputs), None)
    except DatasetError as error:
        error.extensions["dataset"] = name
        raise


def _device(asked: str) -> torch.device:
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _deterministic(seed: int, device: torch.device) -> None:
    torch.manual_seed(seed)
    if device.type == "cuda":  # on the CPU every kernel is deterministic for a given number of threads
        # A kernel without a deterministic form only warns: refusing such a model would help nobody.
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _checked_hashes(folder: Path, stated: Mapping[str, str]) -> dict[str, str]:
    names = [name for name in ("model", "calibration", "validation", "masks") if (folder / name).exists()]
    hashes = {name: sha256(folder / name) for name in names}
    for name, digest in hashes.items():
        if stated.get(name, digest) != digest:
            raise PruningError(f"{name!r} was damaged on the way here.", expected=stated[name], received=digest)
    return hashes


def _how_to_check(recipe: Recipe, device: torch.device) -> str:
    return (
        "`python -m pruning_core.verify MODEL report.json --masks MASKS --dense THE-MODEL-AS-SENT` checks a downloaded "
        "model offline: its SHA-256 (in 'files'), every layer's zeros, pattern, masks and untouched tensors. Send the "
        f"same model, data and recipe (seed {recipe.seed}) again: on the same kind of machine ({device.type}, "
        f"{torch.get_num_threads()} threads) with the same versions, the bytes are the same. In a masks file every "
        "False marks a weight that is exactly zero in the model. Each file was read again after writing, and every "
        "weight compared bit for bit."
    )


def _name_of(level: LevelReport) -> float:
    """Return the sparsity that names a level: the one asked for, or where pattern, mask or goal decided, what came."""
    return level.sparsity if level.sparsity_requested is None else level.sparsity_requested


def _summary(report: Report) -> dict[str, Any]:
    """Return the few numbers that belong beside a job's state: the curve, one point for each model."""
    pruning, first = report.pruning, report.files[0]
    return {
        "algorithm": pruning.algorithm,
        "refine": pruning.refine,
        "data": pruning.data,
        "dense": pruning.dense.model_dump(exclude_none=True),
        "levels": [
            {
                "sparsity": _name_of(level),
                "sparsity_measured": level.sparsity,
                "pattern_holds": level.pattern_holds,
                "fell_back": level.fell_back,
                "quality": level.pruned.model_dump(exclude_none=True),
                "magnitude": level.magnitude.model_dump(exclude_none=True),
                "notes": list(level.notes),
                **file.model_dump(
                    include={"size_bytes", "compressed_bytes", "compact_bytes", "macs", "sha256", "speedup"}
                ),
            }
            for level, file in zip(pruning.levels, report.files, strict=True)
        ],
        "size_bytes_before": first.size_bytes_before,
        "compressed_bytes_before": first.compressed_bytes_before,
        "macs_before": first.macs_before,
        "goal": pruning.goal,
        "tried": [
            {"sparsity": point.sparsity, "quality": point.quality.model_dump(exclude_none=True)}
            for point in pruning.frontier
        ],
        "resumed": pruning.resumed,
        "stages": {stage.name: stage.seconds for stage in pruning.stages},
        "device": pruning.device,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
