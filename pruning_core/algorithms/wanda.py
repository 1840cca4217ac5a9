"""Wanda: weights by their size times the norm of what they are multiplied with (Sun et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.layerwise import LayerProblem, LayerSolution, LayerwiseOptions, solve_layers
from pruning_core.algorithms.task import PruningTask, Selector, Step
from pruning_core.patterns import Pattern, Unstructured, top_k

SUMMARY = (
    "Keep the weights of largest |weight| times the norm of their input, in each output row, unchanged. One pass over "
    "the data, no labels, no solver."
)
SOURCE = "Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024 (arXiv 2306.11695)"


class Options(LayerwiseOptions):
    """Options of Wanda."""

    compare: Literal["row", "layer"] = Field(
        default="row",
        description="For unstructured patterns: 'row' (as published) keeps the same number of weights in every output "
        "row of a layer; 'layer' ranks all weights of a layer together. Other patterns compare as they say themselves.",
    )


def run(task: PruningTask, options: Options) -> Generator[Step, None, Selector]:
    """Measure the inputs' norms; each layer then keeps the weights of largest |W_ij|·‖X_j‖₂."""

    def solve(problem: LayerProblem) -> LayerSolution:
        score = wanda_score(problem)
        keep = keep_by_row if options.compare == "row" else _keep
        return LayerSolution(mask=keep(problem.pattern, score), weights=problem.weights)

    return (yield from solve_layers(task, options, "wanda", solve))


def wanda_score(problem: LayerProblem) -> Tensor:
    """Return |W_ij|·‖X_j‖₂ / √positions, (out, d)."""
    norms = problem.gram.H.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().to(problem.weights.dtype)
    return (problem.by_group(problem.weights.abs()) * norms.unsqueeze(1)).reshape(problem.weights.shape)


def _keep(pattern: Pattern, score: Tensor) -> Tensor:
    return pattern.keep(score.reshape(-1)).view_as(score)


def keep_by_row(pattern: Pattern, score: Tensor) -> Tensor:
    """Return the mask (out, d) of the largest scores, as many in each row as in any other, give or take one.

    The layer's count stays the pattern's: where it is no multiple of the rows, the rows whose next score is largest
    keep one more. A pattern that is not unstructured keeps what it would.
    """
    if not isinstance(pattern, Unstructured):
        return _keep(pattern, score)
    out = len(score)
    each, rest = divmod(pattern.kept, out)
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if rest:
        following = order[:, each]
        lucky = top_k(score.gather(1, following.unsqueeze(1)).squeeze(1), rest).nonzero().squeeze(1)
        mask[lucky, following[lucky]] = True
    return mask
