"""Projections: idempotent, feasible, optimal."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_core.patterns import Unstructured, kept_count, top_k

scores = st.lists(st.integers(-4, 4), min_size=1, max_size=9).map(lambda v: torch.tensor(v, dtype=torch.float32))


@given(scores, st.data())
def test_top_k_is_feasible_optimal_and_prefers_the_lower_index(score: torch.Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(score)))
    mask = top_k(score, k)
    assert int(mask.sum()) == k
    best = max((float(score[list(c)].sum()) for c in combinations(range(len(score)), k)), default=0.0)
    assert float(score[mask].sum()) == best
    stable = torch.argsort(score, descending=True, stable=True)[:k]
    assert set(mask.nonzero().squeeze(1).tolist()) == set(stable.tolist())


@given(scores, st.floats(0, 0.99), st.sampled_from(["global", "layer"]), st.data())
def test_unstructured_is_idempotent_and_accepts_its_own(
    score: torch.Tensor, sparsity: float, scope: str, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(score)))
    sizes = [size for size in (cut, len(score) - cut) if size]
    pattern = Unstructured.of(sizes, sparsity, scope=scope)
    mask = pattern.keep(score.abs())
    assert pattern.accepts(mask)
    kept = torch.where(mask, score.abs() + 1, torch.zeros(()))
    assert torch.equal(pattern.keep(kept), mask)
    if int(mask.sum()) < len(score):
        assert not pattern.accepts(torch.ones_like(mask))


def test_each_layer_keeps_its_own_share() -> None:
    pattern = Unstructured.of([10, 4], 0.5, scope="layer")
    mask = pattern.keep(torch.arange(14.0))
    assert (int(mask[:10].sum()), int(mask[10:].sum())) == (5, 2)
    assert Unstructured.of([10, 4], 0.5).keep(torch.arange(14.0))[7:].all()


def test_rival_is_the_largest_pruned_score_of_the_group() -> None:
    pattern = Unstructured.of([3, 2], 0.5, scope="layer")
    mask = torch.tensor([True, True, False, True, False])
    rival = pattern.rival(torch.tensor([9.0, 8.0, 1.0, 9.0, 2.0]), mask)
    assert rival.tolist() == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(("size", "sparsity", "kept"), [(10, 0.9, 1), (32360, 0.9, 3236), (3, 0.5, 2), (7, 0.0, 7)])
def test_kept_count_rounds(size: int, sparsity: float, kept: int) -> None:
    assert kept_count(size, sparsity) == kept


def test_top_k_refuses_an_impossible_k() -> None:
    with pytest.raises(ValueError, match="expected 0 <= k <= 2"):
        top_k(torch.zeros(2), 3)
