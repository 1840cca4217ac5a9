"""`prune`: from a network, calibration data and a recipe to pruned networks and a report of what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pruning_core.accounts import Clock, device_name, versions
from pruning_core.algorithms import Checkpoints, NoCheckpoints, PruningTask, Selection, Within, weights_of
from pruning_core.curvature import Layout
from pruning_core.curvature.predict import Samples
from pruning_core.errors import MaskError, ModelError, NothingToPrune
from pruning_core.evaluate import compare
from pruning_core.frontier import make_levels
from pruning_core.holdout import split
from pruning_core.levels import WORK_SHARE
from pruning_core.masks import flat_mask, masked_layers
from pruning_core.network import Layer, Network
from pruning_core.portraits import portraits, sensitivities
from pruning_core.recipe import Goal, Recipe
from pruning_core.report import LevelReport, Progress, PruningReport

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Level:
    """One produced network.

    Args:
        network: On the CPU; every tensor that did not take part is bit-identical to the given one.
        masks: Weight name -> bool, True = kept; only the layers that took part.
        report: What was measured on it.
    """

    network: Network
    masks: Mapping[str, Tensor]
    report: LevelReport


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` returns.

    Args:
        levels: One for a sparsity, a goal, an n:m pattern or a mask; for a list one for each, in ascending sparsity.
        report: What was measured.
    """

    levels: tuple[Level, ...]
    report: PruningReport

    @property
    def network(self) -> Network:
        """The only network, or the sparsest."""
        return self.levels[-1].network

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks of `network`."""
        return self.levels[-1].masks


def finish(steps: Generator[object, None, T]) -> T:
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def planned_layers(network: Network, recipe: Recipe, masks: Mapping[str, Tensor] | None = None) -> tuple[Layer, ...]:
    """Return the prunable layers that the recipe includes (and the masks name), in execution order.

    Raises:
        NothingToPrune: There are none.
        MaskError: A mask is needed and not given, or does not fit the network.
    """
    candidates = network.layers
    if recipe.needs_mask:
        if masks is None:
            raise MaskError("The recipe takes an uploaded mask, and none was given.", expected="masks")
        candidates = masked_layers(network, masks)
    layers = tuple(layer for layer in candidates if recipe.select.layers.accepts(layer.name))
    if not layers:
        names = [layer.name for layer in network.layers]
        raise NothingToPrune(
            "The recipe leaves no layer to prune." if names else "The model has no prunable layer.",
            expected="at least one linear or convolution weight that 'layers' includes",
            received={"layers": names, "unprunable": dict(network.unprunable)},
            advice="Layer names are matched by shell patterns such as 'layer1.*'." if names else None,
        )
    return layers


def prune(
    network: Network,
    calibration: Samples,
    recipe: Recipe,
    *,
    validation: Samples | None = None,
    device: str | torch.device = "cpu",
    masks: Mapping[str, Tensor] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Generator[Progress, None, Pruned]:
    """Prune a network by a recipe. Same arguments, same device kind and threads, same bytes.

    Args:
        network: As read; it is not changed.
        calibration: What the algorithm may look at. A part is kept aside: choices are made on it.
        recipe: Algorithms, sparsity, pattern, layers, seed.
        validation: What the qualities are measured on; without it the calibration data.
        device: Where to work. The result is on the CPU.
        masks: Weight name -> bool, for recipes that take an uploaded mask.
        checkpoints: Where finished steps are kept: called again with them after a kill, it goes on from there.

    Yields:
        Progress after every step. Closing the generator cancels.

    Returns:
        The pruned networks, their masks and the report, as the generator's value (see `finish`).

    Raises:
        NothingToPrune: No layer takes part.
        ModelError: A weight is not finite.
        MaskError: The masks do not fit.
        PruningError: What the algorithm raises.
    """
    select = recipe.select
    layers = planned_layers(network, recipe, masks)
    layout = Layout(layers)
    there = network.to(device)
    weights = layout.flatten(there.weights)
    if not bool(torch.isfinite(weights).all()):
        bad = [name for name, part in layout.split(weights).items() if not bool(torch.isfinite(part).all())]
        raise ModelError("Some weights are not finite.", expected="finite weights", received=bad)
    clock = Clock()
    fit, held_out = split(calibration, recipe.seed)
    fingerprint = "" if checkpoints is None else _fingerprint(there, weights, calibration, recipe, masks)
    kept = Within(checkpoints or NoCheckpoints(), fingerprint)
    task = PruningTask(
        network=there,
        calibration=fit,
        held_out=held_out,
        layout=layout,
        weights=weights,
        seed=recipe.seed,
        checkpoints=kept,
    )
    given = None if not recipe.needs_mask or masks is None else flat_mask(layout, masks).to(there.device)
    made = yield from make_levels(task, recipe, given, clock)

    yield Progress(stage="evaluate", done=0, total=len(made.levels), fraction=WORK_SHARE)
    clock.skip()
    data = calibration if validation is None else validation
    levels, dense = [], None
    for one in made.levels:
        updates = weights_of(task, one.selection)
        plain = weights_of(task, Selection(mask=one.pattern.keep(weights.abs())))
        found = compare(there, {"pruned": updates, "magnitude": plain}, data)
        dense = found["dense"]
        produced = network.with_weights({name: value.cpu() for name, value in updates.items()})
        level_masks = {name: mask.cpu() for name, mask in layout.split(one.selection.mask).items()}
        errors = sensitivities(layers, there, updates, held_out, recipe.seed, len(made.levels))
        per_layer = portraits(layers, network, produced, errors)
        report = LevelReport(
            sparsity_requested=None if isinstance(select.sparsity, Goal) else one.sparsity,
            sparsity_target=one.sparsity,
            pattern=one.spec.model_dump(),
            sparsity=sum(r.zeros for r in per_layer) / layout.size,
            pattern_holds=one.pattern.accepts(one.selection.mask) and _masked_are_zero(produced, level_masks),
            layers=per_layer,
            objective=dict(one.selection.objective),
            options=dict(one.selection.options),
            refine_options=one.refine_options,
            fell_back=one.fell_back,
            notes=one.selection.notes,
            recalibrated=tuple(sorted(one.selection.buffers)),
            magnitude=found["magnitude"],
            pruned=found["pruned"],
        )
        levels.append(Level(network=produced, masks=level_masks, report=report))
        clock.lap("evaluate")
        done = len(levels)
        fraction = WORK_SHARE + (1 - WORK_SHARE) * done / len(made.levels)
        yield Progress(stage="evaluate", done=done, total=len(made.levels), fraction=min(1.0, fraction))
        clock.skip()
    assert dense is not None
    included = {layer.name for layer in layers}
    return Pruned(
        levels=tuple(levels),
        report=PruningReport(
            algorithm=select.algorithm,
            refine=recipe.refine.algorithm if recipe.refine else None,
            pattern=select.pattern.model_dump(),
            goal=select.sparsity.model_dump(exclude_none=True) if isinstance(select.sparsity, Goal) else None,
            excluded=tuple(layer.name for layer in network.layers if layer.name not in included),
            unprunable=dict(network.unprunable),
            data="calibration" if validation is None else "validation",
            held_out=len(held_out),
            dense=dense,
            levels=tuple(level.report for level in levels),
            frontier=made.frontier,
            stages=clock.stages,
            resumed=kept.taken,
            seed=recipe.seed,
            device=device_name(there.device),
            versions=versions(),
        ),
    )


def _masked_are_zero(network: Network, masks: Mapping[str, Tensor]) -> bool:
    return all(not bool(network.weights[name][~mask].any()) for name, mask in masks.items())


def _fingerprint(
    network: Network, weights: Tensor, data: Samples, recipe: Recipe, masks: Mapping[str, Tensor] | None
) -> str:
    """Return a digest of all that the result depends on: checkpoints of other work are not taken for this one's."""
    digest = hashlib.sha256(recipe.model_dump_json().encode())
    digest.update(f"{versions()} {device_name(network.device)}".encode())
    tensors = [weights, *data.inputs, *([] if data.labels is None else [data.labels])]
    for tensor in [*tensors, *(masks or {}).values()]:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
