"""CHITA: pruning as ridge regression on gradient rows with a cardinality constraint (Benbaki et al., ICML 2023)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from pydantic import Field

from pruning_core.algorithms.task import PruningTask, Selection, Step
from pruning_core.curvature import BlockGram, GradientRows, resolve_labels
from pruning_core.curvature.memory import SHARE, available_bytes
from pruning_core.errors import Diverged, LimitExceeded
from pruning_core.recipe import Frozen
from pruning_core.solvers import BlockQuadratic

SUMMARY = (
    "Minimise the loss's quadratic model, built from the empirical Fisher, over mask and surviving weights. One shot: "
    "gradients once, no training."
)
SOURCE = "Benbaki et al., Fast as CHITA: Neural Network Pruning with Combinatorial Optimization, ICML 2023 (2302.14623)"

#: The default ridge, as a multiple of the Fisher's mean diagonal.
RELATIVE_RIDGE = {"block": 0.3}
#: How much of an algorithm's work the gradients are, for progress.
GRADIENT_SHARE = 0.8


class Options(Frozen):
    """Options of CHITA."""

    structure: Literal["block"] = Field(
        default="block",
        description="'block': diagonal blocks of the Fisher; the mask is magnitude's, the survivors are re-fitted "
        "exactly. Memory 4·p·block_size bytes.",
    )
    block_size: int = Field(
        default=500, ge=1, le=4096, description="Consecutive weights of one tensor in a diagonal block."
    )
    samples: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Gradient rows n; fewer when the data has not n·batch_size samples.",
    )
    batch_size: int = Field(
        default=1, ge=1, le=4096, description="Samples B whose mean loss gives one row; 1 is the per-sample Fisher."
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="λ of the quadratic model. null: a multiple of the Fisher's mean diagonal (0.3 for 'block'), so "
        "that it follows batch_size and the scale of the loss; the report states the value used.",
    )
    labels: Literal["auto", "sampled", "model"] = Field(
        default="auto",
        description="'auto': the dataset's labels, or drawn from the model's softmax where it has none; 'sampled': "
        "always drawn (the true Fisher); 'model': the model's most likely class.",
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selection]:
    """Stream gradients at w̄, then choose mask and weights.

    Raises:
        DatasetError: There are no labels and none can be made.
        LimitExceeded: The curvature does not fit into memory.
        Diverged: Gradients or solution left the finite numbers; nothing is written.
    """
    labels = resolve_labels(task.network, task.calibration, options.labels, task.seed)
    rows = GradientRows(
        *(task.network, task.layout, task.calibration, labels),
        rows=options.samples,
        batch_size=options.batch_size,
        seed=task.seed,
    )
    selection = yield from _block(task, options, rows)
    used = {**options.model_dump(), **selection.options, "samples": rows.count, "batch_size": rows.batch_size}
    notes = [f"Curvature from {rows.count} gradient rows of {rows.batch_size} samples; {labels.origin}."]
    if not rows.vectorised and rows.batch_size == 1:
        notes.append("Gradients were computed one sample at a time: this network does not allow vectorising them.")
    return Selection(
        mask=selection.mask,
        weights=selection.weights,
        objective=selection.objective,
        options=used,
        notes=(*notes, *selection.notes),
    )


def _block(task: PruningTask, options: Options, rows: GradientRows) -> Generator[Step, None, Selection]:
    sizes = task.layout.sizes
    _check_memory(BlockGram.bytes_needed(sizes, options.block_size), task, "a smaller block_size")
    gram = BlockGram(sizes, options.block_size, task.weights.device)
    for block in rows:
        gram.add(block)
        yield Step(
            stage="gradients", done=gram.rows, total=rows.count, fraction=GRADIENT_SHARE * gram.rows / rows.count
        )
    blocks = gram.mean()
    mean_diagonal = sum(float(b.diagonal(dim1=1, dim2=2).sum(dtype=torch.float64)) for b in blocks) / task.layout.size
    ridge = _ridge(options, mean_diagonal)
    quadratic = BlockQuadratic(blocks, sizes, task.weights, ridge)
    mask = task.pattern.keep(task.weights.abs())
    start = quadratic.value(torch.where(mask, task.weights, torch.zeros_like(task.weights)))
    parts = []
    for part in quadratic.refit(mask):
        parts.append(part)
        share = len(parts) / len(sizes)
        yield Step(
            stage="select",
            done=len(parts),
            total=len(sizes),
            fraction=GRADIENT_SHARE + (1 - GRADIENT_SHARE) * share,
        )
    weights = torch.cat(parts)
    end = quadratic.value(weights)
    _check_finite(start, end, options)
    return Selection(mask=mask, weights=weights, objective={"start": start, "end": end}, options={"ridge": ridge})


def _ridge(options: Options, mean_diagonal: float) -> float:
    """Return λ: as given, or by the documented rule; a flat Fisher (all gradients zero) gets 1."""
    if options.ridge is not None:
        return options.ridge
    return RELATIVE_RIDGE[options.structure] * mean_diagonal or 1.0


def _check_memory(needed: int, task: PruningTask, way_out: str) -> None:
    available = available_bytes(task.weights.device)
    if needed > SHARE * available:
        raise LimitExceeded(
            f"The curvature of {task.layout.size} weights does not fit into memory.",
            expected=f"at most {int(SHARE * available)} bytes ({SHARE:.0%} of what is free)",
            received=f"{needed} bytes",
            advice=f"Choose {way_out}, or leave layers out with 'layers'.",
        )


def _check_finite(start: float, end: float, options: Options) -> None:
    if not (torch.isfinite(torch.tensor([start, end])).all() and end <= start * (1 + 1e-4) + 1e-12):
        raise Diverged(
            "CHITA left the finite numbers, or made its own objective worse.",
            expected="an objective that falls",
            received={"start": repr(start), "end": repr(end), "ridge": options.ridge},
            advice="Give a larger ridge; check the calibration data for extreme values.",
        )
