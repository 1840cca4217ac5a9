"""CBS: against every support there is, against OBS, and the table of swaps against a fit of each."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import cbs
from pruning_core.errors import LimitExceeded
from pruning_core.patterns import Block, NofM, Pattern, Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import LowRankQuadratic, damped_inverse, eliminate, kernel
from pruning_core.solvers.greedy_pairs import Fit, elimination_order, exchange_pairs, fit, swaps
from tests.core.test_obs import problem

RIDGE = 0.05


def quadratic(p: int, n: int, seed: int) -> LowRankQuadratic:
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(p, n, generator=g) + 2 * torch.randn(p, 2, generator=g) @ torch.randn(2, n, generator=g)
    return LowRankQuadratic(mixed, torch.randn(p, generator=g), RIDGE)


def fitted(q: LowRankQuadratic, mask: Tensor) -> Fit:
    return fit(q, mask, kernel(q.columns, mask.nonzero()[:, 0]))


def dense_value(q: LowRankQuadratic, mask: Tensor) -> float:
    x = q.columns.double()
    h = x @ x.T / q.samples + RIDGE * torch.eye(q.size, dtype=torch.float64)
    gone = q.anchor[~mask].double()
    return float(0.5 * gone @ torch.linalg.solve(torch.linalg.inv(h)[~mask][:, ~mask], gone)) if len(gone) else 0.0


def searched(q: LowRankQuadratic, pattern: Pattern) -> tuple[Fit, Fit]:
    greedy = fitted(q, pattern.keep(finish(elimination_order(q, kernel(q.columns)))))
    groups = torch.zeros(q.size, dtype=torch.long)
    return greedy, finish(exchange_pairs(q, pattern, groups, greedy, 50, 1e-9))


def test_the_best_weights_and_every_single_change_are_exact() -> None:
    q = quadratic(14, 9, 0)
    mask = torch.arange(14) % 3 > 0
    found = fitted(q, mask)
    assert found.value == pytest.approx(dense_value(q, mask), rel=1e-5)
    assert float(q.value(found.weights.float(), q.residual(found.weights.float()))) == pytest.approx(
        found.value, rel=1e-4
    )
    for i in range(14):
        other = mask.clone()
        other[i] = ~other[i]
        change = abs(dense_value(q, other) - dense_value(q, mask))
        assert float(found.change[i]) == pytest.approx(change, rel=1e-3, abs=1e-7)


def test_the_greedy_order_is_obs_on_the_whole_matrix() -> None:
    q = quadratic(60, 20, 1)
    x = q.columns.double()
    h = x @ x.T / 20
    exact = eliminate(damped_inverse(h.unsqueeze(0), RIDGE), q.anchor.unsqueeze(0)).order[0]
    assert torch.argsort(finish(elimination_order(q, kernel(q.columns)))).tolist() == exact.tolist()


def test_many_weights_are_removed_nearly_as_well_as_one_at_a_time() -> None:
    q = quadratic(1200, 50, 2)
    x = q.columns.double()
    h = x @ x.T / 50
    exact = eliminate(damped_inverse(h.unsqueeze(0), RIDGE), q.anchor.unsqueeze(0)).order[0]
    ranks = finish(elimination_order(q, kernel(q.columns)))
    assert sorted(ranks.tolist()) == list(range(1200))
    for kept in (600, 120):
        pattern = Unstructured((1200,), (kept,))
        mask = torch.ones(1200, dtype=torch.bool)
        mask[exact[: 1200 - kept]] = False
        assert fitted(q, pattern.keep(ranks)).value <= fitted(q, mask).value * 1.02


@pytest.mark.parametrize("kept", [4, 8])
def test_close_to_the_best_of_all_supports_and_never_worse_than_obs(kept: int) -> None:
    ratios = []
    for seed in range(8):
        q = quadratic(13, 8, seed)
        greedy, found = searched(q, Unstructured((13,), (kept,)))
        assert found.value <= greedy.value
        best = min(
            dense_value(q, torch.zeros(13, dtype=torch.bool).index_fill(0, torch.tensor(c), True))
            for c in combinations(range(13), kept)
        )
        ratios.append(found.value / best)
    assert min(ratios) > 1 - 1e-4
    assert sum(r < 1 + 1e-4 for r in ratios) >= 6
    assert sum(ratios) / len(ratios) < 1.1


def test_no_swap_is_left_that_would_help() -> None:
    for seed in range(4):
        q = quadratic(16, 10, seed)
        _, found = searched(q, Unstructured((16,), (7,)))
        for i in found.mask.nonzero()[:, 0]:
            for j in (~found.mask).nonzero()[:, 0]:
                other = found.mask.clone()
                other[i], other[j] = False, True
                assert dense_value(q, other) >= found.value * (1 - 1e-4)


def test_swaps_promise_what_they_keep_and_stay_inside_their_groups() -> None:
    q = quadratic(20, 10, 3)
    mask = torch.arange(20) % 2 > 0
    state = fitted(q, mask)
    groups = torch.arange(20) // 10
    leave, enter = swaps(state, groups)
    assert len(leave) > 0
    assert torch.equal(groups[leave], groups[enter])
    other = mask.clone()
    other[leave[0]], other[enter[0]] = False, True
    best = min(
        dense_value(q, _swapped(mask, int(i), int(j)))
        for i in mask.nonzero()[:, 0]
        for j in (~mask).nonzero()[:, 0]
        if groups[i] == groups[j]
    )
    assert dense_value(q, other) == pytest.approx(best, rel=1e-4)


def _swapped(mask: Tensor, i: int, j: int) -> Tensor:
    other = mask.clone()
    other[i], other[j] = False, True
    return other


def test_every_pattern_and_the_objective_never_rises() -> None:
    task = problem()
    sizes, shapes = task.layout.sizes, tuple(layer.shape for layer in task.layout.layers)
    select = finish(cbs.run(task, cbs.Options()))
    for pattern in (
        Unstructured.of(sizes, 0.6),
        Unstructured.of(sizes, 0.6, scope="layer"),
        Unstructured.of(sizes, 0.6, max_layer_sparsity=0.65),
        NofM(shapes, 2, 4),
        Block.of(shapes, (2, 1), 0.5),
    ):
        selection = finish(select(pattern))
        assert pattern.accepts(selection.mask)
        assert selection.objective["end"] <= selection.objective["start"]
        assert not selection.weights[~selection.mask].any()


def test_large_models_are_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cbs, "LARGEST", 100)
    with pytest.raises(LimitExceeded) as problem_met:
        finish(cbs.run(problem(), cbs.Options()))
    assert "small models" in str(problem_met.value)
    assert "'obs'" in str(problem_met.value.advice)
