"""Solvers against dense float64: values, gradients, refits, line search, brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import (
    BlockQuadratic,
    LowRankQuadratic,
    Point,
    Refitter,
    Status,
    iht_step,
    largest_same_support_step,
    solve_cardinality,
)
from pruning_core.solvers.line_search import _moved


def problem(p: int, n: int, *, ridge: float = 0.05, slope: bool = False, seed: int = 0) -> LowRankQuadratic:
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, n)
    columns = torch.randn(p, n, generator=g) * scales
    return LowRankQuadratic(
        columns, torch.randn(p, generator=g), ridge, 0.01 * torch.randn(p, generator=g) if slope else None
    )


def dense(q: LowRankQuadratic) -> tuple[Tensor, Tensor]:
    """H (p, p) and s (p,) in float64."""
    columns = q.columns.double()
    hessian = columns @ columns.T / q.samples + q.ridge * torch.eye(q.size, dtype=torch.float64)
    return hessian, torch.zeros(q.size).double() if q.slope is None else q.slope.double()


def dense_value(q: LowRankQuadratic, weights: Tensor) -> float:
    hessian, slope = dense(q)
    move = (weights - q.anchor).double()
    return float(0.5 * move @ hessian @ move + slope @ move)


def dense_refit(q: LowRankQuadratic, mask: Tensor) -> Tensor:
    hessian, slope = dense(q)
    right = hessian[mask] @ q.anchor.double() - slope[mask]
    weights = torch.zeros(q.size, dtype=torch.float64)
    weights[mask] = torch.linalg.solve(hessian[mask][:, mask], right)
    return weights


def start(q: LowRankQuadratic, k: int) -> Point:
    mask = Unstructured((q.size,), (k,)).keep(q.anchor.abs())
    weights = torch.where(mask, q.anchor, torch.zeros(()))
    residual = q.residual(weights)
    return Point(weights=weights, mask=mask, residual=residual, value=q.value(weights, residual))


@pytest.mark.parametrize("slope", [False, True])
def test_block_values_gradients_and_refits_are_the_dense_ones(slope: bool) -> None:
    g = torch.Generator().manual_seed(2)
    rows, anchor = torch.randn(40, 13, generator=g), torch.randn(13, generator=g)
    blocks = [torch.zeros(2, 4, 4), torch.zeros(1, 6, 6)]  # sizes 7 and 6: the last of the first is padded
    hessian = 0.05 * torch.eye(13, dtype=torch.float64)
    for block, part in ((blocks[0][0], slice(0, 4)), (blocks[0][1], slice(4, 7)), (blocks[1][0], slice(7, 13))):
        fisher = rows[:, part].T @ rows[:, part] / 40
        block[: len(fisher), : len(fisher)] = fisher
        hessian[part, part] += fisher.double()
    s = 0.1 * torch.randn(13, generator=g) if slope else None
    q = BlockQuadratic(blocks, (7, 6), anchor, 0.05, s)
    dense_slope = torch.zeros(13).double() if s is None else s.double()
    weights = torch.randn(13, generator=g)
    move = (weights - anchor).double()
    value, gradient = q.value_and_gradient(weights)
    assert value == pytest.approx(float(0.5 * move @ hessian @ move + dense_slope @ move), rel=1e-5)
    assert q.value(weights) == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(gradient.double(), hessian @ move + dense_slope, rtol=1e-4, atol=1e-5)
    mask = torch.rand(13, generator=g) < 0.5
    best = torch.zeros(13, dtype=torch.float64)
    right = hessian[mask] @ anchor.double() - dense_slope[mask]
    best[mask] = torch.linalg.solve(hessian[mask][:, mask], right)
    torch.testing.assert_close(torch.cat(list(q.refit(mask))).double(), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slope", [False, True])
def test_low_rank_value_and_gradient_are_the_dense_ones(slope: bool) -> None:
    q = problem(300, 20, slope=slope)
    weights = torch.randn(300, generator=torch.Generator().manual_seed(5))
    residual = q.residual(weights)
    hessian, s = dense(q)
    assert q.value(weights, residual) == pytest.approx(dense_value(q, weights), rel=1e-5)
    gradient = hessian @ (weights - q.anchor).double() + s
    torch.testing.assert_close(q.gradient(weights, residual).double(), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize(("p", "n", "k"), [(400, 30, 200), (400, 30, 20), (3000, 16, 1500), (50, 80, 40)])
def test_refit_satisfies_its_optimality_conditions(p: int, n: int, k: int, slope: bool) -> None:
    q = problem(p, n, slope=slope)
    begin = start(q, k)
    refit = Refitter(q, tolerance=1e-6)(begin.mask, begin.weights, begin.residual)
    assert refit.status is Status.CONVERGED
    assert not refit.weights[~begin.mask].any()
    torch.testing.assert_close(refit.weights.double(), dense_refit(q, begin.mask), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(refit.residual, q.residual(refit.weights), rtol=1e-3, atol=1e-4)
    gradient = q.gradient(refit.weights, refit.residual)[begin.mask]
    assert gradient.norm() <= 1e-4 * q.gradient(begin.weights, begin.residual)[begin.mask].norm()


def test_refit_from_elsewhere_gives_the_same() -> None:
    q = problem(500, 20)
    begin = start(q, 100)
    elsewhere = torch.where(begin.mask, torch.ones(500), torch.zeros(()))
    refitter = Refitter(q, tolerance=1e-6)
    here, there = (refitter(begin.mask, w, q.residual(w)) for w in (begin.weights, elsewhere))
    torch.testing.assert_close(here.weights, there.weights, rtol=1e-3, atol=1e-4)


def test_default_tolerance_is_within_a_thousandth_of_the_best_value() -> None:
    q = problem(20_000, 100, ridge=1e-3)
    begin = start(q, 10_000)
    exact = Refitter(q, tolerance=1e-7)(begin.mask, begin.weights, begin.residual)
    quick = Refitter(q)(begin.mask, begin.weights, begin.residual)
    best = q.value(exact.weights, exact.residual)
    assert best <= q.value(quick.weights, q.residual(quick.weights)) <= best * (1 + 1e-3)
    assert quick.steps <= 12


def test_refit_that_runs_out_of_steps_says_so() -> None:
    q = problem(5000, 50, ridge=1e-4)
    begin = start(q, 2500)
    refit = Refitter(q, tolerance=1e-12, max_steps=1)(begin.mask, begin.weights, begin.residual)
    assert refit.status is Status.STEP_LIMIT


def test_rank_deficient_rows_are_no_trouble() -> None:
    columns = torch.ones(300, 40)
    q = LowRankQuadratic(columns, torch.linspace(-1, 1.5, 300), 1e-6)
    begin = start(q, 100)
    refit = Refitter(q)(begin.mask, begin.weights, begin.residual)
    assert q.value(refit.weights, refit.residual) <= begin.value


def test_support_is_kept_up_to_the_closed_form_step_and_not_beyond() -> None:
    for seed in range(20):
        q = problem(60, 12, seed=seed)
        point, pattern = start(q, 20), Unstructured((60,), (20,))
        gradient = q.gradient(point.weights, point.residual)
        step = largest_same_support_step(point.weights, gradient, point.mask, pattern.rival(gradient.abs(), point.mask))
        kept, changed = (pattern.keep((point.weights - t * gradient).abs()) for t in (step * 0.999, step * 1.001))
        assert torch.equal(kept, point.mask)
        assert not torch.equal(changed, point.mask)


def test_line_search_is_no_worse_than_a_grid_of_steps_inside_the_support() -> None:
    taken = 0
    for seed in range(20):
        q = problem(60, 40, seed=seed)
        point, pattern = start(q, 45), Unstructured((60,), (45,))
        gradient = torch.where(point.mask, q.gradient(point.weights, point.residual), torch.zeros(()))
        moved = iht_step(q, pattern, point)
        assert moved is not None
        assert moved.value < point.value
        assert moved.value == pytest.approx(dense_value(q, moved.weights), rel=1e-4)
        if torch.equal(moved.mask, point.mask):
            taken += 1
            grid = [dense_value(q, point.weights - t * gradient) for t in torch.linspace(0, 5, 400)]
            assert moved.value <= min(grid) * (1 + 1e-4)
    assert taken > 0


def test_a_trial_beyond_the_support_has_the_residual_of_its_weights() -> None:
    q = problem(80, 10)
    point, pattern = start(q, 20), Unstructured((80,), (20,))
    gradient = q.gradient(point.weights, point.residual)
    support = point.mask.nonzero().squeeze(1)
    trial = _moved(q, pattern, point, gradient, q.combine(support, gradient[support]), 3.0)
    assert not torch.equal(trial.mask, point.mask)
    torch.testing.assert_close(trial.residual, q.residual(trial.weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slope", [False, True])
def test_q_never_rises_and_the_mask_is_exact(slope: bool) -> None:
    for seed in range(5):
        q, pattern = problem(500, 40, seed=seed, slope=slope), Unstructured((500,), (60,))
        begin = start(q, 60)
        values, steps = [begin.value], solve_cardinality(q, pattern, begin.mask)
        while True:
            try:
                values.append(next(steps))
            except StopIteration as end:
                solution = end.value
                break
        assert values == sorted(values, reverse=True)
        assert solution.objective <= values[-1]
        assert pattern.accepts(solution.mask)
        assert not solution.value[~solution.mask].any()
        assert solution.objective == pytest.approx(dense_value(q, solution.value), rel=1e-3, abs=1e-6)


def test_close_to_the_best_of_all_supports() -> None:
    ratios = []
    for seed in range(12):
        q = problem(12, 6, ridge=0.1, seed=seed)
        solution = finish(solve_cardinality(q, Unstructured((12,), (5,)), start(q, 5).mask))
        best = min(
            dense_value(q, dense_refit(q, torch.zeros(12, dtype=torch.bool).index_fill(0, torch.tensor(c), True)))
            for c in combinations(range(12), 5)
        )
        ratios.append(solution.objective / best)
    assert min(ratios) > 1 - 1e-4
    assert sum(ratios) / len(ratios) < 1.5


def test_the_best_support_is_found_where_columns_do_not_interact() -> None:
    columns = torch.eye(10)
    q = LowRankQuadratic(columns, torch.tensor([0.1, 2, -3, 0.2, 5, 0.3, -4, 0.1, 0.2, 1.0]), 0.01)
    solution = finish(solve_cardinality(q, Unstructured((10,), (4,)), start(q, 4).mask))
    assert solution.mask.nonzero().squeeze(1).tolist() == [1, 2, 4, 6]
    torch.testing.assert_close(solution.value[solution.mask], q.anchor[solution.mask])


def test_infinite_columns_end_as_diverged() -> None:
    q = LowRankQuadratic(torch.full((20, 4), torch.inf), torch.ones(20), 0.1)
    solution = finish(solve_cardinality(q, Unstructured((20,), (5,)), start(q, 5).mask))
    assert solution.status is Status.DIVERGED


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_block_refit_is_the_dense_solution_of_the_block_diagonal_problem(density: float) -> None:
    g = torch.Generator().manual_seed(0)
    sizes, b = (23, 8), 8
    grams = []
    for m in (3, 1):
        rows = torch.randn(m, 40, b, generator=g)
        grams.append(rows.transpose(1, 2) @ rows / 40)
    grams[0][2, 7, :] = grams[0][2, :, 7] = 0  # padding: 3·8 - 23 = 1
    anchor, mask = torch.randn(31, generator=g), torch.rand(31, generator=g) < density
    q = BlockQuadratic(grams, sizes, anchor, 0.01)
    weights = torch.cat(list(q.refit(mask)))
    hessian = torch.block_diag(*grams[0], *grams[1]).double()
    hessian = hessian[:, [i for i in range(32) if i != 23]][[i for i in range(32) if i != 23]]
    hessian += 0.01 * torch.eye(31)
    assert not weights[~mask].any()
    gradient = hessian @ (weights - anchor).double()
    assert float(gradient[mask].abs().max() if mask.any() else 0) < 1e-4
    move = (weights - anchor).double()
    assert q.value(weights) == pytest.approx(float(0.5 * move @ hessian @ move), rel=1e-4, abs=1e-7)
    assert q.count == 4


def test_block_that_float32_cannot_factorise_is_solved_in_float64() -> None:
    v = torch.linspace(1, 2, 50)
    q = BlockQuadratic([(1e4 * torch.outer(v, v)).unsqueeze(0)], (50,), torch.ones(50), 3e-2)
    weights = torch.cat(list(q.refit(torch.arange(50) < 25)))
    assert torch.isfinite(weights).all()
