"""ExactOBS against greedy removal that re-solves every candidate's least squares from scratch."""

from __future__ import annotations

import heapq

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_core.algorithms import exact_obs
from pruning_core.patterns import Block, NofM, Pattern, Unstructured, sweep_order
from pruning_core.solvers.group_elimination import eliminate_units
from tests.core.layerwise_cases import CASES, DAMPING, case_id, damped_error, problem, refit_row, row_grams


def slow_greedy(
    grams: Tensor, weights: Tensor, units: list[list[int]], group_size: int, limit: int
) -> tuple[list[int], list[float]]:
    """Remove the unit after which the refit of all rows together is best, again and again."""
    kept = torch.ones(weights.shape[1], dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    before = 0.0
    for _ in range(len(units) // group_size * limit):
        best = (float("inf"), -1)
        for unit, columns in enumerate(units):
            if unit in order or sum(u // group_size == unit // group_size for u in order) == limit:
                continue
            trial = kept.clone()
            trial[columns] = False
            total = sum(refit_row(gram, row, trial)[1] for gram, row in zip(grams, weights, strict=True))
            best = min(best, (total, unit))
        order.append(best[1])
        costs.append(best[0] - before)
        before = best[0]
        kept[units[best[1]]] = False
    return order, costs


def slopes(costs: list[float]) -> list[float]:
    """Slopes of the lower convex envelope of the running sum, by pooling neighbours that fall."""
    pools: list[tuple[float, int]] = []
    for cost in costs:
        pools.append((cost, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return [slope for slope, count in pools for _ in range(count)]


def shares(costs: list[list[float]], count: int) -> list[int]:
    """How many removals each row gets when always the cheapest next one on the envelopes is done."""
    taken = [0] * len(costs)
    envelopes = [slopes(row) for row in costs]
    heap = [(row[0], i) for i, row in enumerate(envelopes) if row]
    heapq.heapify(heap)
    for _ in range(count):
        _, i = heapq.heappop(heap)
        taken[i] += 1
        if taken[i] < len(costs[i]):
            heapq.heappush(heap, (envelopes[i][taken[i]], i))
    return taken


@pytest.mark.parametrize(("shape", "groups"), [((4, 7), 1), ((4, 2, 3), 2), ((3, 1, 5), 3)])
def test_unstructured_equals_greedy_shared_among_rows(shape: tuple[int, ...], groups: int) -> None:
    size = shape[0] * shape[1] * (shape[2] if len(shape) > 2 else 1)
    for kept in (size // 2, size // 4):
        pattern = Unstructured((size,), (kept,))
        one = problem(shape, pattern, groups=groups)
        d = one.weights.shape[1]
        units = [[j] for j in range(d)]
        slow = [
            slow_greedy(gram[None], row[None], units, 1, 1)
            for gram, row in zip(row_grams(one), one.weights.double(), strict=True)
        ]
        expected = torch.ones_like(one.weights, dtype=torch.bool)
        for o, gone in enumerate(shares([costs for _, costs in slow], size - kept)):
            expected[o, slow[o][0][:gone]] = False
        mask = pattern.keep(exact_obs.removal_ranks(one, one.damped(DAMPING)).reshape(-1)).view_as(expected)
        assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("shape", "groups", "pattern"),
    [
        ((3, 8), 1, NofM(((3, 8),), 2, 4)),
        ((2, 5, 2), 1, NofM(((2, 5, 2),), 1, 2)),
        ((5, 6), 1, Block.of(((5, 6),), (2, 1), 0.5)),
        ((4, 7), 1, Block.of(((4, 7),), (2, 3), 0.5)),
        ((4, 1, 5), 4, Block.of(((4, 1, 5),), (2, 1), 0.5)),
        ((6, 2, 3), 2, Block.of(((6, 2, 3),), (2, 2), 0.5)),
    ],
    ids=case_id,
)
def test_groups_and_blocks_equal_greedy(shape: tuple[int, ...], groups: int, pattern: NofM | Block) -> None:
    one = problem(shape, pattern, groups=groups)
    out, d = one.weights.shape
    r, c = (1, 1) if isinstance(pattern, NofM) else pattern.shape
    width = pattern.m if isinstance(pattern, NofM) else c
    limit = pattern.m - pattern.n if isinstance(pattern, NofM) else 1
    inner = shape[1] // width * width * (d // shape[1])
    units = sweep_order(shape, width)[:inner].view(-1, c).tolist()
    grams, weights = row_grams(one), one.weights.double()
    slow = [
        slow_greedy(grams[o : o + r], weights[o : o + r], units, width // c, limit) for o in range(0, out // r * r, r)
    ]
    gone = [len(order) for order, _ in slow]
    if isinstance(pattern, Block):
        gone = shares([costs for _, costs in slow], sum(pattern.blocks) - sum(pattern.counts))
    expected = torch.ones_like(one.weights, dtype=torch.bool)
    for i, count in enumerate(gone):
        for unit in slow[i][0][:count]:
            expected[i * r : (i + 1) * r, units[unit]] = False
    mask = pattern.keep(exact_obs.removal_ranks(one, one.damped(DAMPING)).reshape(-1)).view_as(expected)
    assert torch.equal(mask, expected)


def test_costs_are_those_of_refits_from_scratch_through_many_flushes() -> None:
    one = problem((2, 80), Unstructured((160,), (80,)))
    H = one.damped(DAMPING)
    inverse = torch.linalg.inv(H)
    units = torch.arange(80).view(-1, 2)
    order, costs = eliminate_units(inverse.expand(1, -1, -1), one.weights.double().unsqueeze(0), units)
    kept, before = torch.ones(80, dtype=torch.bool), 0.0
    for step in range(39):
        kept[units[order[0, step]]] = False
        now = sum(refit_row(H[0], row, kept)[1] for row in one.weights.double())
        assert float(costs[0, step]) == pytest.approx(now - before, rel=1e-6, abs=1e-9)
        before = now


@given(st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(deadline=None)
def test_rows_share_the_count_as_well_as_any_other_way(costs: list[list[int]]) -> None:
    """Against dynamic programming over all ways; an optimum wherever no row stops between corners of its envelope."""
    given_costs = torch.tensor(costs).double()
    places = exact_obs.merged(given_costs)
    total = given_costs.numel()
    assert sorted(places.reshape(-1).tolist()) == list(range(total))
    best = {0: 0.0}
    for row in given_costs.tolist():
        sums = [sum(row[:n]) for n in range(6)]
        best = {n: min(best[n - k] + sums[k] for k in range(6) if n - k in best) for n in range(max(best) + 6)}
    envelopes = torch.tensor([slopes([float(c) for c in row]) for row in costs], dtype=torch.float64)
    assert torch.allclose(exact_obs.envelope_slopes(given_costs), envelopes)
    for count in range(total + 1):
        taken = places < count
        assert bool((taken.int().diff(dim=1) <= 0).all()), "a row goes in its own order"
        cost = float(given_costs[taken].sum())
        assert cost >= best[count] - 1e-9
        on_envelopes = float(envelopes[taken].sum())
        assert on_envelopes <= best[count] + 1e-9
        if abs(on_envelopes - cost) < 1e-9:
            assert cost == pytest.approx(best[count])


@pytest.mark.parametrize(("shape", "groups", "pattern"), CASES, ids=case_id)
def test_every_pattern_is_met_at_no_more_than_magnitudes_cost(
    shape: tuple[int, ...], groups: int, pattern: Pattern
) -> None:
    one = problem(shape, pattern, groups=groups)
    H = one.damped(DAMPING)
    mask = pattern.keep(exact_obs.removal_ranks(one, H).reshape(-1)).view_as(one.weights)
    assert pattern.accepts(mask.reshape(-1))
    magnitude = pattern.keep(one.weights.abs().reshape(-1)).view_as(mask)
    assert damped_error(one, one.refit(H, mask)) <= damped_error(one, one.refit(H, magnitude)) * (1 + 1e-6)
