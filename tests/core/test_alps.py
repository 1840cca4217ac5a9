"""ALPS: feasible masks, a refit that meets its optimality conditions, and no worse than the masks it competes with."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from pruning_core.algorithms import alps
from pruning_core.algorithms.wanda import wanda_score
from pruning_core.patterns import NofM, Pattern, Unstructured
from tests.core.layerwise_cases import CASES, DAMPING, case_id, damped_error, problem, refit_row, row_grams


@pytest.mark.parametrize(("shape", "groups", "pattern"), CASES, ids=case_id)
def test_mask_is_the_patterns_and_refit_is_optimal_on_it(shape: tuple[int, ...], groups: int, pattern: Pattern) -> None:
    one = problem(shape, pattern, groups=groups)
    H = one.damped(DAMPING)
    mask = alps.admm(one, H, penalty=0.1, max_iterations=300)
    assert pattern.accepts(mask.reshape(-1))
    weights = one.refit(H, mask)
    assert not weights[~mask].any()
    for row, kept, given, gram in zip(weights.double(), mask, one.weights.double(), row_grams(one), strict=True):
        gradient = gram @ (row - given)
        assert float(gradient[kept].abs().max() if kept.any() else 0) <= 1e-4 * float((gram @ given).abs().max())
        assert torch.allclose(row, refit_row(gram, given, kept)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "pattern",
    [Unstructured((768,), (384,)), Unstructured((768,), (115,)), Unstructured((768,), (38,)), NofM(((16, 48),), 2, 4)],
    ids=["0.5", "0.85", "0.95", "2:4"],
)
def test_objective_is_below_magnitude_and_wanda_with_the_same_refit(seed: int, pattern: Pattern) -> None:
    one = problem((16, 48), pattern, seed=seed)
    H = one.damped(DAMPING)
    found = damped_error(one, one.refit(H, alps.admm(one, H, penalty=0.1, max_iterations=300)))
    for score in (one.weights.abs(), wanda_score(one)):
        mask = pattern.keep(score.reshape(-1)).view(16, 48)
        assert found <= damped_error(one, one.refit(H, mask))


@pytest.mark.parametrize("seed", range(5))
def test_close_to_the_best_of_all_masks(seed: int) -> None:
    pattern = Unstructured((12,), (4,))
    one = problem((2, 6), pattern, seed=seed)
    H = one.damped(DAMPING)
    found = damped_error(one, one.refit(H, alps.admm(one, H, penalty=0.01, max_iterations=1000)))
    objectives = []
    for kept in combinations(range(12), 4):
        mask = torch.zeros(12, dtype=torch.bool)
        mask[list(kept)] = True
        objectives.append(damped_error(one, one.refit(H, mask.view(2, 6))))
    # A heuristic for an NP-hard problem: among the best few of the 495 masks.
    assert sum(objective < found * (1 - 1e-6) for objective in objectives) <= 12


def test_the_penalty_makes_it_settle() -> None:
    one = problem((16, 48), Unstructured((768,), (200,)))
    H = one.damped(DAMPING)
    assert torch.equal(
        alps.admm(one, H, penalty=0.1, max_iterations=300), alps.admm(one, H, penalty=0.1, max_iterations=3000)
    )
