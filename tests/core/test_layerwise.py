"""What the layer-wise algorithms share: Grams once per job, pruned inputs in order, steps that are remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import FolderCheckpoints, PruningTask, Selection, alps, exact_obs, sparsegpt, wanda
from pruning_core.algorithms.layerwise import LayerProblem, LayerSolution, LayerwiseOptions, solve_layers
from pruning_core.curvature import Layout
from pruning_core.curvature.layer_inputs import LayerGram, layer_grams
from pruning_core.errors import Diverged
from pruning_core.patterns import Block, NofM, Pattern, Unstructured
from pruning_core.pipeline import finish
from tests.core.exported import exported
from tests.core.layerwise_cases import problem

MODULES: dict[str, Any] = {"wanda": wanda, "sparsegpt": sparsegpt, "alps": alps, "exact-obs": exact_obs}


def task(name: str, **more: Any) -> PruningTask:
    network, data, _ = exported(name)
    layout = Layout(network.layers)
    return PruningTask(
        network=network,
        calibration=data,
        held_out=data,
        layout=layout,
        weights=layout.flatten(network.weights),
        seed=0,
        **more,
    )


def magnitude(problem: LayerProblem) -> LayerSolution:
    mask = problem.pattern.keep(problem.weights.abs().reshape(-1)).view(problem.weights.shape)
    return LayerSolution(mask=mask, weights=problem.weights)


def half(one: PruningTask) -> Pattern:
    return Unstructured.of(one.layout.sizes, 0.5)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
@pytest.mark.parametrize("algorithm", MODULES)
@pytest.mark.parametrize("network", ["mlp", "depthwise", "bert"])
def test_each_pattern_on_real_networks(network: str, algorithm: str, inputs: str) -> None:
    one = task(network)
    shapes = tuple(layer.shape for layer in one.layout.layers)
    module = MODULES[algorithm]
    select = finish(module.run(one, module.Options(inputs=inputs, samples=24)))
    for pattern in (half(one), NofM(shapes, 2, 4), Block.of(shapes, (2, 1), 0.4, scope="layer")):
        found: Selection = finish(select(pattern))
        assert pattern.accepts(found.mask)
        assert found.weights is not None
        assert found.weights.isfinite().all()
        assert not found.weights[~found.mask].any()
        assert found.objective["end"] <= found.objective["start"] * (1 if algorithm != "wanda" else 1.5)
        again = finish(select(pattern))
        assert again.weights is not None
        assert torch.equal(again.weights, found.weights)


@pytest.mark.parametrize("network", ["mlp", "cnn", "vit"])
def test_pruned_inputs_are_those_behind_the_layers_pruned_so_far(network: str) -> None:
    one = task(network)
    seen: dict[str, Tensor] = {}

    def solve(problem: LayerProblem) -> LayerSolution:
        seen[problem.layer.weight] = problem.gram.H
        return magnitude(problem)

    select = finish(solve_layers(one, LayerwiseOptions(inputs="pruned"), "test", solve))
    found = finish(select(half(one)))
    pruned = one.layout.split(found.weights)
    done: dict[str, Tensor] = {}
    for layer in one.layout.layers:
        gram = finish(layer_grams(one.network, one.calibration, [layer], done))[layer.weight]
        assert torch.allclose(seen[layer.weight], gram.H, rtol=1e-4, atol=1e-6)
        done[layer.weight] = pruned[layer.weight].to(one.network.weights[layer.weight].dtype)


def test_dense_grams_are_made_once_for_all_algorithms_and_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    from pruning_core.algorithms import layerwise

    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return layer_grams(*arguments)

    monkeypatch.setattr(layerwise, "layer_grams", lambda *a: (yield from counted(*a)))
    one = task("mlp")
    for module in MODULES.values():
        select = finish(module.run(one, module.Options()))
        finish(select(half(one)))
    assert len(calls) == 1


@pytest.mark.parametrize("algorithm", ["sparsegpt", "exact-obs"])
def test_pruned_layers_are_remembered(algorithm: str, tmp_path: Path) -> None:
    module = MODULES[algorithm]
    plain = finish(finish(module.run(task("cnn"), module.Options(inputs="pruned")))(half(task("cnn"))))
    one = task("cnn", checkpoints=FolderCheckpoints(tmp_path))
    steps = finish(module.run(one, module.Options(inputs="pruned")))(half(one))
    next(steps)
    next(steps)
    next(steps)
    steps.close()
    assert len(list(tmp_path.iterdir())) == 2
    again = task("cnn", checkpoints=FolderCheckpoints(tmp_path))
    resumed = finish(finish(module.run(again, module.Options(inputs="pruned")))(half(again)))
    assert torch.equal(plain.weights, resumed.weights)
    assert plain.objective == resumed.objective


def test_more_damping_where_rounding_needs_it() -> None:
    one = problem((4, 6), Unstructured((24,), (12,)))
    H = torch.ones(1, 6, 6) - 1e-6 * torch.eye(6)
    indefinite = LayerProblem(
        index=0, layer=one.layer, gram=LayerGram(H=H, positions=9), weights=one.weights, pattern=one.pattern
    )
    damped = indefinite.damped(1e-9)
    assert torch.linalg.eigvalsh(damped).min() > 0
    assert torch.allclose(damped, H.double(), atol=1e-4)
    found = sparsegpt.sweep(indefinite, block_size=4, damping=1e-9)
    assert found.weights.isfinite().all()


def test_a_layer_that_loses_nothing_stays_as_it_is() -> None:
    one = task("cnn")
    pattern = Unstructured(one.layout.sizes, tuple(s if i == 1 else s // 3 for i, s in enumerate(one.layout.sizes)))
    found = finish(finish(sparsegpt.run(one, sparsegpt.Options()))(pattern))
    name = one.layout.names[1]
    assert torch.equal(one.layout.split(found.weights)[name], one.network.weights[name])


def test_inputs_that_are_not_finite_are_an_error() -> None:
    one = task("mlp")
    first = one.layout.names[0]
    broken = one.network.with_weights({first: torch.full_like(one.network.weights[first], 1e200)})
    wrong = PruningTask(
        network=broken,
        calibration=one.calibration,
        held_out=one.held_out,
        layout=one.layout,
        weights=one.weights,
        seed=0,
    )
    select = finish(wanda.run(wrong, wanda.Options()))
    with pytest.raises(Diverged, match="not finite"):
        finish(select(half(wrong)))
