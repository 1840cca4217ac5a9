"""Post-training pruning of trained networks: the maths and the model formats.

Knows nothing of HTTP, queues or buckets; usable alone::

    from pruning_core import Recipe, prune, read_model, read_dataset

The names that need torch are loaded on first use, so that the service's front end can import the
vocabulary (:mod:`~pruning_core.recipe`, :mod:`~pruning_core.report`, :mod:`~pruning_core.errors`) without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pruning_core.errors import PruningError
from pruning_core.recipe import Recipe
from pruning_core.report import Report

if TYPE_CHECKING:
    from pruning_core.calibration import read_dataset
    from pruning_core.finetune import keep_zeros
    from pruning_core.formats import read_model, write_model
    from pruning_core.formats.masks import read_masks
    from pruning_core.pipeline import prune

_LAZY = {
    "prune": "pruning_core.pipeline",
    "read_model": "pruning_core.formats",
    "write_model": "pruning_core.formats",
    "read_dataset": "pruning_core.calibration",
    "read_masks": "pruning_core.formats.masks",
    "keep_zeros": "pruning_core.finetune",
}

__all__ = [
    "PruningError",
    "Recipe",
    "Report",
    "keep_zeros",
    "prune",
    "read_dataset",
    "read_masks",
    "read_model",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
