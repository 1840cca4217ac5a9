"""CHITA: pruning as ridge regression on gradient rows with a cardinality constraint (Benbaki et al., ICML 2023)."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, relay
from pruning_core.curvature import BlockGram, GradientRows, collect_columns, resolve_labels
from pruning_core.curvature.memory import SHARE, available_bytes
from pruning_core.errors import Diverged, LimitExceeded
from pruning_core.patterns import Pattern
from pruning_core.recipe import Frozen
from pruning_core.solvers import BlockQuadratic, LowRankQuadratic, Status, solve_cardinality

SUMMARY = (
    "Minimise the loss's quadratic model, built from the empirical Fisher, over mask and surviving weights. One shot: "
    "gradients once, no training."
)
SOURCE = "Benbaki et al., Fast as CHITA: Neural Network Pruning with Combinatorial Optimization, ICML 2023 (2302.14623)"

#: The default ridge, as a multiple of the Fisher's mean diagonal.
RELATIVE_RIDGE = {"block": 0.3, "global": 1.0}
#: Rows of more samples than this are made only on request.
LARGEST_DEFAULT_BATCH = 16


class Options(Frozen):
    """Options of CHITA."""

    structure: Literal["block", "global"] = Field(
        default="block",
        description="'block': diagonal blocks of the Fisher; the mask is magnitude's, the survivors are re-fitted "
        "exactly; robust; memory 4·p·block_size bytes. 'global': the whole low-rank Fisher, mask and survivors "
        "optimised together; memory 4·p·samples bytes.",
    )
    block_size: int = Field(
        default=500,
        ge=1,
        le=4096,
        description="About so many consecutive weights of one tensor in a diagonal block ('block').",
    )
    samples: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Gradient rows n; fewer when the data has not n·batch_size samples.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Samples B whose mean loss gives one row; 1 is the per-sample Fisher. null: as many, up to 16, as "
        "give n rows from all of the data; the report states the value used.",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="λ of the quadratic model. null: a multiple of the Fisher's mean diagonal (0.3 for 'block', 1 for "
        "'global'), so that it follows batch_size and the scale of the loss; the report states the value used.",
    )
    first_order: bool = Field(
        default=False,
        description="Add the first-order term ḡᵀ(w-w̄)/batch_size ('global' only; off in the paper's one-shot runs).",
    )
    labels: Literal["auto", "sampled", "model"] = Field(
        default="auto",
        description="'auto': the dataset's labels, or drawn from the model's softmax where it has none; 'sampled': "
        "always drawn (the true Fisher); 'model': the model's most likely class.",
    )
    tolerance: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="'global' stops when a round of exchange and refit lowers the objective by less than this part.",
    )
    max_rounds: int = Field(default=20, ge=0, le=1000, description="Rounds of exchange and refit at most ('global').")

    @model_validator(mode="after")
    def _first_order_is_global(self) -> Options:
        if self.first_order and self.structure == "block":
            raise ValueError("first_order needs structure 'global': with it every block would take the whole step")
        return self


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Stream gradients at w̄ once; the selector then chooses mask and weights for any pattern.

    Raises:
        DatasetError: There are no labels and none can be made.
        LimitExceeded: The curvature does not fit into memory.
        Diverged: Gradients or solution left the finite numbers; nothing is written.
    """
    labels = resolve_labels(task.network, task.calibration, options.labels, task.seed)
    batch_size = options.batch_size or max(1, min(LARGEST_DEFAULT_BATCH, len(task.calibration) // options.samples))
    rows = GradientRows(
        *(task.network, task.layout, task.calibration, labels),
        rows=options.samples,
        batch_size=batch_size,
        seed=task.seed,
    )
    prepare = _block if options.structure == "block" else _global
    solve = yield from prepare(task, options, rows)
    size = "one sample" if rows.batch_size == 1 else f"{rows.batch_size} samples"
    notes = [f"Curvature from {rows.count} gradient rows of {size} each; {labels.origin}."]
    if not rows.vectorised and rows.batch_size == 1:
        notes.append("Gradients were computed one sample at a time: this network does not allow vectorising them.")

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        selection = yield from solve(pattern)
        used = {**options.model_dump(), **selection.options, "samples": rows.count, "batch_size": rows.batch_size}
        return Selection(
            mask=selection.mask,
            weights=selection.weights,
            objective=selection.objective,
            options=used,
            notes=(*notes, *selection.notes),
        )

    return select


def free_first(weights: Tensor, diagonal: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Choose the magnitude mask after the weights that the loss does not depend on.

    A weight whose gradient is exactly zero on every sample (a dead pixel, a dead unit) is free to prune: it goes
    first, whatever its size, and w̄ is taken as zero there so that the ridge does not charge for it.

    Args:
        weights: w̄, (p,).
        diagonal: The Fisher's diagonal, (p,).
        pattern: The masks allowed.

    Returns:
        The mask (p,), and the anchor of the quadratic model (p,).
    """
    size = weights.abs()
    live = diagonal > 0
    mask = pattern.keep(torch.where(live, size, size - size.max() - 1))
    return mask, torch.where(live | mask, weights, torch.zeros_like(weights))


def _block(task: PruningTask, options: Options, rows: GradientRows) -> Generator[Step, None, Selector]:
    sizes = task.layout.sizes
    _check_memory(BlockGram.bytes_needed(sizes, options.block_size), task, "a smaller block_size")
    gram = BlockGram(sizes, options.block_size, task.weights.device)
    for block in rows:
        gram.add(block)
        yield _gradient_step(gram.rows, rows.count)
    blocks = gram.mean()
    diagonal = torch.cat([h.diagonal(dim1=1, dim2=2).reshape(-1)[:size] for h, size in zip(blocks, sizes, strict=True)])
    ridge = _ridge(options, diagonal)

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        mask, anchor = free_first(task.weights, diagonal, pattern)
        quadratic = BlockQuadratic(blocks, sizes, anchor, ridge)
        start = quadratic.value(torch.where(mask, anchor, torch.zeros_like(anchor)))
        parts = []
        for part in quadratic.refit(mask):
            parts.append(part)
            yield _select_step(len(parts), len(sizes))
        weights = torch.cat(parts)
        end = quadratic.value(weights)
        # Rounding in a solve may cost a little; anything more, or a NaN, is a solver gone wrong.
        if not end <= start + 1e-3 * abs(start):
            raise _diverged(start, end, ridge)
        return Selection(mask=mask, weights=weights, objective={"start": start, "end": end}, options={"ridge": ridge})

    return select


def _global(task: PruningTask, options: Options, rows: GradientRows) -> Generator[Step, None, Selector]:
    p = task.layout.size
    # Beside Gᵀ: one block of rows on the way in, small blocks and n×n matrices later.
    _check_memory(4 * p * rows.count * 5 // 4, task, "fewer samples or structure 'block'")
    columns = yield from relay(collect_columns(rows), lambda done: _gradient_step(done, rows.count))
    ridge = _ridge(options, columns.diagonal)
    slope = columns.mean / rows.batch_size if options.first_order else None

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        mask, anchor = free_first(task.weights, columns.diagonal, pattern)
        quadratic = LowRankQuadratic(columns.values, anchor, ridge, slope)
        solving = solve_cardinality(
            quadratic,
            pattern,
            mask,
            tolerance=options.tolerance,
            max_rounds=options.max_rounds,
            seed=task.seed,
        )
        rounds = count(1)
        solution = yield from relay(
            solving, lambda _: _select_step(min(next(rounds), options.max_rounds), max(1, options.max_rounds))
        )
        if solution.status is Status.DIVERGED:
            raise _diverged(solution.start, solution.objective, ridge)
        moved = int((solution.mask & ~mask).sum())
        return Selection(
            mask=solution.mask,
            weights=solution.value,
            objective={"start": solution.start, "end": solution.objective},
            options={"ridge": ridge},
            notes=(
                f"The solver exchanged {moved} weights of the magnitude mask in {solution.steps} rounds: "
                f"{solution.status.value}.",
            ),
        )

    return select


def _gradient_step(done: int, total: int) -> Step:
    return Step(stage="gradients", done=done, total=total, fraction=done / total)


def _select_step(done: int, total: int) -> Step:
    return Step(stage="select", done=done, total=total, fraction=done / total)


def _ridge(options: Options, diagonal: Tensor) -> float:
    """Return λ: as given, or by the documented rule; a flat Fisher (all gradients zero) gets 1.

    Raises:
        Diverged: The gradients are not finite.
    """
    mean = float(diagonal.mean(dtype=torch.float64))
    if not mean < float("inf"):
        raise Diverged(
            "The gradients of the loss at the given weights are not finite.",
            expected="finite gradients",
            received=repr(mean),
            advice="Check that the model gives finite outputs and a finite loss on the calibration data.",
        )
    if options.ridge is not None:
        return options.ridge
    return RELATIVE_RIDGE[options.structure] * mean or 1.0


def _check_memory(needed: int, task: PruningTask, way_out: str) -> None:
    limit = int(SHARE * available_bytes(task.weights.device))
    if needed > limit:
        raise LimitExceeded(
            f"The curvature of {task.layout.size} weights does not fit into memory.",
            expected=f"at most {limit} bytes ({SHARE:.0%} of what is free)",
            received=f"{needed} bytes",
            advice=f"Choose {way_out}, or leave layers out with 'layers'.",
        )


def _diverged(start: float, end: float, ridge: float) -> Diverged:
    return Diverged(
        "CHITA left the finite numbers, or its objective rose.",
        expected="an objective that falls",
        received={"start": repr(start), "end": repr(end), "ridge": ridge},
        advice="Give a larger ridge; check the calibration data for extreme values.",
    )
