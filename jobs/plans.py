"""What a job would do, said before anything is queued: from the recipe and what the inspections found. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pruning_core.errors import MaskError, NothingToPrune
from pruning_core.preprocess import pair, resolve
from pruning_core.recipe import Block, Mask, NofM, Recipe, Select, catalogue

Inspection = Mapping[str, Any]

#: What a pruning process takes before it has read anything.
_RUNTIME_BYTES = 600 * 2**20
_SAMPLES = 1000
_FLOPS = 2e10

RULE = (
    "Memory: 600 MiB, 12 bytes for each parameter, 10 for each prunable weight and 5 more for each level, the "
    "calibration data, and the curvature: 4 bytes times weights times block_size, or times samples, or the squared "
    "width of each layer. Time: 6 operations for each weight and sample at 20 GFLOP/s; a convolution does them at each "
    "output position, which the inspection does not know, so that this is a lower bound. Orders of magnitude, no more."
)


def plan(recipe: Recipe, model: Inspection, data: Inspection | None, mask: Inspection | None) -> dict[str, Any]:
    """Return the plan.

    Args:
        recipe: The recipe.
        model: What the inspection of the model found.
        data: The same of the calibration data, if it is named and ready.
        mask: The same of the mask, if the recipe takes one and it is ready.

    Raises:
        NothingToPrune: No layer takes part.
        MaskError: The mask does not fit the model.
        RecipeError: The data are pictures, and the model takes none, or not as the recipe prepares them.
    """
    check_pictures(recipe, model, data)
    named = None if mask is None else {entry["name"]: entry for entry in mask["masks"]}
    if named is not None:
        _check_fit(model, named)
    layers = [
        {**layer, "takes_part": recipe.select.layers.accepts(layer["name"]) and _named(layer, named)}
        for layer in model["layers"]
    ]
    chosen = [layer for layer in layers if layer["takes_part"]]
    if not chosen:
        raise NothingToPrune(
            "The recipe leaves no layer to prune.",
            expected="at least one layer that 'layers' includes",
            received=[layer["name"] for layer in layers],
        )
    return {
        "recipe": _filled(recipe, model, data),
        "layers": layers,
        "unprunable": model["unprunable"],
        "levels": _levels(recipe.select, chosen, named),
        "estimate": _estimate(recipe, model, chosen, data),
    }


def kept(select: Select, sparsity: float | None, shapes: Sequence[Sequence[int]]) -> int | None:
    """Return how many weights of layers of these shapes stay, as `pruning_core.patterns.build` counts; None: unknown.

    >>> kept(Select.model_validate({"algorithm": "magnitude", "pattern": "2:4"}), None, [(2, 9)])
    10
    """
    pattern, sizes = select.pattern, [math.prod(shape) for shape in shapes]
    if isinstance(pattern, NofM):
        groups = sum(shape[0] * (shape[1] // pattern.m) * math.prod(shape[2:]) for shape in shapes)
        return sum(sizes) - groups * (pattern.m - pattern.n)
    if isinstance(pattern, Mask) or sparsity is None:
        return None
    together = sizes if pattern.scope == "layer" else [sum(sizes)]
    if not isinstance(pattern, Block):
        return sum(_rounded(size, sparsity) for size in together)
    rows, columns = pattern.shape
    blocks = [(s[0] // rows) * (s[1] // columns) * math.prod(s[2:]) for s in shapes]
    there = blocks if pattern.scope == "layer" else [sum(blocks)]
    cuts = [
        min(b, math.floor((n - _rounded(n, sparsity)) / (rows * columns) + 0.5))
        for b, n in zip(there, together, strict=True)
    ]
    return sum(sizes) - sum(cuts) * rows * columns


def _rounded(size: int, sparsity: float) -> int:
    return min(size, math.floor(round((1.0 - sparsity) * size, 6) + 0.5))


def check_pictures(recipe: Recipe, model: Inspection | None, data: Inspection | None) -> None:
    """Check that a dataset of pictures can become the model's input, as far as both have been inspected.

    Raises:
        RecipeError: It cannot, as the recipe's ``preprocess`` stands.
    """
    if model is not None and data is not None and "pictures" in data:
        resolve(recipe.preprocess, _taken(model))


def _taken(model: Inspection) -> list[tuple[str, Sequence[int | None]]]:
    return [(entry["dtype"], entry["shape"]) for entry in model["inputs"]]


def _weight_of(layer: Mapping[str, Any]) -> str:
    # Inspections of version 0.1 do not name the weight.
    return str(layer.get("weight", f"{layer['name']}.weight"))


def _named(layer: Mapping[str, Any], masks: Mapping[str, Any] | None) -> bool:
    return masks is None or _weight_of(layer) in masks


def _check_fit(model: Inspection, masks: Mapping[str, Mapping[str, Any]]) -> None:
    shapes = {_weight_of(layer): list(layer["shape"]) for layer in model["layers"]}
    for name, mask in masks.items():
        if shapes.get(name) != list(mask["shape"]):
            raise MaskError(
                f"The mask of {name!r} does not fit the model.",
                expected=shapes.get(name, sorted(shapes)[:50]),
                received=mask["shape"],
                advice="Send a mask made for this model.",
            )


def _filled(recipe: Recipe, model: Inspection | None = None, data: Inspection | None = None) -> dict[str, Any]:
    """Return the recipe with every default filled in, those of the algorithms' options too."""
    document = recipe.model_dump(mode="json")
    if model is not None and data is not None and "pictures" in data:
        document["preprocess"] = resolve(recipe.preprocess, _taken(model)).model_dump(mode="json")
    for part in ("select", "refine"):
        if document[part] is not None:
            options = catalogue()[document[part]["algorithm"]]["options"].get("properties", {})
            defaults = {name: field["default"] for name, field in options.items() if "default" in field}
            document[part] = {**document[part], **{n: document[part].get(n, value) for n, value in defaults.items()}}
    return document


def _levels(
    select: Select, chosen: Sequence[Mapping[str, Any]], masks: Mapping[str, Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    weights = sum(layer["weights"] for layer in chosen)
    levels = []
    for sparsity in select.levels:
        stay = kept(select, sparsity, [layer["shape"] for layer in chosen])
        if masks is not None:
            stay = sum(masks[_weight_of(layer)]["kept"] for layer in chosen)
        reached = None if stay is None else 1 - stay / weights
        levels.append({"sparsity": sparsity, "weights": weights, "kept": stay, "sparsity_reached": reached})
    return levels


def _estimate(
    recipe: Recipe, model: Inspection, chosen: Sequence[Mapping[str, Any]], data: Inspection | None
) -> dict[str, Any]:
    filled = _filled(recipe)
    weights = sum(layer["weights"] for layer in chosen)
    samples = _SAMPLES if data is None else int(data["samples"])
    pictures = 0
    if data is not None and "pictures" in data:
        how = resolve(recipe.preprocess, _taken(model))
        samples = min(samples, how.samples)
        pictures = 4 * samples * len(how.mean) * math.prod(pair(how.crop or 1))
    curvature, seconds = 0, 0.0
    for part in ("select", "refine"):
        options = filled[part]
        if options is None:
            continue
        names = options["of"] if isinstance(options.get("of"), list) else [options["algorithm"]]
        for name in names:
            if name in catalogue() and catalogue()[name]["needs_data"]:
                curvature = max(curvature, _curvature(name, options, chosen, samples))
                seconds += 6 * weights * min(samples, _number(options, "samples", _SAMPLES)) / _FLOPS
    arrays = 0 if data is None else sum(4 * math.prod(array["shape"]) for array in data["arrays"].values())
    memory = _RUNTIME_BYTES + 12 * model["parameters"] + weights * (10 + 5 * len(recipe.select.levels))
    return {"memory_bytes": memory + curvature + arrays + pictures, "seconds_at_least": round(seconds, 3), "rule": RULE}


def _curvature(name: str, options: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]], samples: int) -> int:
    known = catalogue()[name]["options"].get("properties", {})
    weights = sum(layer["weights"] for layer in chosen)
    if "block_size" in known and "inputs" not in known:
        return int(4 * weights * min(_number(options, "block_size", 500), max(layer["weights"] for layer in chosen)))
    if "labels" in known:
        return int(4 * weights * min(samples, _number(options, "samples", _SAMPLES)))
    widths = (math.prod(layer["shape"][1:]) for layer in chosen)
    return sum(4 * width * width for width in widths)


def _number(options: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) else otherwise
