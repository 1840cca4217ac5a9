"""What is prunable and what is not, in-place operations, and the allowlist itself."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import read_model
from pruning_core.network import Graph, Input, Network, Node, Ref, ops
from tests.formats import zoo
from tests.formats.conftest import Exported


def network_of(module: nn.Module, *inputs: Tensor, path: Path) -> Network:
    zoo.export(zoo.Model(module.eval(), inputs, None), path / "m.pt2", dynamic=False)
    network = read_model(path / "m.pt2")
    wanted = module(*inputs)
    assert torch.allclose(network.run(inputs)[0], wanted, atol=1e-6)
    return network


def test_layers_in_execution_order(exported: Exported) -> None:
    layers = read_model(exported("cnn")).layers
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("stem.0", "conv"),
        ("blocks.0.conv1", "conv"),
        ("blocks.0.conv2", "conv"),
        ("blocks.1.conv1", "conv"),
        ("blocks.1.conv2", "conv"),
        ("blocks.1.downsample.0", "conv"),
        ("fc", "linear"),
    ]
    assert layers[0].shape == (8, 3, 3, 3)
    assert {layer.name: layer.groups for layer in read_model(exported("depthwise")).layers}["body.3"] == 8
    assert {layer.name: layer.uses for layer in read_model(exported("mlp")).layers} == {"fc1": 1, "fc2": 2, "fc3": 1}


def test_tied_weights_are_one_entry(exported: Exported) -> None:
    network = read_model(exported("bert"))
    assert "words.weight" in network.weights
    assert "decoder.weight" not in network.weights
    assert next(layer for layer in network.layers if layer.name == "words").shape == (23, 12)
    assert network.unprunable == {
        "positions.weight": "is used by aten.embedding.default, which is not a linear or convolution layer"
    }


def test_weights_that_are_stored_transposed_or_not_in_layers_are_reported(exported: Exported) -> None:
    network = read_model(exported("transformers_gpt2"))
    assert [layer.kind for layer in network.layers] == ["linear"]  # the head; GPT-2's other matrices are (in, out)
    why = network.unprunable["model.transformer.h.0.attn.c_attn.weight"]
    assert "aten.addmm.default" in why
    assert "put an nn.Linear" in why
    vit = read_model(exported("vit"))
    assert vit.unprunable.keys() == {"token", "position"}
    assert {"patch", "attention.in_proj_weight", "attention.out_proj", "head"} < {layer.name for layer in vit.layers}


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.scaled, self.turned = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.unused = nn.Parameter(torch.randn(2, 2))
        self.up = nn.ConvTranspose1d(6, 2, 3)
        self.register_buffer("fixed", torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(x) + functional.linear(x, self.scaled * 2) + functional.linear(x, self.fixed)
        return self.up((x @ self.turned.t()).unsqueeze(2))


def test_weights_that_reach_a_layer_through_a_computation_are_reported(tmp_path: Path) -> None:
    network = network_of(Computed(), torch.randn(4, 6), path=tmp_path)
    assert [layer.name for layer in network.layers] == ["turned"]  # a transposition is not a computation
    reasons = network.unprunable
    assert "through a computation (aten.mul.Tensor)" in reasons["scaled"]
    assert "_weight_norm" in reasons["normed.parametrizations.weight.original1"]
    assert "conv_transpose1d" in reasons["up.weight"]
    assert reasons["unused"] == "is not used by the graph"
    assert "fixed" not in reasons  # a buffer


def test_a_decomposed_export_has_the_same_layers(exported: Exported, tmp_path: Path) -> None:
    model = zoo.make("cnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(zoo.load(exported("cnn")).run_decompositions(), tmp_path / "core.pt2")
    network, plain = read_model(tmp_path / "core.pt2"), read_model(exported("cnn"))
    assert network.layers == plain.layers
    assert torch.allclose(network.run(model.inputs)[0], plain.run(model.inputs)[0], rtol=1e-11)


class Writes(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(6, 6)
        self.register_buffer("state", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.kind == "chain":
            y.relu_().add_(x).mul_(2)
            return y + 1
        if self.kind == "view-dead":
            z = y.view(-1, 3)
            z.mul_(3)
            return z * 2
        if self.kind == "view-live":
            y.view(-1, 3).mul_(3)
            return y
        if self.kind == "slice":
            y[:, :2] = 0
            return y
        if self.kind == "input":
            return x.add_(1) + y
        self.state.add_(1)
        return y + self.state


@pytest.mark.parametrize("kind", ["chain", "view-dead", "view-live", "slice"])
def test_in_place_operations(kind: str, tmp_path: Path) -> None:
    network_of(Writes(kind), torch.randn(4, 6), path=tmp_path)


@pytest.mark.parametrize("kind", ["input", "state"])
def test_in_place_operations_on_inputs_and_state_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"in place|own state"):
        network_of(Writes(kind), torch.randn(4, 6), path=tmp_path)


def test_the_allowlist_holds_only_pure_operations_that_exist() -> None:
    for op in ops.ALLOWED_ATEN | {name for name in ops.ALLOWED if name.startswith("aten.")}:
        schema = ops.overload(op)._schema
        assert not schema.is_mutable, op
        assert not any("Generator" in str(argument.type) for argument in schema.arguments), op
    for op in ("aten.from_file.default", "aten.relu_.default", "aten.rand.default", "torch.sym_max"):
        with pytest.raises(KeyError):
            ops.overload(op)


def graph(*nodes: Node, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return Graph(weights={"w": "w"}, inputs=("x",), nodes=nodes, outputs=outputs)


def test_a_graph_frees_each_value_after_its_last_use() -> None:
    a = Node(name="a", op="aten.relu.default", arguments={"self": Ref("x")}, outputs="a")
    b = Node(name="b", op="aten.add.Tensor", arguments={"self": Ref("a"), "other": Ref("a")}, outputs="y")
    assert graph(a, b).last_uses == (("x",), ("a",))
    with pytest.raises(ModelError, match="before it is defined"):
        graph(b, a)
    with pytest.raises(ModelError, match="twice"):
        graph(a, a, b)


def test_inputs_without_a_common_batch_are_refused() -> None:
    node = Node(name="a", op="aten.relu.default", arguments={"self": Ref("x")}, outputs="y")
    weights = {"w": torch.zeros(1)}
    for shape in ((), None):
        inputs = [] if shape is None else [Input(name="x", dtype=torch.float32, shape=shape)]
        with pytest.raises(UnsupportedModel, match=r"batch dimension|no tensor"):
            Network(graph=graph(node), weights=weights, parameters=["w"], inputs=inputs)
    with pytest.raises(ModelError, match="no weight 'w'"):
        Network(graph=graph(node), weights={}, parameters=[], inputs=[])
