"""Gradual select-refine: raise sparsity in stages, re-fit every survivor to the dense network's own activations.

Each stage takes the next weights away, by the magnitude of the weights *refined so far*, and re-solves all survivors
layer by layer: least squares on what the pruned network feeds the layer, towards what the *dense* network computes
there. At each sparsity that is asked for, one global step then moves all survivors together so that blocks and output
match the dense network's. No labels, no training loop.

Stages before a level depend on its pattern's kind alone, so a level's result is the same whatever else is asked for,
in whatever order; what it shares with other levels is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from pruning_core.algorithms import snows
from pruning_core.algorithms.checkpoints import Saved, Within, remember
from pruning_core.algorithms.gradual_chain import Stage, nested, stages
from pruning_core.algorithms.gradual_joint import Joined, global_step, matched_values
from pruning_core.algorithms.gradual_sweep import DenseTargets, Fitted, sweep
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, pattern_key, relay
from pruning_core.curvature.joint import JointMatch
from pruning_core.curvature.predict import Samples
from pruning_core.holdout import drawn
from pruning_core.patterns import Pattern
from pruning_core.recipe import Frozen

SUMMARY = (
    "Prune in stages by the magnitude of the refined weights, re-fit all survivors to the dense network's activations, "
    "and match blocks and output in a global step at each sparsity. No labels; one run gives the whole curve."
)
SOURCE = (
    "This project (gradual select-refine); layer-wise targets as in SNOWS, Lucas & Mazumder, ICLR 2025 (2411.18376)"
)

#: Kept weights fall by about a fifth each time.
STAGES = (
    *(0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.83, 0.86, 0.885, 0.9, 0.92, 0.935, 0.95),
    *(0.96, 0.968, 0.975, 0.98, 0.984, 0.987, 0.99),
)
#: Progress: a step of the global step counts like so many layers of a sweep, if there are as many as asked for.
STEP_WEIGHT = 1.5
#: And a layer's fit to its window like so many.
WINDOW_WEIGHT = 5
#: The error of the layers' fits at which the global step takes the steps asked for, and how many times as many at most.
TYPICAL_ERROR, MOST_STEPS = 0.2, 4.0
#: Passes over the samples in one global step at most: few samples are soon learnt by heart.
MOST_PASSES = 20
#: Samples for the fits to a window of operations.
SNOWS_SAMPLES = 512
#: States of earlier stages are kept while they take less than this.
KEPT_BYTES = 2**30


class Options(Frozen):
    """Options of gradual select-refine."""

    stages: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=STAGES,
        min_length=1,
        max_length=100,
        description="Sparsities on the way, rising; those below the sparsity that is asked for are passed through. "
        "For n:m patterns the way is (m-1):m, ..., n:m instead.",
    )
    passes: int = Field(default=5, ge=1, le=20, description="Stages from each n+1:m to n:m, for n:m patterns.")
    samples: int = Field(
        default=1024, ge=1, le=1_000_000, description="Calibration samples that are used at most, drawn at random."
    )
    positions: int = Field(
        default=64,
        ge=1,
        le=65536,
        description="Places of a layer's output that are looked at in each sample, about: pixels or tokens.",
    )
    ridge: float = Field(
        default=1e-3,
        gt=0,
        le=10,
        description="How strongly a layer's fit is held to the weights it starts from, relative to the mean diagonal "
        "of its inputs' Gram matrix.",
    )
    floor: float = Field(
        default=0.03,
        ge=0,
        le=0.5,
        description="With one ranking over all layers: the part of each layer that stays in any case (half the density "
        "that is asked for, where that is less).",
    )
    window: int = Field(
        default=3,
        ge=0,
        le=64,
        description="At the sparsity that is asked for the layers are fitted once more, to so many operations behind "
        "them too, as SNOWS does; 0 leaves that out.",
    )
    window_error: float = Field(
        default=0.08,
        ge=0,
        le=1,
        description="Only where the layers' fits leave a relative error above this, on average.",
    )
    joint_steps: int = Field(
        default=70,
        ge=0,
        le=100_000,
        description="Steps of the global step where the layers' fits leave a relative error of 0.2 on average; in "
        "proportion where it is another, up to four times as many. 0 leaves it out.",
    )
    joint_batch: int = Field(default=128, ge=1, le=65536, description="Samples of one such step.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of the global step.")
    output_weight: float = Field(
        default=20.0,
        ge=0,
        le=1e6,
        description="Weight of the output's relative error in the global step; that of the blocks' mean is 1.",
    )

    @field_validator("stages")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(value)):
            raise ValueError("expected rising sparsities")
        return value


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Collect the dense network's activations; return the selector.

    Raises:
        LimitExceeded: They do not fit into memory.
    """
    data = drawn(task.calibration, options.samples, task.seed)
    targets = DenseTargets(task.network, data, task.layout.names, options.positions, task.seed)
    total = len(targets.chunks)
    for done in targets.collect():
        yield Step(stage="targets", done=done, total=total, fraction=done / total)
    gradual = _Gradual(task, options, data, targets)
    return gradual.select


class _Gradual:
    """One job: the stages that are known, and the joint losses once they are needed."""

    def __init__(self, task: PruningTask, options: Options, data: Samples, targets: DenseTargets) -> None:
        self._task, self._options, self._data, self._targets = task, options, data, targets
        self._states: dict[Stage, tuple[Tensor, Tensor]] = {}
        self._losses: tuple[JointMatch, JointMatch] | None = None
        self._done = self._total = 0.0

    def select(self, pattern: Pattern) -> Generator[Step, None, Selection]:
        """Go through the stages before the pattern, as far as they are not known, and through its own."""
        task, options = self._task, self._options
        if pattern.kept == pattern.size:
            return Selection(mask=torch.ones_like(task.weights, dtype=torch.bool), options=options.model_dump())
        way = stages(pattern, options.stages, options.passes)
        known = max((i + 1 for i, stage in enumerate(way[:-1]) if stage in self._states), default=0)
        layers = len(self._targets.sites)
        self._done, self._total = 0.0, layers * (len(way) - known) + STEP_WEIGHT * options.joint_steps
        self._total += WINDOW_WEIGHT * layers if options.window else 0
        if known:
            weights, mask = self._states[way[known - 1]]
        else:
            weights, mask = task.weights, torch.ones_like(task.weights, dtype=torch.bool)
        for stage in way[known:-1]:
            saved = yield from remember(task.checkpoints, self._key(stage), self._stage(stage, weights, mask))
            weights, mask = (saved.tensors[name].to(task.weights.device) for name in ("weights", "mask"))
            self._keep(stage, weights, mask)
        mask = nested(way[-1], weights, mask, task.layout, options.floor)
        fitted = yield from self._sweep(way[-1].key, weights, mask)
        weights = task.layout.flatten(fitted.weights) * mask
        self._keep(way[-1], weights, mask)
        before, after = (sum(e[i] for e in fitted.errors.values()) / max(1, len(fitted.errors)) for i in (0, 1))
        objective = {"layer_error_start": before, "layer_error_end": after}
        notes = [f"{len(way)} stages, each re-fitted layer by layer to the dense network's activations."]
        if options.window and not after > options.window_error:
            self._total -= WINDOW_WEIGHT * layers
        elif options.window:
            weights = yield from self._deepen(way[-1], weights, mask)
            notes.append(f"Re-fitted once more to the {options.window} operations behind each layer (as SNOWS does).")
        steps = math.ceil(options.joint_steps * min(MOST_STEPS, after / TYPICAL_ERROR))
        if steps:
            joined, steps = yield from self._join(fitted, weights, mask, steps)
            weights = joined.weights
            objective |= {"joint_start": joined.start, "joint_end": joined.end}
            notes.append(_told(joined))
        used = {**options.model_dump(), "stages": [stage.key for stage in way], "samples": len(self._data)}
        used["joint_steps"] = steps
        return Selection(mask=mask, weights=weights, objective=objective, options=used, notes=tuple(notes))

    def _stage(self, stage: Stage, weights: Tensor, mask: Tensor) -> Generator[Step, None, Saved]:
        mask = nested(stage, weights, mask, self._task.layout, self._options.floor)
        fitted = yield from self._sweep(stage.key, weights, mask)
        return Saved(tensors={"weights": self._task.layout.flatten(fitted.weights) * mask, "mask": mask})

    def _sweep(self, key: str, weights: Tensor, mask: Tensor) -> Generator[Step, None, Fitted]:
        layout, total = self._task.layout, len(self._targets.sites)
        steps = sweep(self._targets, layout.split(weights), layout.split(mask), self._options.ridge)

        def shown(done: int) -> Step:
            self._done += 1
            return self._step(f"stage {key}", done, total)

        return (yield from relay(steps, shown))

    def _key(self, stage: Stage) -> str:
        return f"gradual/{stage.key}-{pattern_key(self._task, stage.pattern)}"

    def _deepen(self, stage: Stage, weights: Tensor, mask: Tensor) -> Generator[Step, None, Tensor]:
        """Return weights that match a window of operations behind each layer, too."""
        task = replace(self._task, checkpoints=Within(self._task.checkpoints, self._key(stage)))
        options = snows.Options(window=self._options.window, samples=min(SNOWS_SAMPLES, self._options.samples))
        before = self._done

        def shown(step: Step) -> Step:
            self._done = before + WINDOW_WEIGHT * len(self._targets.sites) * step.fraction
            return self._step("window", step.done, step.total)

        start = Selection(mask=mask, weights=weights)
        refined = yield from relay(snows.run(task, options, start), shown)
        assert refined.weights is not None
        return refined.weights

    def _join(
        self, fitted: Fitted, weights: Tensor, mask: Tensor, steps: int
    ) -> Generator[Step, None, tuple[Joined, int]]:
        task, options = self._task, self._options
        if self._losses is None:
            fit = yield from self._loss(self._data)
            self._losses = fit, (yield from self._loss(task.held_out))
        steps = min(steps, MOST_PASSES * len(self._losses[0]))
        descent = global_step(
            *self._losses,
            task.layout,
            fitted.grams,
            weights,
            mask,
            steps=steps,
            momentum=options.momentum,
            seed=task.seed,
        )
        furthest = 0

        def shown(done: int) -> Step:
            nonlocal furthest
            if done > furthest:
                furthest = done
                self._done += STEP_WEIGHT * options.joint_steps / steps
            return self._step("global step", done, steps)

        return (yield from relay(descent, shown)), steps

    def _loss(self, data: Samples) -> Generator[Step, None, JointMatch]:
        task, options = self._task, self._options
        blocks = matched_values(task.network)
        batch, weight = options.joint_batch, options.output_weight
        match = JointMatch(task.network, data, task.layout, blocks, batch=batch, output_weight=weight)
        for done in match.prepare():
            yield self._step("targets", done, len(match))
        return match

    def _step(self, stage: str, done: int, total: int) -> Step:
        return Step(stage=stage, done=done, total=total, fraction=min(1.0, self._done / max(1.0, self._total)))

    def _keep(self, stage: Stage, weights: Tensor, mask: Tensor) -> None:
        """Keep a stage's result for other levels; let the oldest ones go where all together take too much."""
        if not stage.shared:
            return
        self._states[stage] = (weights, mask)
        each = weights.numel() * (weights.element_size() + 1)
        while len(self._states) > max(2, KEPT_BYTES // max(1, each)):
            del self._states[next(iter(self._states))]


def _told(joined: Joined) -> str:
    if joined.scale == 0.0:
        return "The global step was left out: it did not lower the joint loss on held-out data."
    return (
        f"Global step: joint loss on held-out data {joined.start:.4g} -> {joined.end:.4g}, "
        f"at {joined.scale:g} times the Gauss-Newton length."
    )
