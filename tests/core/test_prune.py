"""`prune`: what it yields, refuses and reports. What every algorithm must do is in test_conformance.py."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from pruning_core.algorithms import REGISTRY, PruningTask, Selection, describe
from pruning_core.algorithms.__main__ import main
from pruning_core.calibration import Dataset
from pruning_core.errors import Diverged, LimitExceeded, MaskError, ModelError, NothingToPrune, RecipeError
from pruning_core.evaluate import compare
from pruning_core.holdout import split
from pruning_core.patterns import Pattern
from pruning_core.pipeline import Pruned, finish, planned_layers, prune
from pruning_core.recipe import Recipe
from tests.core.fakes import ModuleNetwork, cnn_network, mlp, mlp_network, samples


def recipe(algorithm: str = "chita", sparsity: object = 0.7, *, seed: int = 0, **select: object) -> Recipe:
    return Recipe.parse({"select": {"algorithm": algorithm, "sparsity": sparsity, **select}, "seed": seed})


def run(network: ModuleNetwork, *, labels: bool = True, **options: object) -> Pruned:
    return finish(prune(network, samples(network, labels=labels), recipe(**options)))


def test_magnitude_keeps_the_largest_as_they_are() -> None:
    network = mlp_network()
    pruned = run(network, algorithm="magnitude")
    flat = torch.cat([network.weights[name].abs().flatten() for name in pruned.masks])
    mask = torch.cat([m.flatten() for m in pruned.masks.values()])
    assert flat[mask].min() >= flat[~mask].max()
    assert all(
        torch.equal(pruned.network.weights[name][m], network.weights[name][m]) for name, m in pruned.masks.items()
    )


def test_weights_without_influence_go_first() -> None:
    network = mlp_network()
    network.weights["0.weight"][:, 3] = 100.0
    data = samples(network, 600)
    data.inputs[0][:, 3] = 0.0  # a dead input: its weights have no gradient, whatever their size
    for options in ({"structure": "block"}, {"structure": "global"}):
        pruned = finish(prune(network, data, recipe(sparsity=0.5, **options)))
        assert not pruned.masks["0.weight"][:, 3].any()
        assert pruned.report.levels[0].objective["start"] < 100


def test_weights_keep_their_type() -> None:
    network = ModuleNetwork(mlp().double(), torch.zeros(1, 12, dtype=torch.float64))
    x = torch.randn(40, 12, dtype=torch.float64)
    pruned = finish(prune(network, Dataset(inputs=(x,), labels=network.run([x])[0].argmax(1)), recipe()))
    assert pruned.network.weights["2.weight"].dtype == torch.float64


def test_progress_rises_to_one_and_stages_are_timed() -> None:
    network = mlp_network()
    steps = list(prune(network, samples(network), recipe(structure="global")))
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert list(dict.fromkeys(step.stage for step in steps)) == ["gradients", "select", "evaluate"]
    report = run(network, structure="global").report
    assert [stage.name for stage in report.stages] == ["gradients", "select", "choose", "evaluate"]
    assert all(stage.peak_memory_bytes for stage in report.stages)


def test_closing_cancels() -> None:
    network = mlp_network()
    steps = prune(network, samples(network), recipe())
    next(steps)
    runs = network.runs
    steps.close()
    assert network.runs == runs
    with pytest.raises(StopIteration):
        next(steps)


def test_report_says_what_was_measured_and_chosen() -> None:
    network = mlp_network()
    data, validation = samples(network), samples(network, 40, seed=9)
    report = finish(prune(network, data, recipe(), validation=validation)).report
    assert report.data == "validation"
    level = report.levels[0]
    assert report.dense.samples == level.pruned.samples == 40
    assert report.dense.accuracy is not None
    assert level.pruned.agreement is not None
    assert level.options["ridge"] > 0
    assert level.options["batch_size"] == 1
    assert report.held_out == 32
    assert level.options["samples"] == 32
    assert any("32 gradient rows" in note for note in level.notes)
    truth = network.run(validation.inputs)[0].argmax(-1) == validation.labels
    assert report.dense.accuracy == pytest.approx(float(truth.float().mean()))
    assert run(network).report.data == "calibration"


def test_unlabelled_data_works_and_has_no_accuracy() -> None:
    report = run(mlp_network(), labels=False).report
    assert report.dense.accuracy is None
    assert report.levels[0].pruned.output_error is not None
    assert any("drawn from the model's own softmax" in note for note in report.levels[0].notes)


def test_magnitude_is_taken_where_it_does_better_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(task: PruningTask, options: Any) -> Any:
        def select(pattern: Pattern) -> Any:
            yield from ()
            return Selection(mask=pattern.keep(-task.weights.abs()))  # the worst there is

        yield from ()
        return select

    worst = {**REGISTRY, "chita": replace(REGISTRY["chita"], run=run)}
    monkeypatch.setattr("pruning_core.levels.REGISTRY", worst)
    network, data, _ = trained()
    level = finish(prune(network, data, recipe())).levels[0]
    assert level.report.fell_back
    assert any("magnitude pruning did better" in note for note in level.report.notes)
    plain = finish(prune(network, data, recipe("magnitude"))).levels[0]
    assert all(torch.equal(level.network.weights[name], plain.network.weights[name]) for name in level.masks)


def test_goals_find_the_highest_sparsity_that_holds() -> None:
    network, data, _ = trained()
    goal = {"max_loss_increase": 0.02, "precision": 0.05, "max_sparsity": 0.95}
    pruned = finish(prune(network, data, recipe("magnitude", sparsity=goal)))
    assert pruned.report.goal == goal
    dense = compare(network, {}, split(data, 0)[1])["dense"].loss
    points = pruned.report.frontier
    held = [point.sparsity for point in points if point.quality.loss - dense <= 0.02]
    failed = [point.sparsity for point in points if point.quality.loss - dense > 0.02]
    assert pruned.levels[0].report.sparsity == pytest.approx(max(held))
    assert any(0 < s - max(held) <= 0.1 for s in failed)
    assert sum(point.kept for point in points) == 1
    nothing = finish(prune(network, data, recipe("magnitude", sparsity={"max_loss_increase": 0.0, "precision": 0.2})))
    assert nothing.levels[0].report.sparsity < 0.2
    with pytest.raises(RecipeError, match="accuracy"):
        finish(prune(network, samples(network, labels=False), recipe("magnitude", sparsity={"max_accuracy_drop": 0.1})))


def test_a_list_shares_one_pass_of_statistics() -> None:
    network = mlp_network()
    list(prune(network, samples(network), recipe(sparsity=0.5)))
    one = network.runs
    again = mlp_network()
    pruned = finish(prune(again, samples(again), recipe(sparsity=[0.3, 0.4, 0.5])))
    assert again.runs < one + 10
    alone = finish(prune(again, samples(again), recipe(sparsity=0.4)))
    for name in alone.masks:
        assert torch.equal(pruned.levels[1].network.weights[name], alone.network.weights[name])


def test_masks_that_do_not_fit_are_refused() -> None:
    network = mlp_network()
    data, one = samples(network), Recipe.parse({"select": {"algorithm": "magnitude", "pattern": "mask"}})
    for masks, says in (
        (None, "none was given"),
        ({}, "empty"),
        ({"bias": torch.ones(3, dtype=torch.bool)}, "no prunable weight"),
        ({"0.weight": torch.ones(3, dtype=torch.bool)}, "does not fit"),
        ({"0.weight": torch.ones(16, 12)}, "does not fit"),
    ):
        with pytest.raises(MaskError, match=says):
            finish(prune(network, data, one, masks=masks))


def test_layers_are_included_by_pattern() -> None:
    network = cnn_network()
    pruned = run(network, layers={"exclude": ["fc*"]})
    assert [layer.name for layer in pruned.levels[0].report.layers] == ["conv1", "conv2"]
    assert pruned.report.excluded == ("fc1", "fc2")
    with pytest.raises(NothingToPrune, match="leaves no layer"):
        planned_layers(network, recipe(layers={"include": ["nothing"]}))


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(RecipeError, match="each algorithm once"):
        finish(prune(mlp_network(), samples(mlp_network()), recipe("best", of=["best"])))


def test_bad_weights_and_gradients_are_refused() -> None:
    network = mlp_network()
    broken = network.with_weights({"2.weight": torch.full((10, 16), torch.nan)})
    with pytest.raises(ModelError, match="not finite"):
        finish(prune(broken, samples(network), recipe()))
    data = samples(network)
    data.inputs[0][:] *= 1e30
    for structure in ("block", "global"):
        with pytest.raises(Diverged):
            finish(prune(network, data, recipe(structure=structure)))


def test_what_does_not_fit_into_memory_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_core.curvature.memory.available_bytes", lambda _: 1000)
    network = mlp_network()
    with pytest.raises(LimitExceeded) as problem:
        run(network, structure="global")
    assert "block structure" in str(problem.value.advice)
    with pytest.raises(LimitExceeded) as problem:
        run(network, structure="block")
    assert "smaller block_size" in str(problem.value.advice)


@cache
def trained() -> tuple[ModuleNetwork, Dataset, Dataset]:
    """A network that has learned something, the data it learned from, and other data."""
    torch.manual_seed(0)
    x = torch.randn(1200, 12)
    y = (x[:, :3] @ torch.randn(3, 4)).argmax(1)
    network = mlp_network()
    for p in network.module.parameters():
        p.requires_grad_()
    optimiser = torch.optim.Adam(network.module.parameters(), 0.02)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network.module(x[:800]), y[:800]).backward()
        optimiser.step()
    there = ModuleNetwork(network.module, network.example)
    return there, Dataset(inputs=(x[:800],), labels=y[:800]), Dataset(inputs=(x[800:],), labels=y[800:])


def test_a_better_model_than_magnitude_on_an_overparametrised_net() -> None:
    network, data, validation = trained()
    for structure in ("block", "global"):
        level = finish(prune(network, data, recipe(structure=structure), validation=validation)).levels[0].report
        assert not level.fell_back
        assert level.pruned.loss < level.magnitude.loss


def test_catalogue_is_up_to_date_and_closed() -> None:
    assert main(["--check"]) == 0
    for entry in describe().values():
        assert entry["options"]["additionalProperties"] is False
        assert all("description" in field for field in entry["options"]["properties"].values())


DIGEST = "from tests.core.test_prune import digests; print(*digests())"


def digests() -> list[str]:
    found = []
    for structure in ("block", "global"):
        pruned = run(cnn_network(), structure=structure)
        parts = [t.numpy().tobytes() for t in pruned.network.weights.values()]
        found.append(hashlib.sha256(b"".join(parts)).hexdigest())
    return found


def test_a_fresh_process_gives_the_same_bytes() -> None:
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    fresh = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True, text=True)
    assert fresh.stdout.split() == digests()
