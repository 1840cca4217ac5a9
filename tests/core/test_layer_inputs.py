"""Patches and Grams against explicit oracles in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pruning_core.calibration import Dataset
from pruning_core.curvature.layer_inputs import layer_grams, layer_patches
from pruning_core.network import Graph, Input, Layer, Network, Node, Ref, Site
from pruning_core.pipeline import finish


def network_of(op: str, weight: Tensor, x: Tensor, *, batch: int | None = None, **arguments: object) -> Network:
    node = Node(name="y", op=op, arguments={"input": Ref("x"), "weight": Ref("w"), **arguments}, outputs="y")
    graph = Graph(weights={"w": "w"}, inputs=("x",), nodes=[node], outputs=("y",))
    inputs = [Input(name="x", dtype=x.dtype, shape=(batch, *x.shape[1:]))]
    return Network(graph=graph, weights={"w": weight}, parameters=["w"], inputs=inputs)


CONVOLUTIONS = {
    "plain": (4, 6, (3, 3), {"padding": (1, 1)}),
    "strided": (4, 6, (3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "dilated": (4, 6, (3, 2), {"dilation": (2, 3), "padding": (1, 2)}),
    "grouped": (4, 6, (3, 3), {"groups": 2, "padding": (1, 1)}),
    "depthwise": (4, 4, (3, 3), {"groups": 4, "stride": (2, 1), "dilation": (1, 2)}),
    "pointwise": (4, 6, (1, 1), {"stride": (2, 2)}),
    "same": (4, 6, (3, 2), {"padding": "same", "dilation": (1, 3)}),
    "1d": (4, 6, (3,), {"stride": (2,), "padding": (1,)}),
    "3d": (2, 3, (2, 1, 2), {"padding": (1, 0, 1)}),
}


def convolution(name: str) -> tuple[Network, Site, Tensor]:
    torch.manual_seed(0)
    channels, out, kernel, arguments = CONVOLUTIONS[name]
    x = torch.randn(5, channels, *(7, 6, 5)[: len(kernel)], dtype=torch.float64)
    weight = torch.randn(out, channels // arguments.get("groups", 1), *kernel, dtype=torch.float64)
    kind = "padding" if isinstance(arguments.get("padding"), str) else "default"
    network = network_of(f"aten.conv{len(kernel)}d.{kind}", weight, x, **arguments)
    return network, network.sites[0], x


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_convolution_is_a_product_with_its_patches(name: str) -> None:
    network, site, x = convolution(name)
    y = network.run((x,))[0]
    weight = network.weights["w"].reshape(site.groups, -1, layer_patches(site, x).shape[2])
    product = torch.einsum("pgd,god->gop", layer_patches(site, x), weight).flatten(0, 1)
    assert torch.allclose(product, y.transpose(0, 1).flatten(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "strided", "dilated", "grouped", "depthwise"])
def test_gram_equals_the_explicit_unfolding(name: str) -> None:
    network, site, x = convolution(name)
    _, _, kernel, arguments = CONVOLUTIONS[name]
    settings = {key: arguments[key] for key in ("stride", "padding", "dilation") if key in arguments}
    unfolded = functional.unfold(x, kernel, **settings)  # (N, in·kernel, L)
    rows = unfolded.transpose(1, 2).flatten(0, 1).unflatten(1, (site.groups, -1))
    gram = finish(layer_grams(network, Dataset(inputs=(x,)), network.layers, batch=2))["w"]
    assert gram.positions == len(rows)
    assert torch.allclose(gram.H, torch.einsum("pgi,pgj->gij", rows, rows) / len(rows), rtol=1e-12, atol=1e-12)
    assert torch.allclose(gram.squares, rows.square().sum(0))


def test_a_weight_with_several_uses_gets_the_sum_over_them() -> None:
    torch.manual_seed(0)
    first = Node(name="a", op="aten.linear.default", arguments={"input": Ref("x"), "weight": Ref("w")}, outputs="a")
    second = Node(name="b", op="aten.linear.default", arguments={"input": Ref("a"), "weight": Ref("w")}, outputs="b")
    w, x = torch.randn(6, 6, dtype=torch.float64), torch.randn(8, 3, 6, dtype=torch.float64)
    graph = Graph(weights={"w": "w"}, inputs=("x",), nodes=[first, second], outputs=("b",))
    network = Network(
        graph=graph,
        weights={"w": w},
        parameters=["w"],
        inputs=[Input(name="x", dtype=x.dtype, shape=(None, 3, 6))],
    )
    gram = finish(layer_grams(network, Dataset(inputs=(x,)), network.layers, {"w": 2 * w}, batch=3))["w"]
    rows = torch.cat([x.flatten(0, 1), (x @ (2 * w).T).flatten(0, 1)])
    assert gram.positions == 48
    assert torch.allclose(gram.H[0], rows.T @ rows / 48)


@pytest.mark.parametrize(("count", "used"), [(4, 4), (6, 4), (3, 4)])
def test_a_fixed_batch_is_always_full(count: int, used: int) -> None:
    w, x = torch.randn(2, 6), torch.randn(count, 6)
    network = network_of("aten.linear.default", w, x, batch=4)
    gram = finish(layer_grams(network, Dataset(inputs=(x,)), network.layers))["w"]
    rows = x[torch.arange(used) % count]
    assert gram.positions == used
    assert gram.H.dtype == torch.float32
    assert torch.allclose(gram.H[0], rows.T @ rows / used, atol=1e-6)


def test_layers_that_are_not_asked_for_are_left_out() -> None:
    w, x = torch.randn(2, 6), torch.randn(3, 6)
    network = network_of("aten.linear.default", w, x)
    layers: tuple[Layer, ...] = ()
    assert finish(layer_grams(network, Dataset(inputs=(x,)), layers)) == {}
