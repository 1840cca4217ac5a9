"""`prune` over real exported graphs: the network that users send, read from its archive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruning_core.calibration import Dataset
from pruning_core.formats import read_model, write_model
from pruning_core.patterns import kept_count
from pruning_core.pipeline import finish, prune
from pruning_core.recipe import Recipe
from tests.formats import zoo

COUNT = 24


def calibration(model: zoo.Model) -> Dataset:
    """Inputs like the example's, labels from the model itself."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for example in model.inputs:
        shape = (COUNT, *example.shape[1:])
        if example.is_floating_point():
            inputs.append(torch.randn(shape, generator=generator, dtype=example.dtype))
        elif example.unique().numel() <= 2 and example.dtype != torch.bool and int(example.max()) <= 1:
            inputs.append(torch.ones(shape, dtype=example.dtype))
        else:
            inputs.append(torch.randint(0, int(example.max()) + 1, shape, generator=generator).to(example.dtype))
    with torch.no_grad():
        output = zoo.eager(model, tuple(inputs))[0]
    return Dataset(inputs=tuple(inputs), labels=output.argmax(-1))


@pytest.mark.parametrize("structure", ["block", "global"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "depthwise", "vit", "bert"])
def test_chita_on_an_exported_graph(name: str, structure: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.make(name)
    zoo.export(model, tmp_path / "model.pt2")
    network = read_model(tmp_path / "model.pt2")
    recipe = Recipe.parse({"select": {"algorithm": "chita", "sparsity": 0.6, "structure": structure}})
    data = calibration(model)
    pruned = finish(prune(network, data, recipe))
    sizes = [mask.numel() for mask in pruned.masks.values()]
    assert sum(int(mask.sum()) for mask in pruned.masks.values()) == kept_count(sum(sizes), 0.6)
    assert set(pruned.masks) == {layer.weight for layer in network.layers}
    assert pruned.report.pattern_holds
    assert pruned.report.objective["end"] < pruned.report.objective["start"]
    assert not any("one sample at a time" in note for note in pruned.report.notes)
    for weight, tensor in network.weights.items():
        if weight not in pruned.masks:
            assert torch.equal(pruned.network.weights[weight], tensor)
    write_model(pruned.network, tmp_path / "model.pt2", tmp_path / "pruned.pt2")
    again = read_model(tmp_path / "pruned.pt2")
    assert torch.equal(again.run(data.inputs)[0], pruned.network.run(data.inputs)[0])
