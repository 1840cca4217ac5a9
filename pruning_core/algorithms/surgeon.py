"""What the descendants of optimal brain surgeon share: the damping, the update, the choice on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.gradients import GradientOptions, gradient_notes
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, relay, weights_of
from pruning_core.curvature import GradientRows, Shared
from pruning_core.errors import Diverged
from pruning_core.evaluate import compare, standing
from pruning_core.patterns import Pattern
from pruning_core.report import Quality
from pruning_core.solvers import Scorer, counts_left, remove_cheapest, staged_removal

#: What 'auto' tries, as multiples of the Fisher's mean diagonal.
GRID = (1e-2, 1e-1, 1.0)
#: The rule's multiple, chosen on held-out data of MLPNet and ResNet20 with exact OBS.
RELATIVE = 0.03

Update = Literal["auto", "joint", "sum", "none"]


class SurgeonOptions(GradientOptions):
    """What every method of this family can be told."""

    ridge: float | Literal["auto"] | None = Field(
        default="auto",
        description="λ, added to the Fisher's diagonal before it is inverted, > 0 (the papers' damp; published: 1e-5). "
        "'auto': the best on held-out calibration data of 0.01, 0.1 and 1 times the Fisher's mean diagonal, so that it "
        "follows batch_size and the scale of the loss. null: 0.03 times. The report states the value used.",
        json_schema_extra={"exclusiveMinimum": 0},
    )


class JointOptions(SurgeonOptions):
    """What methods that remove many weights at once can be told."""

    stages: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="In how many stages the weights go; saliencies are worked out anew on what is left after each.",
    )
    fresh: bool = Field(
        default=False,
        description="Take the gradients anew at each stage, at the weights it begins with (the published multi-stage "
        "runs); the survivors are then re-fitted exactly after each stage, whatever 'update' says.",
    )
    update: Update = Field(
        default="auto",
        description="How the survivors make up for what was removed. 'sum': by the sum of the updates for each "
        "removal alone (as published). 'joint': by the exact minimiser of the quadratic model on the mask. 'none': "
        "not at all. 'auto': the best of these on held-out calibration data.",
    )


class Model(Scorer, Protocol):
    """A quadratic model of the loss, by blocks or without: saliencies, refits, products with the inverse."""

    def value(self, weights: Tensor) -> float:
        """Return Q at weights (p,)."""

    def solve(self, vector: Tensor) -> Iterator[Tensor]:
        """Yield the parts of (H + λI)⁻¹v."""


class MakeModel(Protocol):
    """Makes the quadratic model of a job at its weights."""

    def __call__(self, task: PruningTask, ridge: float, /) -> Generator[Step, None, Model]:
        """Return the model; what it stands on is shared."""


def ridges(asked: float | str | None, mean: float) -> tuple[float, ...]:
    """Return the λ to try.

    Args:
        asked: The option.
        mean: The Fisher's mean diagonal; a flat Fisher (all gradients zero) counts as 1.
    """
    mean = mean or 1.0
    if asked == "auto":
        return tuple(part * mean for part in GRID)
    return (RELATIVE * mean if asked is None else float(asked),)


def joint_selector(
    task: PruningTask, options: JointOptions, rows: GradientRows, mean: float, make: MakeModel, key: Hashable
) -> Selector:
    """Return a selector that removes by saliency, ½·w_q²/[F⁻¹]_qq, and then updates the survivors.

    ``'sum'`` updates by w - Σ_q (w_q/[F⁻¹]_qq)·F⁻¹e_q over what was removed, one product with F⁻¹.

    Args:
        task: The job.
        options: Stages and updates.
        rows: What the models were made from, for the report.
        mean: The Fisher's mean diagonal.
        make: The quadratic model of a job for λ; of several λ the best on held-out data is taken.
        key: Of the models, beside λ: saliencies at w̄ are shared by all levels.
    """
    tried = ridges(options.ridge, mean)

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        candidates = {}
        for ridge, shown in zip(tried, rescaled([1] * len(tried)), strict=True):
            model = yield from make(task, ridge)
            if options.fresh and options.stages > 1:
                made = yield from relay(_remove_afresh(task, options.stages, pattern, make, ridge), shown)
            else:
                scores = task.shared.once((key, ridge), _saliency(model, task.weights))
                made = yield from relay(_remove(task.weights, options, pattern, model, scores), shown)
            for kind, (mask, weights) in made.items():
                used = {
                    **options.model_dump(),
                    **{"samples": rows.count, "batch_size": rows.batch_size, "ridge": ridge, "update": kind},
                }
                candidates[f"ridge {ridge:.3g}, update {kind!r}"] = Selection(
                    mask=mask,
                    weights=weights,
                    objective={"end": model.value(weights)},
                    options=used,
                    notes=gradient_notes(rows),
                )
        return chosen(task, candidates)

    return select


def _saliency(model: Model, weights: Tensor) -> Generator[Step, None, Tensor]:
    return torch.cat((yield from _parts(model.saliency(torch.ones_like(weights, dtype=torch.bool), weights))))


def _remove(
    weights: Tensor,
    options: JointOptions,
    pattern: Pattern,
    model: Model,
    scores: Generator[Step, None, Tensor],
) -> Generator[Step, None, dict[str, tuple[Tensor, Tensor]]]:
    """Return mask and weights for each kind of update that is asked for."""
    kinds = ("joint", "sum", "none") if options.update == "auto" else (options.update,)
    scoring, removing, *updating = rescaled([1, options.stages, *(1 for _ in kinds)])
    first = yield from relay(scores, scoring)
    if not bool(torch.isfinite(first).all()):
        # Not invertible: a candidate that is never chosen.
        return {kinds[0]: (pattern.keep(weights.abs()), torch.full_like(weights, torch.nan))}
    steps = staged_removal(model, pattern, weights, options.stages, first=first)
    mask = yield from relay(steps, lambda stage: removing(select_step(stage, options.stages)))
    made = {}
    for kind, shown in zip(kinds, updating, strict=True):
        value = weights
        if kind == "joint":
            value = torch.cat((yield from relay(_parts(model.refit(mask)), shown)))
        elif kind == "sum":
            removed = ~mask & (weights != 0)
            vector = torch.zeros_like(weights)
            vector[removed] = 2 * first[removed] / weights[removed]
            value = weights - torch.cat((yield from relay(_parts(model.solve(vector)), shown)))
        made[kind] = (mask, torch.where(mask, value, torch.zeros_like(value)))
        yield shown(select_step(1, 1))
    return made


def _remove_afresh(
    task: PruningTask, stages: int, pattern: Pattern, make: MakeModel, ridge: float
) -> Generator[Step, None, dict[str, tuple[Tensor, Tensor]]]:
    """Return mask and weights after stages that each take their gradients at the weights they begin with."""
    weights, mask = task.weights, torch.ones_like(task.weights, dtype=torch.bool)
    counts = counts_left(len(weights), pattern.kept, stages)
    for left, shown in zip(counts, rescaled([1] * stages), strict=True):
        network = task.network.with_weights(weights_of(task, Selection(mask=mask, weights=weights)))
        here = replace(task, network=network, weights=weights, shared=Shared())
        model = yield from relay(make(here, ridge), shown)
        score = torch.cat((yield from relay(_parts(model.saliency(mask, weights)), _last(shown))))
        mask = remove_cheapest(pattern, score, mask, left)
        weights = torch.cat((yield from relay(_parts(model.refit(mask)), _last(shown))))
    return {"joint": (mask, weights)}


def _last(shown: Callable[[Step], Step]) -> Callable[[Step], Step]:
    """Show steps as the end of their part: fractions never fall."""
    return lambda step: shown(replace(step, fraction=1.0))


def _parts(source: Iterator[Tensor]) -> Generator[Step, None, list[Tensor]]:
    """Collect parts; how many there will be is not known, so a step only says that one is done."""
    collected = []
    for part in source:
        collected.append(part)
        yield select_step(0, 1)
    return collected


def select_step(done: int, total: int) -> Step:
    """Return the step of so many parts of a selection being done."""
    return Step(stage="select", done=done, total=total, fraction=done / total)


def best_of(task: PruningTask, candidates: Mapping[str, Selection]) -> tuple[str, dict[str, Quality]]:
    """Return the name of the candidate that does best on held-out data (ties: the first), and what each reached.

    Raises:
        Diverged: No candidate is finite.
    """
    finite = {
        name: weights_of(task, selection)
        for name, selection in candidates.items()
        if selection.weights is None or bool(torch.isfinite(selection.weights[selection.mask]).all())
    }
    if not finite:
        raise Diverged(
            "The Fisher could not be inverted: the ridge is lost in rounding.",
            expected="a ridge that float32 and float64 can tell from the Fisher",
            received=sorted(candidates),
            advice="Give a larger ridge, or 'auto'; check the calibration data for extreme values.",
        )
    if len(finite) == 1:
        return next(iter(finite)), {}
    found = compare(task.network, finite, task.held_out)
    return max(finite, key=lambda name: standing(found[name])), {name: found[name] for name in finite}


def chosen(task: PruningTask, candidates: Mapping[str, Selection]) -> Selection:
    """Return the candidate that does best on held-out data, with a note that says what each reached."""
    name, found = best_of(task, candidates)
    selection = candidates[name]
    if not found:
        return selection
    reached = "; ".join(f"{other}: {told(quality)}" for other, quality in found.items())
    note = f"Chosen on {len(task.held_out)} held-out calibration samples: {name}. What each reached: {reached}."
    return replace(selection, notes=(*selection.notes, note))


def told(quality: Quality) -> str:
    """Say a quality in a few words."""
    words = []
    if quality.accuracy is not None:
        words.append(f"accuracy {quality.accuracy:.4g}")
    if quality.loss is not None:
        words.append(f"loss {quality.loss:.4g}")
    elif quality.output_error is not None:
        words.append(f"output error {quality.output_error:.4g}")
    return ", ".join(words) or "nothing to compare by"


def rescaled(shares: Sequence[float]) -> list[Callable[[Step], Step]]:
    """Return for each part of a call, one after the other, what turns its steps' fractions into the whole's.

    >>> first, second = rescaled([3, 1])
    >>> second(Step(stage="select", done=1, total=2, fraction=0.5)).fraction
    0.875
    """
    whole = sum(shares)

    def one(begin: float, share: float) -> Callable[[Step], Step]:
        return lambda step: replace(step, fraction=(begin + share * step.fraction) / whole)

    return [one(end - share, share) for end, share in zip(accumulate(shares), shares, strict=True)]
