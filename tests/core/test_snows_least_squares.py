"""Layer-wise least squares on supports against one dense float64 solve per channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning_core.solvers import SupportFactors, layer_least_squares


def problem(out: int, d: int, groups: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(groups, 5 * d, d, generator=generator, dtype=torch.float64)
    H = X.mT @ X / X.shape[1]
    mask = torch.rand(out, d, generator=generator) < torch.rand(out, 1, generator=generator)
    return H, torch.randn(out, d, generator=generator, dtype=torch.float64), mask


def oracle(H: Tensor, B: Tensor, mask: Tensor, ridge: float) -> Tensor:
    W, size = torch.zeros_like(B), len(B) // len(H)
    for channel, support in enumerate(mask):
        h = H[channel // size]
        s = support.nonzero().squeeze(1)
        system = h[s][:, s] + ridge * h.diagonal().mean() * torch.eye(len(s), dtype=h.dtype)
        W[channel, s] = torch.linalg.solve(system, B[channel, s])
    return W


@pytest.mark.parametrize(("out", "d", "groups"), [(40, 30, 1), (8, 9, 8), (12, 20, 3), (1, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_channel_is_solved_on_its_support(out: int, d: int, groups: int, dtype: torch.dtype) -> None:
    H, B, mask = problem(out, d, groups)
    mask[0] = False
    mask[-1] = True
    W = layer_least_squares(H.to(dtype), B.to(dtype), mask, 1e-3)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert torch.allclose(W.double(), oracle(H, B, mask, 1e-3), rtol=tolerance, atol=tolerance)
    assert W.dtype == dtype
    assert not W[~mask].any()
    assert torch.equal(SupportFactors(H.to(dtype), mask, 1e-3).solve(B.to(dtype)), W)


def test_a_shared_support_gives_the_same() -> None:
    H, B, mask = problem(16, 24, 1)
    mask[:] = mask[3]
    assert torch.allclose(layer_least_squares(H[0], B, mask), oracle(H, B, mask, 1e-4), rtol=1e-9)


def test_a_singular_gram_is_solved_with_more_digits_or_more_ridge() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3, 40, generator=generator)
    H = 1e6 * X.T @ X
    mask = torch.ones(6, 40, dtype=torch.bool)
    mask[:, ::7] = False
    mask[0, 1] = False
    W = layer_least_squares(H, torch.randn(6, 3, generator=generator) @ X, mask, 1e-9)
    assert torch.isfinite(W).all()
    zero = layer_least_squares(torch.zeros(40, 40), torch.zeros(6, 40), mask)
    assert not zero.any()
