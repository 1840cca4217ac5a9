"""Several algorithms on one set of statistics; for each level the one that does best on held-out data."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from pruning_core.algorithms.checkpoints import Within
from pruning_core.algorithms.surgeon import best_of, rescaled, told
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, relay
from pruning_core.errors import LimitExceeded, RecipeError
from pruning_core.patterns import Block, Fixed, NofM, Pattern, Unstructured
from pruning_core.recipe import Frozen, catalogue

SUMMARY = (
    "Run several algorithms with their defaults and return, at each level, the one that does best on held-out "
    "calibration data; statistics they have in common are computed once."
)
SOURCE = "Ours: a choice, not a method"


class Options(Frozen):
    """Options of the choice."""

    of: tuple[str, ...] = Field(
        default=("magnitude", "alps", "obs", "chita"),
        min_length=1,
        json_schema_extra={"uniqueItems": True},
        description="The algorithms to run, each with its default options. One that cannot serve the pattern, or does "
        "not fit into memory, is left out, and the report says so.",
    )

    @field_validator("of")
    @classmethod
    def _known_and_each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = sorted(name for name, entry in catalogue().items() if entry["part"] == "select" and name != "best")
        if len(set(value)) != len(value) or not set(value) <= set(known):
            raise ValueError(f"expected each algorithm once, of: {', '.join(known)}")
        return value


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Measure what the algorithms need; the selector runs them all at each level.

    Raises:
        RecipeError: No algorithm of the list can serve the pattern.
        PruningError: What an algorithm raises, except `LimitExceeded` while another can still do it.
    """
    from pruning_core.algorithms import REGISTRY  # this file is one of the registry's

    selectors: dict[str, Selector] = {}
    left_out: dict[str, str] = {}
    for name, shown in zip(options.of, rescaled([1] * len(options.of)), strict=True):
        entry = REGISTRY[name]
        own = replace(task, checkpoints=Within(task.checkpoints, f"best/{name}"))
        try:
            selectors[name] = yield from relay(entry.run(own, entry.options()), shown)
        except LimitExceeded as error:
            left_out[name] = error.detail
    served = {name: REGISTRY[name].patterns for name in selectors}

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        able = [name for name, kinds in served.items() if kinds is None or _kind(pattern) in kinds]
        unable = {name: f"does not serve {_kind(pattern)} patterns" for name in served if name not in able}
        missed = {**left_out, **unable}
        if not able:
            raise RecipeError(
                "No algorithm of the list can do this.",
                expected="at least one that serves the pattern and fits into memory",
                received=missed,
                advice="Add others to 'of', such as 'magnitude'.",
            )
        made: dict[str, Selection] = {}
        for name, shown in zip(able, rescaled([1] * len(able)), strict=True):
            made[name] = yield from relay(selectors[name](pattern), shown)
        name, found = best_of(task, made)
        winner = made[name]
        reached = "; ".join(f"{other}: {told(quality)}" for other, quality in found.items())
        notes = [f"Chosen on {len(task.held_out)} held-out calibration samples: {name}."]
        if reached:
            notes[0] += f" What each reached: {reached}."
        notes += [f"{other} was left out: {reason}." for other, reason in missed.items()]
        used: dict[str, Any] = {**options.model_dump(mode="json"), "chosen": name, "options": dict(winner.options)}
        return replace(winner, options=used, notes=(*notes, *winner.notes))

    return select


def _kind(pattern: Pattern) -> str:
    """Return the recipe's name for a pattern."""
    kinds = {Unstructured: "unstructured", NofM: "n:m", Block: "block", Fixed: "mask"}
    return next(name for kind, name in kinds.items() if isinstance(pattern, kind))
