"""OBS: one weight at a time against Gaussian elimination from scratch, over blocks against the plain greedy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import PruningTask, obs
from pruning_core.curvature import Layout
from pruning_core.holdout import split
from pruning_core.patterns import Block, Fixed, NofM, Pattern, Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import (
    BlockCurvature,
    BlockQuadratic,
    counts_left,
    damped_inverse,
    eliminate,
    removal_ranks,
    staged_removal,
)
from tests.core.fakes import mlp_network, samples

RIDGE = 0.01


def hessians(m: int, b: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, 2 * b, b, generator=g) * torch.logspace(0, -2, b)[torch.randperm(b, generator=g)]
    return rows.transpose(1, 2) @ rows / (2 * b)


def refit(h: Tensor, w: Tensor, left: list[int]) -> tuple[Tensor, float]:
    """The best weights on ``left`` from scratch, and the value of ½(w-w̄)ᵀ(H + λI)(w-w̄) there; float64."""
    matrix = h.double() + RIDGE * torch.eye(len(h), dtype=torch.float64)
    new = torch.zeros(len(h), dtype=torch.float64)
    if left:
        right = matrix[left] @ w.double()
        new[left] = torch.linalg.solve(matrix[left][:, left], right)
    move = new - w.double()
    return new, float(0.5 * move @ matrix @ move)


def from_scratch(h: Tensor, w: Tensor) -> tuple[list[int], list[float]]:
    """Remove one at a time, trying every candidate and solving the whole system for each."""
    left, order, costs, before = list(range(len(h))), [], [], 0.0
    while left:
        values = {q: refit(h, w, [i for i in left if i != q])[1] for q in left}
        q = min(values, key=lambda i: values[i])
        left.remove(q)
        order.append(q)
        costs.append(values[q] - before)
        before = values[q]
    return order, costs


@pytest.mark.parametrize("seed", range(4))
def test_each_removal_is_the_best_by_elimination_from_scratch(seed: int) -> None:
    h = hessians(3, 12, seed)
    w = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))
    found = eliminate(damped_inverse(h, RIDGE), w)
    for block in range(3):
        order, costs = from_scratch(h[block], w[block])
        assert found.order[block].tolist() == order
        torch.testing.assert_close(found.costs[block], torch.tensor(costs, dtype=torch.float64), rtol=1e-6, atol=1e-12)


def test_removals_stay_exact_beyond_the_first_matrix_update() -> None:
    h, w = hessians(2, 100), torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    found = eliminate(damped_inverse(h, RIDGE), w)
    for block in range(2):
        total = found.costs[block].cumsum(0)
        for gone in (1, 31, 32, 33, 64, 90, 100):
            removed = set(found.order[block, :gone].tolist())
            _, value = refit(h[block], w[block], [i for i in range(100) if i not in removed])
            assert float(total[gone - 1]) == pytest.approx(value, rel=1e-6)
    some = eliminate(damped_inverse(h, RIDGE), w, 40)
    assert torch.equal(some.order, found.order[:, :40])


def test_blocks_are_merged_as_the_greedy_over_all_of_them_would() -> None:
    sizes, b = (21, 7), 7
    grams = [hessians(3, b), hessians(1, b, 5)]
    w = torch.randn(28, generator=torch.Generator().manual_seed(2))
    ranks = finish(removal_ranks(BlockQuadratic(grams, sizes, w, RIDGE)))
    queues = []
    for block, h in enumerate(torch.cat(grams)):
        order, costs = from_scratch(h, w[block * b : (block + 1) * b])
        queues.append([(cost, block * b + q) for cost, q in zip(costs, order, strict=True)])
    expected = []
    while any(queues):
        best = min((q for q in queues if q), key=lambda q: q[0][0])
        expected.append(best.pop(0)[1])
    assert torch.argsort(ranks).tolist() == expected


def test_padding_takes_no_rank() -> None:
    gram = torch.zeros(3, 8, 8)
    rows = torch.randn(40, 21, generator=torch.Generator().manual_seed(3))
    for block in range(3):
        part = rows[:, 8 * block : 8 * block + 8]
        gram[block, : part.shape[1], : part.shape[1]] = part.T @ part / 40
    ranks = finish(removal_ranks(BlockQuadratic([gram], (21,), torch.randn(21), RIDGE)))
    assert sorted(ranks.tolist()) == list(range(21))


SHAPE = (6, 8)


@pytest.mark.parametrize(
    "pattern",
    [
        Unstructured.of([48], 0.6),
        NofM((SHAPE,), 2, 4),
        Block.of((SHAPE,), (2, 1), 0.5),
        Fixed(torch.arange(48) % 3 > 0),
    ],
    ids=["unstructured", "n:m", "block", "mask"],
)
@pytest.mark.parametrize("stages", [1, 5, 60])
def test_staged_removal_reaches_every_pattern(pattern: Pattern, stages: int) -> None:
    w = torch.randn(48, generator=torch.Generator().manual_seed(4))
    model = BlockCurvature(BlockQuadratic([hessians(3, 16)], (48,), w, RIDGE))
    mask = finish(staged_removal(model, pattern, w, stages))
    assert pattern.accepts(mask)


def test_many_stages_are_the_removals_one_at_a_time() -> None:
    w = torch.randn(48, generator=torch.Generator().manual_seed(6))
    quadratic = BlockQuadratic([hessians(3, 16)], (48,), w, RIDGE)
    pattern = Unstructured.of([48], 0.25)
    assert counts_left(48, 36, 2000)[-1] == 36
    staged = finish(staged_removal(BlockCurvature(quadratic), pattern, w, 2000))
    value = {}
    for name, mask in (("staged", staged), ("exact", pattern.keep(finish(removal_ranks(quadratic))))):
        value[name] = quadratic.value(torch.cat(list(quadratic.refit(mask))))
    assert value["staged"] == pytest.approx(value["exact"], rel=0.05)
    one = finish(staged_removal(BlockCurvature(quadratic), pattern, w, 1))
    assert max(value.values()) <= quadratic.value(torch.cat(list(quadratic.refit(one)))) * (1 + 1e-6)


def problem() -> PruningTask:
    network = mlp_network()
    fit, held_out = split(samples(network, 200), 0)
    layout = Layout(network.layers)
    return PruningTask(
        network=network,
        calibration=fit,
        held_out=held_out,
        layout=layout,
        weights=layout.flatten(network.weights),
        seed=0,
    )


def test_survivors_are_the_exact_refit_and_one_order_serves_every_level() -> None:
    task = problem()
    select = finish(obs.run(task, obs.Options(block_size=40, ridge=None)))
    runs, before = task.network.runs, None
    for sparsity in (0.3, 0.6, 0.9):
        pattern = Unstructured.of(task.layout.sizes, sparsity)
        selection = finish(select(pattern))
        assert pattern.accepts(selection.mask)
        assert selection.objective["end"] <= selection.objective["start"]
        assert before is None or not bool((selection.mask & ~before).any()), "masks are nested"
        before = selection.mask
        assert selection.options["ridge"] > 0
    assert task.network.runs == runs
    capped = Unstructured.of(task.layout.sizes, 0.6, max_layer_sparsity=0.65)
    assert capped.accepts(finish(select(capped)).mask)


def test_auto_takes_the_ridge_that_does_best_on_held_out_data_and_says_so() -> None:
    task = problem()
    select = finish(obs.run(task, obs.Options(ridge="auto")))
    selection = finish(select(Unstructured.of(task.layout.sizes, 0.7)))
    assert sum("held-out" in note for note in selection.notes) == 1
    fixed = finish(obs.run(task, obs.Options(ridge=selection.options["ridge"])))
    alone = finish(fixed(Unstructured.of(task.layout.sizes, 0.7)))
    assert torch.equal(alone.mask, selection.mask)
    assert torch.equal(alone.weights, selection.weights)
