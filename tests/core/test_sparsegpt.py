"""SparseGPT against a slow sweep that inverts the remaining Hessian anew at every column."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import sparsegpt
from pruning_core.algorithms.layerwise import LayerProblem
from pruning_core.patterns import Block, NofM, Pattern, Unstructured, sweep_order
from tests.core.layerwise_cases import CASES, DAMPING, case_id, problem, row_grams


def slow_sweep(one: LayerProblem, block: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper with explicit inverses, float64, one row and one column at a time."""
    pattern = one.pattern
    width = pattern.m if isinstance(pattern, NofM) else pattern.shape[1] if isinstance(pattern, Block) else 1
    order = sweep_order(one.layer.shape, width)
    H = row_grams(one)[:, order][:, :, order]
    W = one.weights.double()[:, order]
    out, d = W.shape
    channels = one.layer.shape[1]
    grouped = channels // width * width * (d // channels)
    inverses = [torch.linalg.inv(H[:, j:, j:]) for j in range(d)]
    pivot = torch.stack([inverses[j][:, 0, 0] for j in range(d)], 1)
    mask = torch.ones(out, d, dtype=torch.bool)
    step = width if isinstance(pattern, NofM) else max(width, block // width * width)
    for j in range(d):
        if j % step == 0 and isinstance(pattern, NofM):
            if j < grouped:
                score = W[:, j : j + width].square() / pivot[:, j : j + width]
                best = torch.argsort(score, dim=1, descending=True, stable=True)[:, : pattern.n]
                mask[:, j : j + width] = torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)
        elif j % step == 0:
            score = W.square() / pivot
            score[:, :j] = torch.where(mask[:, :j], torch.inf, -1.0)
            whole = pattern.keep(score[:, torch.argsort(order)].reshape(-1)).view(out, d)[:, order]
            mask[:, j : j + step] = whole[:, j : j + step]
        for o in range(out):
            if not mask[o, j]:
                W[o, j:] -= W[o, j].clone() / inverses[j][o, 0, 0] * inverses[j][o, :, 0]
                W[o, j] = 0
    back = torch.argsort(order)
    return mask[:, back], W[:, back]


@pytest.mark.parametrize(("shape", "groups", "pattern"), CASES, ids=case_id)
def test_equals_the_slow_sweep(shape: tuple[int, ...], groups: int, pattern: Pattern) -> None:
    one = problem(shape, pattern, groups=groups)
    found = sparsegpt.sweep(one, block_size=5, damping=DAMPING)
    mask, weights = slow_sweep(one, 5)
    assert pattern.accepts(found.mask.reshape(-1))
    assert torch.equal(found.mask, mask)
    assert torch.allclose(found.weights.double(), weights, rtol=1e-3, atol=1e-4)


def test_factor_of_the_inverse() -> None:
    one = problem((6, 12), Unstructured((72,), (36,)))
    H = one.damped(DAMPING)
    U = sparsegpt.inverse_factor(H)
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.mT @ U, torch.linalg.inv(H), rtol=1e-8)
    for j in range(12):
        assert float(U[0, j, j] ** 2) == pytest.approx(float(torch.linalg.inv(H[0, j:, j:])[0, 0]))


@pytest.mark.parametrize("kept", [0.5, 0.25])
def test_beats_the_mask_alone(kept: float) -> None:
    pattern = Unstructured((32 * 48,), (int(32 * 48 * kept),))
    one = problem((32, 48), pattern)
    found = sparsegpt.sweep(one, block_size=16, damping=DAMPING)
    plain = one.weights * pattern.keep(one.weights.abs().reshape(-1)).view(32, 48)
    assert one.error(found.weights * found.mask) < 0.3 * one.error(plain)
