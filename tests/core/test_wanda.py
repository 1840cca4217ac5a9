"""Wanda against its definition, written as loops."""

from __future__ import annotations

import pytest
import torch

from pruning_core.algorithms import wanda
from pruning_core.patterns import NofM, Pattern, Unstructured
from tests.core.layerwise_cases import CASES, case_id, problem


@pytest.mark.parametrize(("shape", "groups"), [((6, 10), 1), ((6, 4, 2), 2), ((4, 1, 3), 4)])
def test_score_is_weight_times_norm_of_its_input(shape: tuple[int, ...], groups: int) -> None:
    one = problem(shape, Unstructured((1,), (1,)), groups=groups)
    score = wanda.wanda_score(one)
    per_group = shape[0] // groups
    for o in range(shape[0]):
        for j in range(one.weights.shape[1]):
            mean_square = one.gram.H[o // per_group, j, j]
            assert float(score[o, j]) == pytest.approx(abs(float(one.weights[o, j])) * float(mean_square) ** 0.5)


@pytest.mark.parametrize("kept", [0, 1, 6, 20, 25, 60])
def test_rows_keep_equally_many_and_the_best(kept: int) -> None:
    score = torch.randint(0, 5, (6, 10), generator=torch.Generator().manual_seed(kept)).float()
    mask = wanda.keep_by_row(Unstructured((60,), (kept,)), score)
    counts = mask.sum(1)
    assert int(mask.sum()) == kept
    assert int(counts.max() - counts.min()) <= 1
    for row, chosen, count in zip(score, mask, counts.tolist(), strict=True):
        best = torch.argsort(row, descending=True, stable=True)[:count]
        assert set(chosen.nonzero().squeeze(1).tolist()) == set(best.tolist())
    # one more goes where the next score is larger
    following = score.sort(1, descending=True).values[:, kept // 6] if kept < 60 else score[:, 0]
    more, fewer = following[counts > kept // 6], following[counts == kept // 6]
    assert not len(more) or not len(fewer) or float(more.min()) >= float(fewer.max())


@pytest.mark.parametrize(("shape", "groups", "pattern"), CASES, ids=case_id)
def test_every_pattern_is_met(shape: tuple[int, ...], groups: int, pattern: Pattern) -> None:
    one = problem(shape, pattern, groups=groups)
    assert pattern.accepts(wanda.keep_by_row(pattern, wanda.wanda_score(one)).reshape(-1))


def test_n_of_m_follows_the_score_not_the_magnitude() -> None:
    one = problem((1, 4), NofM(((1, 4),), 2, 4))
    mask = wanda.keep_by_row(one.pattern, wanda.wanda_score(one))
    assert not bool(mask[0, 1]), "an input that is always zero is worth nothing"
