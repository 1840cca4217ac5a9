"""What a user gets back beside the model: everything here was measured, nothing is repeated from the request.

Imports no torch. Units are in the names; ``None`` means "not measured", never zero.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

#: Lower and upper end.
Interval = tuple[float, float]

_RATIO = (
    "95 % interval of the median of dense time / pruned time, over rounds in which both ran; null if there were fewer "
    "than six. 'Faster' is said only where all of it lies above 1.05."
)
_FASTER = 1.05


class Record(BaseModel):
    """An immutable part of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(Record):
    """One step of a running job, as `prune` yields it."""

    stage: str = Field(description="What is being done, e.g. 'gradients', 'select', 'evaluate'.")
    done: int = Field(ge=0, description="Steps of this stage that are done,")
    total: int = Field(ge=1, description="of so many.")
    fraction: float = Field(ge=0, le=1, description="Of the whole job; never falls.")


class Histogram(Record):
    """How many weights of a layer lie where, before and after; bins of equal width from -limit to limit."""

    limit: float = Field(gt=0, description="The largest magnitude, before or after.")
    dense: tuple[int, ...] = Field(description="Count in each bin, as given.")
    pruned: tuple[int, ...] = Field(description="The same of the produced weights, those that are zero left out.")


class LayerReport(Record):
    """One prunable layer as it is in the produced weights."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    sparsity: float
    change: float | None = Field(default=None, description="‖W - W_pruned‖² / ‖W‖²: the energy that was lost or moved.")
    sensitivity: float | None = Field(
        default=None,
        description="Output error on a few held-out samples when only this layer is as pruned and the others are "
        "dense; None where the layers are too many to try each.",
    )
    histogram: Histogram | None = None


class Quality(Record):
    """How well a network does on one dataset."""

    samples: int
    loss: float | None = None
    loss_standard_error: float | None = Field(default=None, description="Of that mean, over the samples.")
    accuracy: float | None = Field(default=None, description="Fraction right; None where there are no class labels.")
    agreement: float | None = Field(default=None, description="Fraction of predictions equal to the dense model's.")
    output_error: float | None = Field(default=None, description="‖f(x) - f_dense(x)‖ / ‖f_dense(x)‖ over the data.")


class StageReport(Record):
    """What one stage cost."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None = Field(default=None, description="Peak resident memory of the process so far.")
    peak_device_bytes: int | None = Field(default=None, description="Peak memory on the GPU so far, where one is used.")


class LevelReport(Record):
    """One produced model: one level of sparsity."""

    sparsity_requested: float | None = Field(description="None where pattern, mask or goal decided.")
    sparsity_target: float | None = Field(
        default=None, description="What the pattern was built for: as requested, or as the search for a goal chose it."
    )
    sparsity: float = Field(description="Zeros among the prunable weights that took part / their number.")
    pattern: dict[str, Any] = Field(description="The pattern of this level; a search for a goal may choose its scope.")
    pattern_holds: bool = Field(description="The produced weights were checked against mask and pattern.")
    layers: tuple[LayerReport, ...]
    objective: dict[str, float] = Field(description="The algorithm's objective, e.g. {'start': …, 'end': …}.")
    options: dict[str, Any] = Field(description="All options of the selection, defaults and choices filled in.")
    refine_options: dict[str, Any] | None = Field(default=None, description="The same of the refinement.")
    fell_back: bool = Field(description="Magnitude pruning did better on held-out data and was taken instead.")
    notes: tuple[str, ...] = Field(default=(), description="Choices made on the way, in plain words.")
    recalibrated: tuple[str, ...] = Field(
        default=(), description="Tensors besides pruned weights that were replaced: batch norms' running statistics."
    )
    magnitude: Quality = Field(description="Magnitude pruning with the same sparsity and pattern, for comparison.")
    pruned: Quality


class FrontierPoint(Record):
    """One sparsity that was tried, with its quality on held-out calibration data."""

    sparsity: float
    quality: Quality
    kept: bool = Field(description="Whether this point is one of the produced models.")


class PruningReport(Record):
    """What `pruning_core.prune` measured."""

    algorithm: str
    refine: str | None = None
    pattern: dict[str, Any]
    goal: dict[str, Any] | None = Field(default=None, description="The goal asked for, if one was.")
    excluded: tuple[str, ...] = Field(description="Prunable layers that the recipe left out.")
    unprunable: dict[str, str] = Field(description="Weights that cannot be pruned -> why.")
    data: str = Field(description="What the qualities were measured on: 'validation' or 'calibration'.")
    held_out: int = Field(description="Calibration samples kept aside for choices (never for fitting).")
    dense: Quality
    levels: tuple[LevelReport, ...] = Field(description="One per produced model, in ascending sparsity.")
    frontier: tuple[FrontierPoint, ...] = Field(
        default=(), description="Every sparsity that was tried, in ascending order: the accuracy-sparsity curve."
    )
    stages: tuple[StageReport, ...]
    resumed: int = Field(default=0, description="Finished steps that were taken from an earlier attempt's checkpoints.")
    seed: int
    device: str
    versions: dict[str, str]


def is_faster(ratio_interval: Interval | None) -> bool:
    """Return whether dense / pruned lies above 1 by more than what a machine's own ways may cause."""
    return ratio_interval is not None and ratio_interval[0] > _FASTER


class RuntimeReport(Record):
    """One batch, dense and pruned, on another runtime."""

    name: str
    version: str
    latency_ms: float
    latency_ms_before: float
    ratio_interval: Interval | None = Field(default=None, description=_RATIO)

    @property
    def faster(self) -> bool:
        """Whether pruned was faster by more than noise."""
        return is_faster(self.ratio_interval)


class FileReport(Record):
    """The produced file, measured after it was written and read back."""

    format: str
    size_bytes: int
    size_bytes_before: int
    compressed_bytes: int = Field(description="zstd level 12.")
    compressed_bytes_before: int
    compact_bytes: int | None = Field(
        default=None, description="The compact form (pruning_core.compact): zeros are not sent, every byte comes back."
    )
    macs: int | None = Field(
        default=None,
        description="Multiply-adds of one sample in prunable layers, by weights that are not zero: what kernels that "
        "skip zeros would do.",
    )
    macs_before: int | None = Field(default=None, description="The same of the dense model.")
    sha256: str
    latency_ms: float = Field(description="Median forward time of one batch, this runtime, this machine.")
    latency_ms_before: float
    ratio_interval: Interval | None = Field(default=None, description=_RATIO)
    batch: int
    runtimes: tuple[RuntimeReport, ...] = Field(
        default=(),
        description="Other runtimes that are there and take the network: onnxruntime for ONNX; 2:4 kernels on a GPU "
        "that has them, for linear layers with two zeros in every four weights.",
    )
    speedup: str = Field(description="Plain words, e.g. 'No speed-up here: …'.")

    @property
    def faster(self) -> bool:
        """Whether pruned was faster by more than noise in this runtime."""
        return is_faster(self.ratio_interval)


class Preprocessing(Record):
    """How the pictures of a dataset became inputs: every step as it was done."""

    samples: int = Field(description="Pictures that were decoded,")
    of: int = Field(description="of so many in the file, evenly over its order.")
    resize: int | tuple[int, int] = Field(description="The shorter side in pixels, or (height, width).")
    crop: tuple[int, int] = Field(description="(height, width) of the centre.")
    channels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    decoder: str = Field(description="The library and its version.")


class Report(Record):
    """The whole report of one job."""

    pruning: PruningReport
    files: tuple[FileReport, ...] = Field(description="One per level, in the same order.")
    inputs: dict[str, str] = Field(description="SHA-256 of the model, calibration and validation bytes.")
    how_to_check: str
    preprocessing: dict[str, Preprocessing] = Field(
        default={}, description="By 'calibration' and 'validation', where these were pictures."
    )
