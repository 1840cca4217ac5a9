"""CBS: choose all that goes together, pairwise interactions and all (Yu et al., 2022)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.checkpoints import Saved, remember
from pruning_core.algorithms.gradients import columns, gradient_notes, gradient_rows
from pruning_core.algorithms.mfac import whole_kernel
from pruning_core.algorithms.surgeon import SurgeonOptions, chosen, rescaled, ridges, select_step
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, relay
from pruning_core.errors import LimitExceeded
from pruning_core.patterns import Fixed, Pattern, Unstructured
from pruning_core.solvers import DualCurvature, LowRankQuadratic, staged_removal
from pruning_core.solvers.greedy_pairs import Fit, elimination_order, exchange_pairs, fit
from pruning_core.solvers.inverse_fisher import kernel

SUMMARY = (
    "Combinatorial brain surgeon: minimise the quadratic model over mask and survivors together, by greedy removal "
    "that sees pairwise interactions over the whole Fisher, then by swaps. For small models: up to 50 000 weights."
)
SOURCE = (
    "Yu, Serra, Ramalingam and Zhe, The Combinatorial Brain Surgeon: Pruning Weights That Cancel One Another in Neural "
    "Networks, ICML 2022 (arXiv 2203.04466)"
)

#: Weights that take part, at most: the time grows with their square.
LARGEST = 50_000


class Options(SurgeonOptions):
    """Options of CBS."""

    ridge: float | Literal["auto"] | None = Field(
        default=None,
        description="λ, added to the Fisher's diagonal before it is inverted, > 0. null: 0.03 times the Fisher's mean "
        "diagonal. 'auto': the best on held-out calibration data of 0.01, 0.1 and 1 times it. The report states the "
        "value used.",
        json_schema_extra={"exclusiveMinimum": 0},
    )
    stages: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="For n:m and block patterns: in how many stages the cheapest of what the pattern dooms goes.",
    )
    max_rounds: int = Field(default=20, ge=0, le=1000, description="Rounds of swaps at most.")
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="The search ends when a round of swaps lowers the objective by less than this part.",
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Store the gradients once; the greedy order is worked out when the first mask is asked for.

    Raises:
        LimitExceeded: More weights take part than this method is for, or the gradients do not fit into memory.
        DatasetError: Labels are needed and there are none, or they do not fit the model.
        Diverged: Gradients or inverse left the finite numbers.
    """
    if task.layout.size > LARGEST:
        raise LimitExceeded(
            f"CBS looks at pairs of weights and is for small models; {task.layout.size} weights take part.",
            expected=f"at most {LARGEST} prunable weights",
            received=task.layout.size,
            advice="Choose 'obs' or 'chita', which do without pairs across blocks, or leave layers out with 'layers'.",
        )
    stored = yield from columns(task, options)
    rows = gradient_rows(task, options)
    whole = yield from task.shared.once(("kernel", rows.count, rows.batch_size, options.labels), whole_kernel(stored))
    tried = ridges(options.ridge, float(stored.diagonal.mean(dtype=torch.float64)))

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        candidates = {}
        for ridge, shown in zip(tried, rescaled([1] * len(tried)), strict=True):
            quadratic = LowRankQuadratic(stored.values, task.weights, ridge)
            solving = _solve(task, options, quadratic, whole, pattern)
            greedy, found = yield from relay(solving, shown)
            swapped = int((found.mask & ~greedy.mask).sum())
            candidates[f"ridge {ridge:.3g}"] = Selection(
                mask=found.mask,
                weights=found.weights.to(task.weights.dtype),
                objective={"start": greedy.value, "end": found.value},
                options={
                    **options.model_dump(),
                    **{"samples": rows.count, "batch_size": rows.batch_size, "ridge": ridge},
                },
                notes=(*gradient_notes(rows), f"Swaps exchanged {swapped} weights of the greedy mask."),
            )
        return chosen(task, candidates)

    return select


def _solve(
    task: PruningTask, options: Options, quadratic: LowRankQuadratic, whole: Tensor, pattern: Pattern
) -> Generator[Step, None, tuple[Fit, Fit]]:
    """Return the greedy fit, and what swaps make of it."""
    removing, swapping = rescaled([4, 1])
    groups = None
    if isinstance(pattern, Unstructured):
        groups = _groups(pattern.sizes, task.weights.device)
        # The order serves every level: worked out once, and kept.
        key = f"cbs/order/{quadratic.ridge:.17g}"
        making = task.shared.once(
            ("cbs", options, quadratic.ridge), remember(task.checkpoints, key, _ranks(quadratic, whole))
        )
        ranks = (yield from relay(making, removing)).tensors["ranks"]
        mask = pattern.keep(ranks.to(task.weights.device))
    elif isinstance(pattern, Fixed):
        mask = pattern.keep(task.weights)
    else:
        model = DualCurvature(quadratic, whole, task.seed)
        staging = staged_removal(model, pattern, task.weights, options.stages)
        mask = yield from relay(staging, lambda stage: removing(select_step(stage, options.stages)))
    greedy = fit(quadratic, mask, kernel(quadratic.columns, mask.nonzero().squeeze(1)))
    rounds = 0

    def shown(_: float) -> Step:
        nonlocal rounds
        rounds += 1
        return swapping(select_step(rounds, options.max_rounds))

    if isinstance(pattern, Fixed):
        return greedy, greedy
    search = exchange_pairs(quadratic, pattern, groups, greedy, options.max_rounds, options.tolerance)
    return greedy, (yield from relay(search, shown))


def _ranks(quadratic: LowRankQuadratic, whole: Tensor) -> Generator[Step, None, Saved]:
    order = elimination_order(quadratic, whole)
    ranks = yield from relay(order, lambda done: select_step(round(1000 * done), 1000))
    return Saved(tensors={"ranks": ranks})


def _groups(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return for each weight the group of the pattern that it belongs to."""
    numbers = torch.arange(len(sizes), device=device)
    return torch.repeat_interleave(numbers, torch.tensor(sizes, device=device))
