"""Magnitude pruning: the largest weights stay, as they are. The field's oldest baseline; needs no data."""

from __future__ import annotations

from collections.abc import Generator

from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step
from pruning_core.patterns import Pattern
from pruning_core.recipe import Frozen

SUMMARY = "Keep the weights of largest absolute value, unchanged. Needs no gradients; the baseline of the field."
SOURCE = "Han et al., NeurIPS 2015 (arXiv 1506.02626)"


NEEDS_DATA = False


class Options(Frozen):
    """Magnitude pruning has no options."""


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Keep the k largest |w| that the pattern allows; ties go to the lower index."""

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        selection = Selection(mask=pattern.keep(task.weights.abs()), options=options.model_dump())
        yield Step(stage="select", done=1, total=1, fraction=1.0)
        return selection

    yield from ()  # nothing is measured beforehand
    return select
