"""Qualities against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning_core.calibration import Dataset
from pruning_core.evaluate import compare, quality
from tests.core.fakes import ModuleNetwork, mlp_network, samples


def test_qualities_are_what_they_say() -> None:
    dense = mlp_network()
    other = dense.with_weights({"0.weight": dense.weights["0.weight"] * 0.5})
    data = samples(dense, 300)  # more than one forward batch
    measured = quality(other, data, dense)
    f, g = (network.run(data.inputs)[0] for network in (dense, other))
    assert measured.samples == 300
    assert measured.loss == pytest.approx(float(functional.cross_entropy(g, data.labels)), rel=1e-5)
    assert measured.accuracy == pytest.approx(float((g.argmax(1) == data.labels).float().mean()))
    assert measured.agreement == pytest.approx(float((g.argmax(1) == f.argmax(1)).float().mean()))
    assert measured.output_error == pytest.approx(float((g - f).norm() / f.norm()), rel=1e-5)


def test_alone_there_is_nothing_to_agree_with() -> None:
    network = mlp_network()
    measured = quality(network, samples(network))
    assert measured.agreement is None
    assert measured.output_error is None
    assert measured.accuracy is not None


def test_numbers_have_a_loss_but_no_accuracy() -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(3, 1)), torch.zeros(1, 3))
    data = Dataset(inputs=(torch.randn(9, 3),), labels=torch.randn(9))
    found = compare(network, {"same": {}}, data)["same"]
    assert found.accuracy is None
    assert found.agreement is None
    assert found.output_error == 0
    assert found.loss == pytest.approx(float((network.run(data.inputs)[0].squeeze(1) - data.labels).square().mean()))
