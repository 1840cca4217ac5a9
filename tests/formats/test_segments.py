"""A run in pieces equals the whole run, bit for bit, wherever it is cut."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_core.errors import ModelError
from pruning_core.formats import read_model
from pruning_core.network import Network
from tests.formats import zoo
from tests.formats.conftest import Exported

EVERY = [*zoo.ZOO]


def losses(outputs: tuple[Tensor, ...]) -> Tensor:
    return sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs)


def pruned(network: Network) -> dict[str, Tensor]:
    return {layer.weight: network.weights[layer.weight] * 0.5 for layer in network.layers}


@pytest.mark.parametrize("name", EVERY)
def test_every_cut_gives_the_same_bits(name: str, exported: Exported) -> None:
    network, inputs = read_model(exported(name)), zoo.make(name).inputs
    wanted = network.run(inputs, pruned(network))
    state = network.begin(inputs)
    for cut in range(network.length + 1):
        state, _ = network.advance(state, cut, pruned(network))  # one node at a time
        assert state.position == cut
        once, _ = network.advance(network.begin(inputs), cut, pruned(network))
        assert once.values.keys() == state.values.keys()
        got = network.outputs(once, pruned(network))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), cut


@pytest.mark.parametrize("name", EVERY)
def test_a_state_holds_exactly_what_is_needed(name: str, exported: Exported) -> None:
    network, inputs = read_model(exported(name)), zoo.make(name).inputs
    for cut in range(network.length + 1):
        state, _ = network.advance(network.begin(inputs), cut)
        for missing in state.values:
            poor = type(state)(position=cut, values={k: v for k, v in state.values.items() if k != missing})
            with pytest.raises((KeyError, ModelError)):
                network.outputs(poor)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_through_pieces_equal_those_of_the_whole(name: str, exported: Exported) -> None:
    network, inputs = read_model(exported(name)), zoo.make(name).inputs

    def gradients(pieces: bool) -> list[Tensor]:
        leaves = {layer.weight: network.weights[layer.weight].clone().requires_grad_() for layer in network.layers}
        if pieces:
            state = network.begin(inputs)
            for site in network.sites:
                state, _ = network.advance(state, site.node, leaves)
            outputs = network.outputs(state, leaves)
        else:
            outputs = network.run(inputs, leaves)
        return list(torch.autograd.grad(losses(outputs), [*leaves.values()]))

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_new_weights_of_a_layer_count_from_its_site_on(name: str, exported: Exported) -> None:
    """Also where the weight was transposed before: a state holds no view of an old weight."""
    network, inputs = read_model(exported(name)), zoo.make(name).inputs
    assert {site.layer.weight for site in network.sites} == {layer.weight for layer in network.layers}
    assert len(network.sites) == sum(layer.uses for layer in network.layers)
    for site in network.sites:
        if not site.alone:  # it may be used before the site, too
            continue
        changed = {site.layer.weight: network.weights[site.layer.weight] + 1}
        state, _ = network.advance(network.begin(inputs), site.node)
        got = network.outputs(state, changed)
        assert all(torch.equal(a, b) for a, b in zip(got, network.run(inputs, changed), strict=True))


def test_weights_that_something_else_reads_are_not_alone(exported: Exported) -> None:
    tied = {name: [s.layer.name for s in read_model(exported(name)).sites if not s.alone] for name in EVERY}
    assert {name: shared for name, shared in tied.items() if shared} == {
        "mlp": ["fc2", "fc2"],
        "bert": ["words"],
        "decoder": ["words"],
        "transformers_bert": ["model.bert.embeddings.word_embeddings"],
        "transformers_gpt2": ["model.transformer.wte"],
    }


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b.weight.t()
        return torch.relu(self.a(x)) @ b


def test_a_transposition_before_the_site_is_made_again(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    zoo.export(zoo.Model(Transposed().eval(), (x,), None), tmp_path / "m.pt2", dynamic=False)
    network = read_model(tmp_path / "m.pt2")
    site = network.sites[-1]
    assert (site.layer.weight, site.bias) == ("b.weight", None)
    state, _ = network.advance(network.begin((x,)), site.node)
    assert {*state.values} == {site.input}
    zero = {"b.weight": torch.zeros(3, 6)}
    assert torch.equal(network.outputs(state, zero)[0], torch.zeros(4, 3))


def test_values_can_be_kept_on_the_way(exported: Exported) -> None:
    network, inputs = read_model(exported("cnn")), zoo.make("cnn").inputs
    first, second = network.sites[:2]
    state, found = network.advance(network.begin(inputs), second.node, keep=(first.input, first.output, second.input))
    assert torch.equal(found[first.input], inputs[0])
    assert torch.equal(found[second.input], state.values[second.input])
    assert first.output not in state.values
    with pytest.raises(ModelError, match="not computed"):
        network.advance(state, network.length, keep=(first.output,))
    with pytest.raises(ModelError, match="later node"):
        network.advance(state, 0)


def test_operations_are_layers_and_activations(exported: Exported) -> None:
    network = read_model(exported("vit"))
    ops = [network._graph.nodes[i].op.split(".")[1] for i in network.operations]
    assert ops == ["conv2d", "linear", "linear", "linear", "gelu", "linear", "linear", "linear", "linear"]
    cnn = read_model(exported("cnn"))
    assert len(cnn.operations) == 7 + 5


def test_a_window_counts_only_what_depends_on_its_layer(exported: Exported) -> None:
    network = read_model(exported("cnn"))
    ops = network.operations
    names = [network._graph.nodes[i].outputs for i in ops]
    site = next(site for site in network.sites if site.layer.name == "blocks.1.conv2")
    window, at = network.window(site, 2), ops.index(site.node)
    assert network._graph.nodes[ops[at + 1]].op == "aten.conv2d.default"  # the shortcut, beside it
    assert window.outputs == (names[at], names[at + 2], names[at + 3])
    assert (window.start, window.stop) == (site.node, ops[at + 3] + 1)
    last = network.window(network.sites[-1], 5)
    assert (last.stop, last.outputs) == (network.sites[-1].node + 1, (network.sites[-1].output,))


def test_geometry_of_convolutions(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 4, (3, 2), padding="same", dilation=(1, 3), groups=2),
        nn.Conv2d(4, 2, 3, stride=(2, 1), padding=(1, 0)),
        nn.Flatten(2),
        nn.Conv1d(2, 2, 4, padding="valid"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zoo.export(zoo.Model(module.eval(), (torch.randn(2, 4, 9, 9),), None), tmp_path / "m.pt2", dynamic=False)
    a, b, c = read_model(tmp_path / "m.pt2").sites
    assert (a.stride, a.padding, a.dilation, a.groups) == ((1, 1), ((1, 1), (1, 2)), (1, 3), 2)
    assert (b.stride, b.padding, b.dilation) == ((2, 1), ((1, 1), (0, 0)), (1, 1))
    assert (c.stride, c.padding, c.dilation) == ((1,), ((0, 0),), (1,))
