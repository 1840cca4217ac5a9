"""What the loss looks like around the given weights: gradient rows and Grams, streamed."""

from pruning_core.curvature.columns import Columns, ColumnStore, collect_columns
from pruning_core.curvature.gram import BlockGram, blocks_of
from pruning_core.curvature.labels import Labels, resolve_labels
from pruning_core.curvature.layout import Layout
from pruning_core.curvature.losses import LossKind, loss_kind, sample_losses
from pruning_core.curvature.predict import predict
from pruning_core.curvature.rows import GradientRows
from pruning_core.curvature.shared import Shared

__all__ = [
    "BlockGram",
    "ColumnStore",
    "Columns",
    "GradientRows",
    "Labels",
    "Layout",
    "LossKind",
    "Shared",
    "blocks_of",
    "collect_columns",
    "loss_kind",
    "predict",
    "resolve_labels",
    "sample_losses",
]
