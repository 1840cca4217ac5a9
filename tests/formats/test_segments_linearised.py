"""Jacobian products of windows against autograd's, for every layer of every network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_core.formats import read_model
from pruning_core.network import Network, Site
from tests.formats import zoo
from tests.formats.conftest import Exported


def window_run(network: Network, site: Site, inputs: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    window, name = network.window(site, 4), site.layer.weight
    state, _ = network.advance(network.begin(inputs), window.start)

    def run(weight: Tensor) -> Tensor:
        _, found = network.advance(state, window.stop, {name: weight}, keep=window.outputs)
        return torch.cat([found[output].flatten() for output in window.outputs])

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jvp about itself
@pytest.mark.parametrize("name", ["mlp", "cnn", "depthwise", "vit", "bert", "decoder"])
def test_products_equal_those_of_autograd(name: str, exported: Exported) -> None:
    network = read_model(exported(name))
    inputs = zoo.make(name).inputs
    generator = torch.Generator().manual_seed(0)
    for site in network.sites:
        if site.layer.uses > 1:
            continue
        run = window_run(network, site, inputs)
        window = network.window(site, 4)
        state, _ = network.advance(network.begin(inputs), window.start)
        weight = network.weights[site.layer.weight]
        linear = network.linearise(state, window, site.layer.weight, weight)
        assert torch.equal(torch.cat([y.flatten() for y in linear.values]), run(weight))
        v = torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        pushed = torch.cat([t.flatten() for t in linear.push(v)])
        assert torch.allclose(pushed, torch.func.jvp(run, (weight,), (v,))[1], rtol=1e-9, atol=1e-11), site.layer.name
        u = [torch.randn(y.shape, dtype=y.dtype, generator=generator) for y in linear.values]
        flat = torch.cat([part.flatten() for part in u])
        pulled = linear.pull(u)
        leaf = weight.clone().requires_grad_()
        assert torch.allclose(pulled, torch.autograd.grad(run(leaf), leaf, flat)[0], rtol=1e-9, atol=1e-11), (
            site.layer.name
        )
        adjoint = abs(float(flat @ pushed - (pulled * v).sum()))
        assert adjoint <= 1e-9 * (1 + abs(float(flat @ pushed)))
        assert linear.pull(u, to_output=True).shape == linear.values[0].shape
        assert weight.grad_fn is None
        assert not weight.requires_grad


class Routed(nn.Module):
    """The router says only which of two branches counts: the output depends on it, and has no derivative in it."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.one, self.other = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.router(x).argmax(1, keepdim=True) == 0
        return self.one(x * first) + self.other(x * ~first)


def test_what_only_choices_reach_has_the_derivative_zero(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    zoo.export(zoo.Model(Routed().double().eval(), (x,), None), tmp_path / "m.pt2", dynamic=False)
    network = read_model(tmp_path / "m.pt2")
    site = next(site for site in network.sites if site.layer.name == "router")
    window = network.window(site, 4)
    state, _ = network.advance(network.begin((x,)), window.start)
    assert len(window.outputs) > 1
    weight = network.weights[site.layer.weight]
    linear = network.linearise(state, window, site.layer.weight, weight)
    own, *others = linear.push(torch.ones_like(weight))
    assert torch.allclose(own, x.sum(1, keepdim=True).expand(6, 2))
    assert all(not t.any() for t in others)
    ones = [torch.ones_like(y) for y in linear.values]
    assert torch.allclose(linear.pull(ones), x.sum(0).expand(2, 4))
    assert torch.equal(linear.pull(ones, to_output=True), torch.ones(6, 2, dtype=torch.float64))
