"""What a report says of each layer, against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pruning_core import portraits
from pruning_core.evaluate import quality
from pruning_core.holdout import drawn, split
from pruning_core.pipeline import finish, prune
from pruning_core.recipe import Recipe
from tests.core.fakes import mlp_network, samples


@pytest.fixture(scope="module")
def made() -> tuple[Any, ...]:
    dense = mlp_network()
    data = samples(dense, 64)
    recipe = Recipe.parse({"select": {"algorithm": "magnitude", "sparsity": [0.5, 0.8]}, "seed": 3})
    return dense, data, finish(prune(dense, data, recipe))


def test_sensitivity_is_the_error_of_that_layer_alone(made: tuple[Any, ...]) -> None:
    dense, data, pruned = made
    few = drawn(split(data, 3)[1], 32, 3)
    for level in pruned.levels:
        for layer, known in zip(dense.layers, level.report.layers, strict=True):
            alone = dense.with_weights({layer.weight: level.network.weights[layer.weight]})
            assert known.sensitivity == pytest.approx(quality(alone, few, dense).output_error)
            assert known.sensitivity > 0


def test_change_and_histogram_count_every_weight(made: tuple[Any, ...]) -> None:
    dense, _, pruned = made
    for layer, known in zip(dense.layers, pruned.levels[1].report.layers, strict=True):
        before, after = dense.weights[layer.weight], pruned.levels[1].network.weights[layer.weight]
        assert known.change == pytest.approx(float((before - after).norm() ** 2 / before.norm() ** 2), rel=1e-5)
        assert known.histogram is not None
        assert known.histogram.limit == float(before.abs().max())
        assert sum(known.histogram.dense) == known.weights
        assert sum(known.histogram.pruned) == known.weights - known.zeros


def test_nothing_is_measured_that_would_cost_too_much(made: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, data, _ = made
    monkeypatch.setattr(portraits, "_PASSES", 3 * len(dense.layers))
    assert portraits.sensitivities(dense.layers, dense, dict(dense.weights), data, 0, 1) == {}


def test_a_layer_of_zeros_has_no_histogram() -> None:
    assert portraits.histogram(torch.zeros(3), torch.zeros(3)) is None


def test_the_standard_error_of_the_loss(made: tuple[Any, ...]) -> None:
    dense, data, _ = made
    losses = torch.nn.functional.cross_entropy(dense.run(data.inputs)[0], data.labels, reduction="none").double()
    expected = float(losses.std()) / len(losses) ** 0.5
    assert quality(dense, data).loss_standard_error == pytest.approx(expected, rel=1e-5)
    assert quality(dense, data.subset(torch.arange(1))).loss_standard_error is None
