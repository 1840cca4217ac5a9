"""CHITA: pruning as ridge regression on gradient rows with a cardinality constraint (Benbaki et al., ICML 2023).

The parts: `gradients` (the Fisher's rows, blocks and columns), `chita_curvature` (its two structures, and the solve),
`chita_choice` (ridge, structure and first-order step, by held-out data), `chita_multistage` (CHITA++).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from pruning_core.algorithms.checkpoints import Saved, remember
from pruning_core.algorithms.chita_choice import Chosen, choose, scaled
from pruning_core.algorithms.chita_curvature import BlockCurvature, Curvature, GlobalCurvature
from pruning_core.algorithms.chita_held_out import HeldOut
from pruning_core.algorithms.chita_multistage import first_order, run_stages
from pruning_core.algorithms.chita_options import Options
from pruning_core.algorithms.gradients import (
    block_gram,
    columns,
    columns_and_blocks,
    columns_fit,
    gradient_notes,
    gradient_rows,
)
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, pattern_key
from pruning_core.curvature import LossKind
from pruning_core.patterns import Pattern

__all__ = ["SOURCE", "SUMMARY", "Options", "run"]

SUMMARY = (
    "Minimise the loss's quadratic model, built from the empirical Fisher, over mask and surviving weights. One shot, "
    "or in stages of rising sparsity with new gradients (CHITA++); no training."
)
SOURCE = "Benbaki et al., Fast as CHITA: Neural Network Pruning with Combinatorial Optimization, ICML 2023 (2302.14623)"
#: How much of a multi-stage run the choice of the structure is, for progress.
DECISION_SHARE = 0.1


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Measure the Fisher at w̄ once; the selector then chooses mask and weights for any pattern.

    In a multi-stage run the selector measures it again at every stage; what is measured here decides the structure,
    where that is to be chosen.

    Raises:
        DatasetError: There are no labels and none can be made.
        LimitExceeded: The curvature does not fit into memory.
        Diverged: Gradients or solution left the finite numbers; nothing is written.
    """
    streamed = options.structure != "global"
    rows = gradient_rows(task, options, streamed=streamed)
    held_out = HeldOut(task, classes=rows.labels.kind is not LossKind.RANDOM_SUM)

    def stages(pattern: Pattern) -> Generator[Step, None, Selection]:
        if options.structure != "auto":
            return (yield from run_stages(task, options, options.structure, held_out, pattern))
        key = f"chita/{pattern_key(task, pattern)}/structure"
        decision = remember(task.checkpoints, key, _decide(task, options, held_out, pattern))
        facts = (yield from scaled(decision, 0, DECISION_SHARE)).facts
        selection = yield from scaled(
            run_stages(task, options, facts["structure"], held_out, pattern), DECISION_SHARE, 1 - DECISION_SHARE
        )
        return replace(selection, notes=(*selection.notes, *facts["notes"]))

    if options.stages > 1:
        return stages
    curvatures = yield from _measure(task, options)
    notes = gradient_notes(rows)

    def one_shot(pattern: Pattern) -> Generator[Step, None, Selection]:
        chosen = yield from _choose(task, options, held_out, curvatures, pattern)
        solved = chosen.solved
        used = {
            "structure": chosen.curvature.name,
            "samples": chosen.curvature.rows,
            "batch_size": chosen.curvature.batch_size,
            "ridge": solved.ridge,
            "first_order": first_order(options),
        }
        rounds, swaps = solved.rounds
        moved = (
            f"{solved.exchanged} weights of the magnitude mask were exchanged, in {rounds} rounds of the solver and "
            f"{swaps} of the swap search."
        )
        return Selection(
            mask=solved.mask,
            weights=solved.weights,
            objective={"start": solved.start, "end": solved.end},
            options={**options.model_dump(), **used},
            notes=(*notes, moved, *_choice_notes(chosen, held_out)),
        )

    return one_shot


def _measure(task: PruningTask, options: Options) -> Generator[Step, None, list[Curvature]]:
    sizes = task.layout.sizes
    if options.structure == "global":
        rows = gradient_rows(task, options)
        return [GlobalCurvature((yield from columns(task, options)), rows.batch_size)]
    rows = gradient_rows(task, options, streamed=True)
    if options.structure == "auto" and columns_fit(task, options, options.block_size):
        both = yield from columns_and_blocks(task, options, options.block_size)
        return [BlockCurvature(both.blocks, sizes, rows), GlobalCurvature(both.columns, both.batch_size)]
    return [BlockCurvature((yield from block_gram(task, options, options.block_size)), sizes, rows)]


def _choose(
    task: PruningTask, options: Options, held_out: HeldOut, curvatures: list[Curvature], pattern: Pattern
) -> Generator[Step, None, Chosen]:
    return choose(
        curvatures,
        task.weights,
        pattern,
        ridge=options.ridge,
        gradient=curvatures[0].mean if first_order(options) and options.stages == 1 else None,
        effort=options.effort(task.seed),
        held_out=held_out,
    )


def _decide(task: PruningTask, options: Options, held_out: HeldOut, pattern: Pattern) -> Generator[Step, None, Saved]:
    """Choose the structure for all stages: the one that does better in one shot."""
    curvatures = yield from scaled(_measure(task, options), 0, 0.7)
    chosen = yield from scaled(_choose(task, options, held_out, curvatures, pattern), 0.7, 0.3)
    return Saved(facts={"structure": chosen.curvature.name, "notes": list(_choice_notes(chosen, held_out))})


def _choice_notes(chosen: Chosen, held_out: HeldOut) -> tuple[str, ...]:
    """Say what was compared on held-out data, and what step along the gradient was taken."""
    notes = []
    if len(chosen.tried) > 1:
        listed = "; ".join(f"{name} λ={ridge:.2g}: {loss:.4g}" for name, ridge, loss in chosen.tried)
        notes.append(
            f"Chosen on held-out data by {held_out.criterion}: structure '{chosen.curvature.name}', "
            f"λ={chosen.solved.ridge:.3g}. Tried: {listed}."
        )
    if chosen.step not in (0.0, 1.0):
        notes.append(f"Of the first-order step {chosen.step:.3g} was taken, by the held-out {held_out.criterion}.")
    return tuple(notes)
