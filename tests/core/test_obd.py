"""OBD: against the dense Fisher, streamed in little memory."""

from __future__ import annotations

import torch

from pruning_core.algorithms import obd
from pruning_core.algorithms.gradients import gradient_rows
from pruning_core.patterns import Unstructured
from pruning_core.pipeline import finish
from tests.core.test_obs import problem


def test_saliency_is_half_the_fishers_diagonal_times_the_square() -> None:
    task = problem()
    options = obd.Options()
    g = torch.cat([block.clone() for block in gradient_rows(task, options, streamed=True)]).double()
    saliency = 0.5 * g.square().mean(0) * task.weights.double().square()
    select = finish(obd.run(task, options))
    for sparsity in (0.3, 0.8):
        pattern = Unstructured.of(task.layout.sizes, sparsity)
        selection = finish(select(pattern))
        assert pattern.accepts(selection.mask)
        assert saliency[selection.mask].min() >= saliency[~selection.mask].max() * (1 - 1e-5)
        torch.testing.assert_close(
            selection.objective["end"], float(saliency[~selection.mask].sum()), rtol=1e-4, atol=0
        )
        assert selection.weights is None
    assert selection.options["samples"] == len(task.calibration)


def test_the_diagonal_is_computed_once_in_a_job() -> None:
    task = problem()
    finish(obd.run(task, obd.Options()))
    runs = task.network.runs
    finish(obd.run(task, obd.Options()))
    assert task.network.runs == runs
