"""What a user gets back beside the model: everything here was measured, nothing is repeated from the request.

Imports no torch. Units are in the names; ``None`` means "not measured", never zero.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """An immutable part of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(Record):
    """One step of a running job, as `prune` yields it."""

    stage: str = Field(description="What is being done, e.g. 'gradients', 'select', 'evaluate'.")
    done: int = Field(ge=0, description="Steps of this stage that are done,")
    total: int = Field(ge=1, description="of so many.")
    fraction: float = Field(ge=0, le=1, description="Of the whole job; never falls.")


class LayerReport(Record):
    """One prunable layer as it is in the produced weights."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    sparsity: float


class Quality(Record):
    """How well a network does on one dataset."""

    samples: int
    loss: float | None = None
    accuracy: float | None = Field(default=None, description="Fraction right; None where there are no class labels.")
    agreement: float | None = Field(default=None, description="Fraction of predictions equal to the dense model's.")
    output_error: float | None = Field(default=None, description="‖f(x) - f_dense(x)‖ / ‖f_dense(x)‖ over the data.")


class StageReport(Record):
    """What one stage cost."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None = Field(default=None, description="Peak resident memory of the process so far.")


class PruningReport(Record):
    """What `pruning_core.prune` measured."""

    algorithm: str
    sparsity_requested: float
    sparsity: float = Field(description="Zeros among the prunable weights that took part / their number.")
    pattern: dict[str, Any]
    pattern_holds: bool = Field(description="The produced weights were checked against mask and pattern.")
    layers: tuple[LayerReport, ...]
    excluded: tuple[str, ...] = Field(description="Prunable layers that the recipe left out.")
    unprunable: dict[str, str] = Field(description="Weights that cannot be pruned -> why.")
    objective: dict[str, float] = Field(description="The algorithm's objective, e.g. {'start': …, 'end': …}.")
    options: dict[str, Any] = Field(description="All options, defaults filled in.")
    notes: tuple[str, ...] = Field(default=(), description="Choices made on the way, in plain words.")
    data: str = Field(description="What the qualities were measured on: 'validation' or 'calibration'.")
    dense: Quality
    magnitude: Quality = Field(description="Magnitude pruning with the same sparsity and pattern, for comparison.")
    pruned: Quality
    stages: tuple[StageReport, ...]
    seed: int
    device: str
    versions: dict[str, str]


class FileReport(Record):
    """The produced file, measured after it was written and read back."""

    format: str
    size_bytes: int
    size_bytes_before: int
    compressed_bytes: int = Field(description="zlib level 6.")
    compressed_bytes_before: int
    sha256: str
    latency_ms: float = Field(description="Median forward time of one batch, this runtime, this machine.")
    latency_ms_before: float
    batch: int
    speedup: str = Field(description="Plain words, e.g. 'No speed-up here: …'.")


class Report(Record):
    """The whole report of one job."""

    pruning: PruningReport
    file: FileReport
    inputs: dict[str, str] = Field(description="SHA-256 of the model, calibration and validation bytes.")
    how_to_check: str
