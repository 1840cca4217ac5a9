"""Every level that a recipe asks for: one, a list of sparsities, or the highest sparsity that keeps a goal."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from torch import Tensor

from pruning_core.accounts import Clock
from pruning_core.algorithms import PruningTask
from pruning_core.goals import keeps, most_attempts, search
from pruning_core.levels import Levels, Made
from pruning_core.recipe import Goal, Recipe, Unstructured
from pruning_core.report import FrontierPoint, Progress


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The levels to hand over, and every point that was tried on the way."""

    levels: tuple[Made, ...]
    frontier: tuple[FrontierPoint, ...]


def make_levels(
    task: PruningTask, recipe: Recipe, mask: Tensor | None, clock: Clock
) -> Generator[Progress, None, Frontier]:
    """Make what the recipe asks for; statistics are computed once for all of it.

    Args:
        task: The job's.
        recipe: What is asked for.
        mask: The uploaded mask (p,), for recipes that take one.
        clock: Of the job.
    """
    select = recipe.select
    if isinstance(select.sparsity, Goal):
        return (yield from _reach(task, recipe, select.sparsity, clock))
    levels = Levels(task, recipe, len(select.levels), clock, mask)
    made = []
    for i, sparsity in enumerate(select.levels):
        made.append((yield from levels.make(f"level-{i}", select.pattern, sparsity)))
    return Frontier(levels=tuple(made), frontier=tuple(_point(one, True) for one in made))


def _reach(task: PruningTask, recipe: Recipe, goal: Goal, clock: Clock) -> Generator[Progress, None, Frontier]:
    """Search with one ranking over all layers; then, unless the recipe says which, evenly in each layer.

    The second search only goes where it would do better than the first.
    """
    pattern = recipe.select.pattern
    if isinstance(pattern, Unstructured) and pattern.max_layer_sparsity is not None:
        goal = goal.model_copy(update={"max_sparsity": min(goal.max_sparsity, pattern.max_layer_sparsity)})
    specs = [pattern]
    if isinstance(pattern, Unstructured) and not pattern.model_fields_set & {"scope", "max_layer_sparsity"}:
        specs.append(pattern.model_copy(update={"scope": "layer"}))
    levels = Levels(task, recipe, most_attempts(goal) * len(specs), clock)
    tried: list[Made] = []

    def attempt(number: int, sparsity: float) -> Generator[Progress, None, Made | None]:
        """Make a level; return it where the goal holds."""
        made = yield from levels.make(f"goal-{number}-{sparsity:g}", specs[number], sparsity)
        tried.append(made)
        return made if keeps(goal, made.dense, made.quality) else None

    low, best = yield from search(goal, lambda s: attempt(0, s))
    if len(specs) > 1 and low + goal.precision <= goal.max_sparsity:
        more = yield from attempt(1, low + goal.precision)
        if more is not None:
            _, further = yield from search(goal, lambda s: attempt(1, s), low + goal.precision)
            best = further or more
    if best is None:
        best = yield from levels.make("goal-none", pattern, 0.0)
        note = f"No sparsity from {goal.precision:g} up keeps the goal on the held-out data: nothing was pruned."
        best = replace(best, selection=replace(best.selection, notes=(note,)))
        tried.append(best)
    points = sorted((_point(one, one is best) for one in tried), key=lambda point: point.sparsity)
    return Frontier(levels=(best,), frontier=tuple(points))


def _point(made: Made, kept: bool) -> FrontierPoint:
    sparsity = 1 - made.pattern.kept / made.pattern.size
    return FrontierPoint(sparsity=sparsity, quality=made.quality, kept=kept)
