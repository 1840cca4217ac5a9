"""`prune`: from a network, calibration data and a recipe to a pruned network and a report of what was measured."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import torch
from torch import Tensor

from pruning_core.algorithms import REGISTRY, Entry, PruningTask, Selection
from pruning_core.curvature import Layout
from pruning_core.curvature.predict import Samples
from pruning_core.errors import Diverged, ModelError, NothingToPrune
from pruning_core.evaluate import compare
from pruning_core.network import Layer, Network
from pruning_core.patterns import Unstructured
from pruning_core.recipe import Recipe
from pruning_core.report import LayerReport, Progress, PruningReport, Quality, StageReport

T = TypeVar("T")

#: How much of the whole work the algorithm is, for progress; the rest is evaluation.
ALGORITHM_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` returns.

    Args:
        network: On the CPU; every tensor that did not take part is bit-identical to the given one.
        masks: Weight name -> bool, True = kept; only the layers that took part.
        report: What was measured.
    """

    network: Network
    masks: Mapping[str, Tensor]
    report: PruningReport


def finish(steps: Generator[object, None, T]) -> T:
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def planned_layers(network: Network, recipe: Recipe) -> tuple[Layer, ...]:
    """Return the prunable layers that the recipe includes, in execution order.

    Raises:
        NothingToPrune: There are none.
    """
    layers = tuple(layer for layer in network.layers if recipe.select.layers.accepts(layer.name))
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
) -> Generator[Progress, None, Pruned]:
    """Prune a network by a recipe. Same arguments, same device kind and threads, same bytes.

    Args:
        network: As read; it is not changed.
        calibration: What the algorithm may look at.
        recipe: Algorithm, sparsity, pattern, layers, seed.
        validation: What the qualities are measured on; without it the calibration data.
        device: Where to work. The result is on the CPU.

    Yields:
        Progress after every step. Closing the generator cancels.

    Returns:
        The pruned network, its masks and the report, as the generator's value (see `finish`).

    Raises:
        NothingToPrune: No layer takes part.
        ModelError: A weight is not finite.
        PruningError: What the algorithm raises.
    """
    select = recipe.select
    layers = planned_layers(network, recipe)
    layout = Layout(layers)
    pattern = Unstructured.of(layout.sizes, select.sparsity, scope=select.pattern.scope)
    entry = REGISTRY[select.algorithm]
    there = network.to(device)
    weights = layout.flatten(there.weights)
    if not bool(torch.isfinite(weights).all()):
        bad = [name for name, part in layout.split(weights).items() if not bool(torch.isfinite(part).all())]
        raise ModelError("Some weights are not finite.", expected="finite weights", received=bad)
    clock = _Clock()
    if pattern.kept == pattern.size:
        # Nothing is to go: the identity, whatever the algorithm would do to the survivors.
        selection = Selection(
            mask=torch.ones_like(weights, dtype=torch.bool),
            options=entry.options.model_validate(select.options).model_dump(),
            notes=("Sparsity 0 was asked for: the network was left as it is.",),
        )
    else:
        task = PruningTask(
            network=there,
            calibration=calibration,
            layout=layout,
            weights=weights,
            pattern=pattern,
            seed=recipe.seed,
        )
        selection = yield from _select(entry, task, recipe, clock)
    updates = _write(network, layout, selection)
    pruned = network.with_weights(updates)
    masks = {name: mask.cpu() for name, mask in layout.split(selection.mask).items()}
    yield Progress(stage="evaluate", done=0, total=1, fraction=ALGORITHM_SHARE)
    clock.skip()
    data = calibration if validation is None else validation
    magnitude = {name: there.weights[name] * mask for name, mask in layout.split(pattern.keep(weights.abs())).items()}
    moved = {name: value.to(there.device) for name, value in updates.items()}
    found = compare(there, {"magnitude": magnitude, "pruned": moved}, data)
    clock.lap("evaluate")
    yield Progress(stage="evaluate", done=1, total=1, fraction=1.0)
    notes = (*selection.notes, *_comparison(found["magnitude"], found["pruned"], validation is None))
    per_layer = tuple(_layer_report(layer, pruned) for layer in layers)
    zeros, total = sum(r.zeros for r in per_layer), layout.size
    included = {layer.name for layer in layers}
    report = PruningReport(
        algorithm=select.algorithm,
        sparsity_requested=select.sparsity,
        sparsity=zeros / total,
        pattern=select.pattern.model_dump(),
        pattern_holds=pattern.accepts(selection.mask) and _masked_are_zero(pruned, masks),
        layers=per_layer,
        excluded=tuple(layer.name for layer in network.layers if layer.name not in included),
        unprunable=dict(network.unprunable),
        objective=dict(selection.objective),
        options=dict(selection.options),
        notes=notes,
        data="calibration" if validation is None else "validation",
        dense=found["dense"],
        magnitude=found["magnitude"],
        pruned=found["pruned"],
        stages=clock.stages,
        seed=recipe.seed,
        device=_device_name(there.device),
        versions=_versions(),
    )
    return Pruned(network=pruned, masks=masks, report=report)


def _select(entry: Entry, task: PruningTask, recipe: Recipe, clock: _Clock) -> Generator[Progress, None, Selection]:
    steps = entry.run(task, entry.options.model_validate(recipe.select.options))
    stage = "select"
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                selection: Selection = end.value
                break
            stage = step.stage
            clock.lap(stage)
            yield Progress(stage=stage, done=step.done, total=step.total, fraction=ALGORITHM_SHARE * step.fraction)
            clock.skip()
    finally:
        steps.close()
    clock.lap(stage)
    if selection.weights is not None and not bool(torch.isfinite(selection.weights).all()):
        raise Diverged("The algorithm produced weights that are not finite.", advice="Give a larger ridge.")
    return selection


def _write(network: Network, layout: Layout, selection: Selection) -> dict[str, Tensor]:
    """Return the changed weights on the CPU, in their own dtypes: exact zeros off the mask."""
    masks = layout.split(selection.mask.cpu())
    values = None if selection.weights is None else layout.split(selection.weights.cpu())
    updates = {}
    for name, mask in masks.items():
        given = network.weights[name].detach().cpu()
        value = given if values is None else values[name].to(given.dtype)
        updates[name] = torch.where(mask, value, torch.zeros_like(given))
    return updates


def _masked_are_zero(network: Network, masks: Mapping[str, Tensor]) -> bool:
    return all(not bool(network.weights[name][~mask].any()) for name, mask in masks.items())


def _layer_report(layer: Layer, network: Network) -> LayerReport:
    weight = network.weights[layer.weight]
    zeros = int((weight == 0).sum())
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        weights=weight.numel(),
        zeros=zeros,
        sparsity=zeros / weight.numel(),
    )


def _comparison(magnitude: Quality, pruned: Quality, on_calibration: bool) -> tuple[str, ...]:
    """Say so when plain magnitude pruning did better."""
    data = "calibration" if on_calibration else "validation"
    for word, sign in (("accuracy", 1), ("loss", -1), ("output_error", -1)):
        ours, theirs = getattr(pruned, word), getattr(magnitude, word)
        if ours is not None and theirs is not None:
            if sign * ours < sign * theirs:
                return (
                    f"Magnitude pruning does better on the {data} data ({word.replace('_', ' ')} {theirs:.4g} against "
                    f"{ours:.4g}): consider it, or other options.",
                )
            return ()
    return ()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def _versions() -> dict[str, str]:
    try:
        own = version("pruning-service")
    except PackageNotFoundError:  # used from a source tree that is not installed
        own = "unknown"
    return {"pruning-service": own, "torch": str(torch.__version__), "python": platform.python_version()}


class _Clock:
    """Wall and CPU seconds of each stage, and the peak of resident memory."""

    def __init__(self) -> None:
        self._stages: dict[str, StageReport] = {}
        self.skip()

    def skip(self) -> None:
        """Count nothing that happened since the last call: the caller's time between two steps."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """Add what happened since the last call to this stage."""
        before = self._stages.get(stage)
        self._stages[stage] = StageReport(
            name=stage,
            seconds=time.perf_counter() - self._wall + (before.seconds if before else 0.0),
            cpu_seconds=time.process_time() - self._cpu + (before.cpu_seconds if before else 0.0),
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        self.skip()

    @property
    def stages(self) -> tuple[StageReport, ...]:
        """Every stage in the order of its first lap."""
        return tuple(self._stages.values())
