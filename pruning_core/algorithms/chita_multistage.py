"""CHITA++: the stages one after another, each kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from pruning_core.algorithms.checkpoints import Saved, remember
from pruning_core.algorithms.chita_choice import Chosen, choose, scaled
from pruning_core.algorithms.chita_curvature import BlockCurvature, Curvature, GlobalCurvature
from pruning_core.algorithms.chita_held_out import HeldOut
from pruning_core.algorithms.chita_options import Options
from pruning_core.algorithms.chita_stages import sparsities, stage_pattern
from pruning_core.algorithms.gradients import collect_blocks, collect_stored, mean_gradient, moved_rows
from pruning_core.algorithms.task import PruningTask, Selection, Step, pattern_key
from pruning_core.patterns import Pattern

#: How much of a stage the gradients are, for progress.
GRADIENT_SHARE = 0.7


def run_stages(
    task: PruningTask, options: Options, structure: str, held_out: HeldOut, pattern: Pattern
) -> Generator[Step, None, Selection]:
    """Run every stage, or take it from its checkpoint: new gradients at w, then a solve around it, w̄ <- w.

    A stage depends on the weights of the one before and on the job, and on nothing else: each draws its samples with
    its own seed.

    Args:
        task: The job.
        options: CHITA's.
        structure: 'block' or 'global'.
        held_out: What ridge and first-order step are chosen by.
        pattern: Of the last stage.
    """
    target = 1 - pattern.kept / pattern.size
    levels = sparsities(target, options.stages, options.schedule, options.initial_sparsity)
    key = f"chita/{pattern_key(task, pattern)}"
    before = Saved(tensors={"weights": task.weights})
    facts: list[dict[str, Any]] = []
    for stage, sparsity in enumerate(levels):
        last = stage == len(levels) - 1
        stage_of = pattern if last else stage_pattern(pattern, sparsity)
        step = _stage(task, options, structure, held_out, stage_of, before, stage)
        kept = remember(task.checkpoints, f"{key}/stage-{stage + 1}", step)
        before = yield from scaled(kept, stage / len(levels), 1 / len(levels))
        device = task.weights.device
        before = Saved(tensors={n: t.to(device) for n, t in before.tensors.items()}, facts=before.facts)
        facts.append(dict(before.facts))
    first, end = facts[0], facts[-1]
    rising = ", ".join(f"{level:.3g}" for level in levels)
    losses = ", ".join(f"{fact['loss']:.4g}" for fact in facts)
    notes = (
        f"{len(levels)} stages ({options.schedule}) of sparsity {rising}, each with {end['rows']} new gradient rows of "
        f"{end['batch_size']} samples; {first['origin']}.",
        f"Held-out {held_out.criterion} after each: {losses}.",
    )
    return Selection(
        mask=before.tensors["mask"],
        weights=before.tensors["weights"],
        objective={"start": end["start"], "end": end["end"]},
        options={
            **options.model_dump(),
            "structure": structure,
            "samples": end["rows"],
            "batch_size": end["batch_size"],
            "ridge": end["ridge"],
            "first_order": first_order(options),
        },
        notes=notes,
    )


def first_order(options: Options) -> bool:
    """Return whether the first-order term is on."""
    return options.stages > 1 if options.first_order is None else options.first_order


def _stage(
    task: PruningTask,
    options: Options,
    structure: str,
    held_out: HeldOut,
    pattern: Pattern,
    before: Saved,
    stage: int,
) -> Generator[Step, None, Saved]:
    anchor = before.tensors["weights"]
    rows = moved_rows(task, options, anchor, streamed=structure == "block", stage=stage)
    curvature: Curvature
    if structure == "block":
        blocks = yield from scaled(collect_blocks(rows, options.block_size), 0, GRADIENT_SHARE)
        curvature = BlockCurvature(blocks, task.layout.sizes, rows)
    else:
        columns = yield from scaled(collect_stored(rows), 0, GRADIENT_SHARE)
        curvature = GlobalCurvature(columns, rows.batch_size)
    gradient = mean_gradient(task, rows, curvature.mean) if first_order(options) else None
    choosing = choose(
        [curvature],
        anchor,
        pattern,
        ridge=options.ridge,
        begin=before.facts.get("multiple"),
        first=before.facts.get("step"),
        gradient=gradient,
        effort=options.effort(task.seed),
        held_out=held_out,
    )
    chosen: Chosen = yield from scaled(choosing, GRADIENT_SHARE, 1 - GRADIENT_SHARE)
    solved = chosen.solved
    return Saved(
        tensors={"weights": torch.where(solved.mask, solved.weights, 0.0), "mask": solved.mask},
        facts={
            "rows": rows.count,
            "batch_size": rows.batch_size,
            "origin": rows.labels.origin,
            "ridge": solved.ridge,
            "multiple": solved.ridge / curvature.scale,
            "step": chosen.step,
            "loss": chosen.loss,
            "start": solved.start,
            "end": solved.end,
            "exchanged": solved.exchanged,
        },
    )
