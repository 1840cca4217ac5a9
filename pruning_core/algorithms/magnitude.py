"""Magnitude pruning: the largest weights stay, as they are. The field's oldest baseline; needs no data."""

from __future__ import annotations

from collections.abc import Generator

from pruning_core.algorithms.task import PruningTask, Selection, Step
from pruning_core.recipe import Frozen

SUMMARY = "Keep the weights of largest absolute value, unchanged. Needs no gradients; the baseline of the field."
SOURCE = "Han et al., NeurIPS 2015 (arXiv 1506.02626)"


class Options(Frozen):
    """Magnitude pruning has no options."""


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selection]:
    """Keep the k largest |w| that the pattern allows; ties go to the lower index."""
    selection = Selection(mask=task.pattern.keep(task.weights.abs()), options=options.model_dump())
    yield Step(stage="select", done=1, total=1, fraction=1.0)
    return selection
