"""WoodFisher: our inverse against the rank-one recursion of the paper, its blocked form, and a dense inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import woodfisher
from pruning_core.patterns import Block, NofM, Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import BlockCurvature, BlockQuadratic, damped_inverse
from tests.core.test_obs import problem

RIDGE = 1e-3


def rows(n: int, b: int, seed: int = 0) -> Tensor:
    return torch.randn(n, b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recursion(g: Tensor, at_once: int) -> Tensor:
    """F⁻¹ after all rows, ``at_once`` rows a step: one is Sherman-Morrison (eq. 8), more are Woodbury's identity."""
    n, b = g.shape
    inverse = torch.eye(b, dtype=torch.float64) / RIDGE
    for start in range(0, n, at_once):
        part = g[start : start + at_once]
        product = inverse @ part.T
        inner = n * torch.eye(len(part), dtype=torch.float64) + part @ product
        inverse = inverse - product @ torch.linalg.solve(inner, product.T)
    return inverse


@pytest.mark.parametrize(("n", "b"), [(30, 12), (8, 20)])
def test_the_inverse_is_the_recursions_one_by_one_and_in_blocks_of_rows(n: int, b: int) -> None:
    g = rows(n, b)
    dense = torch.linalg.inv(g.T @ g / n + RIDGE * torch.eye(b, dtype=torch.float64))
    found = damped_inverse((g.T @ g / n).unsqueeze(0), RIDGE)[0]
    for other in (dense, recursion(g, 1), recursion(g, 7)):
        torch.testing.assert_close(found, other, rtol=1e-7, atol=1e-7)


def test_saliency_product_and_refit_against_dense_float64() -> None:
    g = rows(50, 21)
    b, w = 7, torch.randn(21, generator=torch.Generator().manual_seed(1))
    dense = torch.zeros(21, 21, dtype=torch.float64)
    grams = []
    for start in range(0, 21, b):
        part = g[:, start : start + b]
        grams.append((part.T @ part / 50).float())
        dense[start : start + b, start : start + b] = part.T @ part / 50
    dense += RIDGE * torch.eye(21, dtype=torch.float64)
    model = BlockCurvature(BlockQuadratic([torch.stack(grams)], (21,), w, RIDGE))
    mask = torch.arange(21) % 3 > 0
    inverse = torch.linalg.inv(dense[mask][:, mask])
    score = torch.cat(list(model.saliency(mask, w)))
    torch.testing.assert_close(
        score[mask].double(), 0.5 * w[mask].double() ** 2 / inverse.diagonal(), rtol=1e-4, atol=1e-8
    )
    assert not score[~mask].any()
    v = torch.randn(21, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        torch.cat(list(model.solve(v))).double(), torch.linalg.solve(dense, v.double()), rtol=1e-4, atol=1e-4
    )


def test_one_removal_by_sum_is_the_surgeons_update() -> None:
    task = problem()
    p = task.layout.size
    pattern = Unstructured((p,), (p - 1,))
    made = {}
    for update in ("sum", "joint"):
        select = finish(woodfisher.run(task, woodfisher.Options(update=update, ridge=None)))
        made[update] = finish(select(pattern))
    assert torch.equal(made["sum"].mask, made["joint"].mask)
    torch.testing.assert_close(made["sum"].weights, made["joint"].weights, rtol=1e-3, atol=1e-5)
    select = finish(woodfisher.run(task, woodfisher.Options(update="none")))
    assert torch.equal(finish(select(pattern)).weights, torch.where(made["sum"].mask, task.weights, 0))


def test_the_exact_update_has_the_lowest_objective_and_auto_says_what_it_took() -> None:
    task = problem()
    pattern = Unstructured.of(task.layout.sizes, 0.6)
    value = {}
    for update in ("sum", "joint", "none"):
        select = finish(woodfisher.run(task, woodfisher.Options(update=update, ridge=None)))
        value[update] = finish(select(pattern)).objective["end"]
    assert value["joint"] == min(value.values())
    selection = finish(finish(woodfisher.run(task, woodfisher.Options(ridge="auto")))(pattern))
    assert selection.options["update"] in value
    assert any("update 'joint'" in note and "update 'sum'" in note for note in selection.notes)


@pytest.mark.parametrize("stages", [1, 4])
def test_stages_serve_other_patterns(stages: int) -> None:
    task = problem()
    shapes = tuple(layer.shape for layer in task.layout.layers)
    select = finish(woodfisher.run(task, woodfisher.Options(stages=stages)))
    for pattern in (NofM(shapes, 1, 4), Block.of(shapes, (2, 1), 0.5)):
        selection = finish(select(pattern))
        assert pattern.accepts(selection.mask)
        assert not selection.weights[~selection.mask].any()


def test_fresh_gradients_at_each_stage() -> None:
    task = problem()
    pattern = Unstructured.of(task.layout.sizes, 0.8)
    select = finish(woodfisher.run(task, woodfisher.Options(stages=3, fresh=True, ridge=None)))
    runs = task.network.runs
    selection = finish(select(pattern))
    assert pattern.accepts(selection.mask)
    assert not selection.weights[~selection.mask].any()
    assert torch.equal(task.layout.flatten(task.network.weights), task.weights), "the job's network is untouched"
    again = finish(finish(woodfisher.run(task, woodfisher.Options(stages=3, fresh=True, ridge=None)))(pattern))
    assert torch.equal(again.weights, selection.weights)
    assert task.network.runs == runs
    once = finish(finish(woodfisher.run(task, woodfisher.Options(stages=3, ridge=None, update="joint")))(pattern))
    assert not torch.equal(once.weights, selection.weights)
