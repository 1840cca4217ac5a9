"""A pruned archive: torch.export.load reads it, the zeros are there, and nothing else has changed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_core.errors import ModelError
from pruning_core.formats import model_format, read_model, write_model
from pruning_core.network import Network
from tests.formats import surgery, zoo
from tests.formats.conftest import Exported


def half(network: Network) -> dict[str, Tensor]:
    """Every other weight of every layer becomes an exact zero."""
    pruned = {}
    for layer in network.layers:
        tensor = network.weights[layer.weight].clone()
        tensor.view(-1)[::2] = 0
        pruned[layer.weight] = tensor
    return pruned


@pytest.mark.parametrize("name", [*zoo.ZOO])
def test_torch_loads_the_pruned_file_and_computes_the_same(name: str, exported: Exported, tmp_path: Path) -> None:
    source, target = exported(name), tmp_path / "pruned.pt2"
    network, model = read_model(source), zoo.make(name)
    assert model_format(source) == "pt2"
    pruned = half(network)
    write_model(network.with_weights(pruned), source, target)

    program = zoo.load(target)
    for key, tensor in pruned.items():
        assert torch.equal(program.state_dict[key], tensor), key
    model.module.load_state_dict(program.state_dict, strict=False)
    again = read_model(target)
    assert all(torch.equal(again.weights[k], pruned.get(k, w)) for k, w in network.weights.items())
    with torch.no_grad():
        for got, wanted in zip(again.run(model.inputs), zoo.eager(model), strict=True):
            assert torch.allclose(got, wanted, rtol=1e-11, atol=1e-12)

    before, after = surgery.members(source), surgery.members(target)
    touched = {key for key in before if before[key] != after[key]}
    assert before.keys() == after.keys()
    assert len(touched) == len(pruned)
    assert all(key.startswith("data/weights/weight_") for key in touched)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None  # the checksums were renewed


@pytest.mark.parametrize("name", ["bert", "decoder", "transformers_bert"])
def test_every_name_of_a_tied_weight_is_pruned(name: str, exported: Exported, tmp_path: Path) -> None:
    network = read_model(exported(name))
    tied = next(layer for layer in network.layers if "words" in layer.name or "word_embeddings" in layer.name)
    write_model(network.with_weights(half(network)), exported(name), tmp_path / "pruned.pt2")
    state = zoo.load(tmp_path / "pruned.pt2").state_dict
    wanted = half(network)[tied.weight]
    assert sum(torch.equal(t, wanted) for t in state.values() if t.shape == wanted.shape) >= 2


def test_writing_is_deterministic_and_unchanged_weights_change_no_byte(exported: Exported, tmp_path: Path) -> None:
    source = exported("vit")
    network = read_model(source)
    pruned = network.with_weights(half(network))
    for name, what in (("a", pruned), ("b", pruned), ("same", network)):
        write_model(what, source, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != source.read_bytes()
    assert (tmp_path / "same").read_bytes() == source.read_bytes()
    assert [*tmp_path.glob(".*")] == []


def test_a_file_may_be_written_over_itself(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(exported("mlp").read_bytes())
    network = read_model(path)
    write_model(network.with_weights(half(network)), path, path)
    assert read_model(path).weights["fc1.weight"].view(-1)[::2].count_nonzero() == 0
    assert network.weights["fc1.weight"].view(-1)[::2].count_nonzero() > 0  # what was read stays what it was


def test_a_network_from_another_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not belong"):
        write_model(read_model(exported("mlp")), exported("cnn"), tmp_path / "x")
    assert [*tmp_path.iterdir()] == []


class Odd(nn.Module):
    """Weights in awkward memory: a transposed one, two halves of one storage, an expanded buffer, an empty one."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(8, 6)
        self.first, self.second = nn.Parameter(both[:4]), nn.Parameter(both[4:])
        self.turned = nn.Parameter(torch.randn(4, 5).t())
        self.narrow = nn.Parameter(torch.randn(3, 5).bfloat16())
        self.register_buffer("mask", torch.ones(1).expand(4))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("flag", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.first) * self.mask + nn.functional.linear(x, self.second)
        y = torch.where(self.flag, y, -y)
        y = torch.cat([nn.functional.linear(y, self.turned), self.empty.sum().expand(y.shape[0], 1)], 1)
        return nn.functional.linear(y[:, :5].bfloat16(), self.narrow)


def test_awkward_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Odd().eval(), torch.randn(4, 6)
    model = zoo.Model(module, (x,), ({0: torch.export.Dim("batch")},))
    zoo.export(model, tmp_path / "odd.pt2")
    network = read_model(tmp_path / "odd.pt2")
    assert [layer.name for layer in network.layers] == ["first", "second", "turned", "narrow"]
    assert torch.equal(network.run([x])[0], module(x))
    pruned = half(network.with_weights({k: v.contiguous() for k, v in network.weights.items() if v.dim() == 2}))
    write_model(network.with_weights(pruned), tmp_path / "odd.pt2", tmp_path / "pruned.pt2")
    state = zoo.load(tmp_path / "pruned.pt2").state_dict
    assert all(torch.equal(state[key], tensor) for key, tensor in pruned.items())


def test_weights_that_see_the_same_memory_differently_are_left_alone(tmp_path: Path) -> None:
    class Entangled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = nn.Parameter(torch.randn(8, 6))
            self.part = nn.Parameter(self.whole.data[:6])
            self.free = nn.Parameter(torch.randn(3, 14))

        def forward(self, x: Tensor) -> Tensor:
            linear = nn.functional.linear
            return linear(torch.cat([linear(x, self.whole), linear(x, self.part)], 1), self.free)

    model = zoo.Model(Entangled().eval(), (torch.randn(4, 6),), None)
    zoo.export(model, tmp_path / "e.pt2", dynamic=False)
    network = read_model(tmp_path / "e.pt2")
    assert [layer.name for layer in network.layers] == ["free"]
    assert {name: "shares memory" in why for name, why in network.unprunable.items()} == {"whole": True, "part": True}
