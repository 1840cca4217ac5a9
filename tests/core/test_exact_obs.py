"""ExactOBS against greedy removal that re-solves every candidate's least squares from scratch."""

from __future__ import annotations

import heapq

import pytest
import torch
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


def heap_merge(costs: list[list[float]], count: int) -> list[int]:
    """How many removals each row gets when always the cheapest next one over all rows is done."""
    taken = [0] * len(costs)
    heap = [(row[0], i) for i, row in enumerate(costs) if row]
    heapq.heapify(heap)
    for _ in range(count):
        _, i = heapq.heappop(heap)
        taken[i] += 1
        if taken[i] < len(costs[i]):
            heapq.heappush(heap, (costs[i][taken[i]], i))
    return taken


@pytest.mark.parametrize(("shape", "groups"), [((4, 7), 1), ((4, 2, 3), 2), ((3, 1, 5), 3)])
def test_unstructured_equals_greedy_with_a_heap(shape: tuple[int, ...], groups: int) -> None:
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
        for o, gone in enumerate(heap_merge([costs for _, costs in slow], size - kept)):
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
        gone = heap_merge([costs for _, costs in slow], sum(pattern.blocks) - sum(pattern.counts))
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


def test_merged_is_the_heaps_order() -> None:
    costs = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).double()
    places = exact_obs.merged(costs)
    assert sorted(places.reshape(-1).tolist()) == list(range(24))
    for count in range(25):
        assert (places < count).sum(1).tolist() == heap_merge(costs.tolist(), count)


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
