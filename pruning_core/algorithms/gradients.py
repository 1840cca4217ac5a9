"""Gradient statistics of a job, for every algorithm that stands on the empirical Fisher; measured once, shared.

    rows = gradient_rows(task, options)                  # a stream of blocks (c, p); nothing is computed yet
    columns = yield from columns(task, options)          # Gᵀ (p, n), stored, with the Fisher's diagonal and mean row
    blocks = yield from block_gram(task, options, 500)   # the Fisher's diagonal blocks, streamed: n is unlimited

``options`` are an algorithm's own, derived from `GradientOptions`. What is asked for twice in one job, by whatever
algorithm or level, is computed once (`Shared.once`); `gradient_notes` says in plain words what it was computed from.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.task import PruningTask, Step, relay
from pruning_core.curvature import (
    BlockGram,
    Columns,
    ColumnStore,
    GradientRows,
    Labels,
    LossKind,
    collect_columns,
    predict,
    resolve_labels,
)
from pruning_core.curvature.memory import check_fits, roomy
from pruning_core.curvature.predict import batches
from pruning_core.errors import Diverged
from pruning_core.recipe import Frozen

#: Rows n where G is stored; rows of more samples than the batch are made only on request.
STORED_ROWS, LARGEST_DEFAULT_BATCH = 1000, 16
#: Rows n at most where they are streamed, one for each sample.
STREAMED_ROWS = 16_384

LabelSource = Literal["auto", "sampled", "model", "output"]

T = TypeVar("T")


class GradientOptions(Frozen):
    """Where gradient rows come from."""

    samples: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Gradient rows n; fewer when the data has not n·batch_size samples. null: 1000 where the rows are "
        "stored; where they are streamed, one for each batch of the data up to 16384.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Samples B whose mean loss gives one row; 1 is the per-sample Fisher. null: the model's batch size "
        "where that is fixed; else 1 where rows are streamed, and where they are stored as many, up to 16, as give n "
        "rows from all of the data. The report states the value used.",
    )
    labels: LabelSource = Field(
        default="auto",
        description="'auto': the dataset's labels; where it has none, drawn from the model's softmax, or 'output' for "
        "a model that is no classifier. 'sampled': always drawn (the true Fisher). 'model': the model's most likely "
        "class. 'output': no labels; the rows are gradients of random sums of the outputs, and the Fisher is that of "
        "reconstructing the outputs (Gauss-Newton).",
    )


class Wanted(Protocol):
    """The options that say which rows are wanted; `GradientOptions` has them."""

    @property
    def samples(self) -> int | None:
        """Rows n."""

    @property
    def batch_size(self) -> int | None:
        """Samples B of a row."""

    @property
    def labels(self) -> LabelSource:
        """Where labels come from."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Diagonal blocks of the Fisher GᵀG/n.

    Args:
        grams: For each tensor its blocks, (m, b, b) float32, the last padded with zeros.
        diagonal: The Fisher's diagonal, (p,) float32.
        mean: ḡ, the mean row, (p,) float32.
    """

    grams: list[Tensor]
    diagonal: Tensor
    mean: Tensor


def gradient_rows(task: PruningTask, options: Wanted, *, streamed: bool = False) -> GradientRows:
    """Return the stream of rows of G at w̄; the same object for the same options.

    Args:
        task: The job.
        options: Which rows.
        streamed: The rows will not be stored: the default n is then every sample, up to 16384.

    Raises:
        DatasetError: Labels are needed and there are none, or they do not fit the model.
    """
    rows, batch_size = counts(task, options, streamed=streamed)

    def make() -> Generator[Step, None, GradientRows]:
        labels = _labels(task, options.labels)
        made = GradientRows(
            *(task.network, task.layout, task.calibration, labels), rows=rows, batch_size=batch_size, seed=task.seed
        )
        yield from ()
        return made

    return _finish(task.shared.once(_key("rows", options, rows, batch_size), make()))


def columns(task: PruningTask, options: Wanted) -> Generator[Step, None, Columns]:
    """Return Gᵀ (p, n), the Fisher's diagonal and the mean row.

    Raises:
        LimitExceeded: G does not fit into memory.
        Diverged: The gradients are not finite.
        DatasetError: See `gradient_rows`.
    """
    rows = gradient_rows(task, options)
    key = _key("columns", options, rows.count, rows.batch_size)
    return (yield from task.shared.once(key, collect_stored(rows)))


def block_gram(task: PruningTask, options: Wanted, block_size: int) -> Generator[Step, None, Blocks]:
    """Return the Fisher's diagonal blocks of about ``block_size`` consecutive weights of one tensor.

    Raises:
        LimitExceeded: The blocks do not fit into memory.
        Diverged: The gradients are not finite.
        DatasetError: See `gradient_rows`.
    """
    rows = gradient_rows(task, options, streamed=True)
    key = _key(("blocks", block_size), options, rows.count, rows.batch_size)
    return (yield from task.shared.once(key, collect_blocks(rows, block_size)))


@dataclass(frozen=True, kw_only=True)
class Both:
    """Stored columns and diagonal blocks from one pass; rows of the columns are of ``batch_size`` samples."""

    columns: Columns
    blocks: Blocks
    batch_size: int


def columns_and_blocks(task: PruningTask, options: Wanted, block_size: int) -> Generator[Step, None, Both]:
    """Return both statistics from one pass over the data: rows of the stored G are means of streamed rows.

    Raises:
        LimitExceeded, Diverged, DatasetError: See `columns` and `block_gram`.
    """
    rows = gradient_rows(task, options, streamed=True)
    key = _key(("columns and blocks", block_size), options, rows.count, rows.batch_size)
    return (yield from task.shared.once(key, collect_both(rows, block_size)))


def columns_fit(task: PruningTask, options: Wanted, block_size: int) -> bool:
    """Return whether this machine has the memory for stored columns beside the blocks."""
    rows, _ = counts(task, options, streamed=True)
    needed = 4 * task.layout.size * min(rows, STORED_ROWS) * 5 // 4
    return roomy(needed + BlockGram.bytes_needed(task.layout.sizes, block_size), task.weights.device)


def moved_rows(task: PruningTask, options: Wanted, weights: Tensor, *, streamed: bool, stage: int) -> GradientRows:
    """Return the stream of rows at other weights (p,), from another draw of the samples; nothing is shared.

    Args:
        task: The job.
        options: Which rows.
        weights: Where the gradients are taken.
        streamed: As for `gradient_rows`.
        stage: Number of the draw, 1, 2, ...
    """
    given = task.network.weights
    there = task.network.with_weights({n: w.to(given[n].dtype) for n, w in task.layout.split(weights).items()})
    rows, batch_size = counts(task, options, streamed=streamed)
    return GradientRows(
        *(there, task.layout, task.calibration, _labels(task, options.labels)),
        rows=rows,
        batch_size=batch_size,
        seed=task.seed + stage,
    )


def mean_gradient(task: PruningTask, rows: GradientRows, mean: Tensor) -> Tensor:
    """Return the gradient of the mean loss where these rows were taken, (p,).

    It is the mean row, but for 'output' labels, whose rows are random: there it is that of ‖f(w) - f(w̄)‖²/(2o), the
    distance from the dense network's o outputs.

    Args:
        task: The job; its network is the dense one.
        rows: The rows.
        mean: Their mean, (p,).
    """
    if rows.labels.kind is not LossKind.RANDOM_SUM:
        return mean
    data = task.calibration
    with torch.no_grad():
        parts = [predict(task.network, [x[part] for x in data.inputs]).cpu() for part in batches(len(data))]
    targets = Labels(values=torch.cat(parts).float(), kind=LossKind.SQUARED_ERROR, origin="the dense network's outputs")
    size = min(len(data), 64)
    stream = GradientRows(rows.network, rows.layout, data, targets, rows=len(data), batch_size=size, seed=0)
    total = torch.zeros_like(mean)
    for block in stream:
        total += block.sum(0)
    return total / (2 * stream.count)


def counts(task: PruningTask, options: Wanted, *, streamed: bool) -> tuple[int, int]:
    """Return rows n and samples per row B that these options mean for this job's data.

    A network with a fixed batch size computes whole batches whatever B is: that is then its B.
    """
    available, batch_size = len(task.calibration), options.batch_size or task.network.batch
    if streamed:
        batch_size = min(batch_size or 1, available)
        rows = min(options.samples or STREAMED_ROWS, available // batch_size)
    else:
        rows = options.samples or STORED_ROWS
        batch_size = min(batch_size or max(1, min(LARGEST_DEFAULT_BATCH, available // rows)), available)
        rows = min(rows, available // batch_size)
    return rows, batch_size


def gradient_notes(rows: GradientRows) -> tuple[str, ...]:
    """Say what the Fisher was computed from; to be asked after the rows were streamed."""
    size = "one sample" if rows.batch_size == 1 else f"{rows.batch_size} samples"
    notes = [f"Curvature from {rows.count} gradient rows of {size} each; {rows.labels.origin}."]
    if not rows.vectorised and rows.batch_size == 1:
        notes.append("Gradients were computed one sample at a time: this network does not allow vectorising them.")
    return tuple(notes)


def collect_blocks(
    rows: GradientRows, block_size: int, beside: ColumnStore | None = None
) -> Generator[Step, None, Blocks]:
    """Stream rows into the Fisher's diagonal blocks, and into a store beside; nothing is shared.

    Raises:
        LimitExceeded: The blocks do not fit into memory.
        Diverged: The gradients are not finite.
    """
    layout, device = rows.layout, rows.network.device
    check_memory(BlockGram.bytes_needed(layout.sizes, block_size), layout.size, device, "a smaller block_size")
    gram, total = BlockGram(layout.sizes, block_size, device), torch.zeros(layout.size, device=device)
    for block in rows:
        gram.add(block)
        total += block.sum(0)
        if beside is not None:
            beside.add(block)
        yield gradient_step(gram.rows, rows.count)
    grams = gram.mean()
    parts = zip(grams, layout.sizes, strict=True)
    diagonal = torch.cat([h.diagonal(dim1=1, dim2=2).reshape(-1)[:size] for h, size in parts])
    check_finite(diagonal)
    return Blocks(grams=grams, diagonal=diagonal, mean=total / rows.count)


def collect_stored(rows: GradientRows) -> Generator[Step, None, Columns]:
    """Stream rows into columns; nothing is shared.

    Raises:
        LimitExceeded: G does not fit into memory.
        Diverged: The gradients are not finite.
    """
    p = rows.layout.size
    # Beside Gᵀ: one block of rows on the way in, small blocks and n×n matrices later.
    check_memory(4 * p * rows.count * 5 // 4, p, rows.network.device, "fewer samples or a block structure")
    made = yield from relay(collect_columns(rows), lambda done: gradient_step(done, rows.count))
    check_finite(made.diagonal)
    return made


def collect_both(rows: GradientRows, block_size: int) -> Generator[Step, None, Both]:
    """Stream rows into columns and blocks; nothing is shared."""
    count = min(STORED_ROWS, rows.count)
    together = min(max(1, LARGEST_DEFAULT_BATCH // rows.batch_size), rows.count // count)
    store = ColumnStore(rows.layout.size, count, rows.network.device, together=together)
    blocks = yield from collect_blocks(rows, block_size, store)
    made = store.columns()
    check_finite(made.diagonal)
    return Both(columns=made, blocks=blocks, batch_size=rows.batch_size * together)


def check_finite(diagonal: Tensor) -> float:
    """Return the Fisher's mean diagonal.

    Raises:
        Diverged: It is not finite.
    """
    mean = float(diagonal.mean(dtype=torch.float64))
    if not mean < float("inf"):
        raise Diverged(
            "The gradients of the loss at the given weights are not finite.",
            expected="finite gradients",
            received=repr(mean),
            advice="Check that the model gives finite outputs and a finite loss on the calibration data.",
        )
    return mean


def check_memory(needed: int, weights: int, device: torch.device, way_out: str) -> None:
    """Check that a matrix will fit.

    Raises:
        LimitExceeded: It takes more than a safe share of what is free.
    """
    detail = f"The curvature of {weights} weights does not fit into memory."
    check_fits(needed, device, detail, f"Choose {way_out}, or leave layers out with 'layers'.")


def gradient_step(done: int, total: int) -> Step:
    """Return the step of so many rows being done."""
    return Step(stage="gradients", done=done, total=total, fraction=done / total)


def _labels(task: PruningTask, source: LabelSource) -> Labels:
    def make() -> Generator[Step, None, Labels]:
        labels = resolve_labels(task.network, task.calibration, source, task.seed)
        yield from ()
        return labels

    return _finish(task.shared.once(("labels", source), make()))


def _finish(steps: Generator[Step, None, T]) -> T:
    try:
        while True:
            next(steps)
    except StopIteration as end:
        value: T = end.value
        return value


def _key(kind: Hashable, options: Wanted, rows: int, batch_size: int) -> Hashable:
    return (kind, rows, batch_size, options.labels)
