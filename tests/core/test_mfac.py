"""M-FAC: our dual factorisation against the paper's dynamic programme and a dense float64 inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import mfac
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import DualCurvature, DualInverse, LowRankQuadratic, kernel
from tests.core.test_obs import problem

RIDGE = 1e-2


def columns(p: int, m: int, seed: int = 0) -> Tensor:
    return torch.randn(p, m, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, -1, p).unsqueeze(1)


def dense(x: Tensor, index: Tensor | None = None) -> Tensor:
    part = (x if index is None else x[index]).double()
    return part @ part.T / x.shape[1] + RIDGE * torch.eye(len(part), dtype=torch.float64)


def recursion(x: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's v_j = Fⱼ₋₁⁻¹g_j (m, p) and m + g_jᵀv_j, by its dynamic programme."""
    g = x.double().T
    m = len(g)
    v, scale = torch.zeros_like(g), torch.zeros(m, dtype=torch.float64)
    for j in range(m):
        v[j] = g[j] / RIDGE
        for k in range(j):
            v[j] -= (v[k] @ g[j]) / scale[k] * v[k]
        scale[j] = m + g[j] @ v[j]
    return v, scale


@pytest.mark.parametrize(("p", "m"), [(40, 15), (10, 30)])
def test_products_and_diagonal_against_the_recursion_and_dense(p: int, m: int) -> None:
    x = columns(p, m)
    inverse = DualInverse(x, RIDGE, kernel(x))
    v, scale = recursion(x)
    exact = torch.linalg.inv(dense(x))
    torch.testing.assert_close(torch.eye(p, dtype=torch.float64) / RIDGE - v.T @ (v / scale[:, None]), exact)
    vector = torch.randn(p, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(inverse.solve(vector).double(), exact @ vector.double(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(inverse.diagonal(torch.arange(p)), exact.diagonal(), rtol=1e-3, atol=1e-4)
    # K/λ = LDLᵀ: its pivots are the recursion's, its inverse factor gives the v_j.
    pivots = inverse.factor.diagonal().square() / RIDGE
    torch.testing.assert_close(pivots, scale, rtol=1e-6, atol=1e-8)
    unit = inverse.factor / inverse.factor.diagonal()
    torch.testing.assert_close(torch.linalg.solve(unit, x.double().T) / RIDGE, v, rtol=1e-6, atol=1e-6)


def test_the_inverse_on_a_support_and_what_enters_it() -> None:
    x = columns(30, 12)
    mask = torch.arange(30) % 3 > 0
    inside, j = mask.nonzero()[:, 0], 9
    inverse = DualInverse(x, RIDGE, kernel(x, inside))
    exact = torch.linalg.inv(dense(x, inside))
    torch.testing.assert_close(inverse.diagonal(inside), exact.diagonal(), rtol=1e-3, atol=1e-4)
    cross = (x[inside].double() @ x[j].double()) / 12
    found = inverse.whiten(inside).double() @ inverse.whiten(torch.tensor([j]))[0].double()
    torch.testing.assert_close(found, exact @ cross, rtol=1e-3, atol=1e-4)
    schur = x[j].double() @ x[j].double() / 12 + RIDGE - cross @ exact @ cross
    assert float(RIDGE * (1 + inverse.leverage(torch.tensor([j])))) == pytest.approx(float(schur), rel=1e-3)


def test_saliency_is_the_surgeons() -> None:
    x, w = columns(30, 12), torch.randn(30, generator=torch.Generator().manual_seed(4))
    model = DualCurvature(LowRankQuadratic(x, w, RIDGE), kernel(x))
    for mask in (torch.ones(30, dtype=torch.bool), torch.arange(30) % 2 > 0):
        (score,) = model.saliency(mask, w)
        diagonal = torch.linalg.inv(dense(x, mask.nonzero()[:, 0])).diagonal()
        torch.testing.assert_close(score[mask].double(), 0.5 * w[mask].double() ** 2 / diagonal, rtol=1e-3, atol=1e-6)
        assert not score[~mask].any()


def test_gradients_and_saliencies_are_shared_by_levels_and_updates() -> None:
    task = problem()
    select = finish(mfac.run(task, mfac.Options()))
    runs = task.network.runs
    for sparsity in (0.3, 0.8):
        pattern = Unstructured.of(task.layout.sizes, sparsity, scope="layer")
        selection = finish(select(pattern))
        assert pattern.accepts(selection.mask)
        assert selection.options["ridge"] > 0
    finish(mfac.run(task, mfac.Options(update="joint")))
    assert task.network.runs - runs <= 2 * 10, "only what was held out was looked at again"
