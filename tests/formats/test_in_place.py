"""Writes in place, regions, operations with kernels of their own: what eager computes, with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning_core.errors import UnsupportedModel
from pruning_core.formats import read_model
from tests.formats import zoo

Step = Callable[[Tensor, Tensor], Any]


def _select(y: Tensor, x: Tensor) -> Tensor:
    y[:, 1] = x[:, 0]
    y[0].mul_(2)
    return y


def _slices(y: Tensor, x: Tensor) -> Tensor:
    left, right = y[:, :3], y[:, 3:]
    left.add_(right)
    right[:, ::2] = 7.0
    return y * left.sum()


def _read_between(y: Tensor, x: Tensor) -> Tensor:
    part = y.t()[2]
    before = part * 3
    y.mul_(2)
    y[:, 2].sub_(1)
    return before.sum() + part.sum() * 5 + y


def _split(y: Tensor, x: Tensor) -> Tensor:
    z = torch.ones(4, 6, dtype=torch.float64).cumsum(1)  # autograd itself refuses writes to one of several views
    a, b, c = z.split(2, 1)
    b.copy_(a * c)
    first, second = z.view(4, 2, 3).unbind(1)
    second += first
    p, q = z.split_with_sizes([2, 4], 1)
    q.clamp_(-1, 12)
    return y * z + torch.cat([p, b, a], 1)


def _shapes(y: Tensor, x: Tensor) -> Tensor:
    y.unsqueeze(1).squeeze(1).transpose(0, 1).view(2, 3, 4)[1].neg_()
    y.unflatten(1, (2, 3))[:, 0].fill_(0.5)
    y.narrow(1, 4, 1).mul_(3)
    torch.diagonal(y, 1).zero_()
    return y


def _promoted(y: Tensor, x: Tensor) -> Tensor:
    count = torch.zeros(4, 6, dtype=torch.int64)
    count[:, 0] = 2
    count += 1
    half = torch.zeros_like(y, dtype=torch.float32)
    half[:, :2] = y[:, :2]
    return y * count + half


def _indexed(y: Tensor, x: Tensor) -> Tensor:
    y[:, torch.tensor([0, 3])] = x[:, :2]
    y[y.detach() > 1] = 0.25
    y.index_add_(1, torch.tensor([1, 1]), x[:, :2])
    y.masked_fill_(y.detach() < -1, -1.0)
    y.scatter_(1, torch.tensor([[5], [5], [4], [4]]), 9.0)
    return y


def _broadcast(y: Tensor, x: Tensor) -> Tensor:
    y[1:3] = x[0]
    y[:, 2:4].copy_(x[0, 0])
    y += y.expand(4, 6).mean(0)
    return functional.dropout(y, training=False, inplace=True)


def _no_grad_buffer(y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = torch.ones(4, 6, dtype=torch.float64)
        mask[:, 2:].mul_(0.5)
        mask.view(-1)[:3] = 0
    return y * mask


def _products(y: Tensor, x: Tensor) -> Tensor:
    z = y @ y.mT  # as Falcon: what a product is made of is read later
    z += x[:, :4]
    w = torch.einsum("ij,kj->ik", y, x).reshape(4, 2, 2)  # as Funnel
    w[:, 0].mul_(3)
    return (z + w.reshape(4, 4)) @ y


def _asserted(y: Tensor, x: Tensor) -> Tensor:
    count = (x > 0).sum().item()  # as XLM and MT5: numbers out of tensors that are only checked
    torch._check(count <= x.numel())
    torch._check(torch.unique_consecutive(x[:, 0] > 0).shape[0] <= 4)
    return y


PROGRAMS: dict[str, Step] = {
    f.__name__.strip("_"): f
    for f in (
        *(_select, _slices, _read_between, _split, _shapes),
        *(_promoted, _indexed, _broadcast, _no_grad_buffer),
        *(_products, _asserted),
    )
}


class Program(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.fc, self.out, self.step = nn.Linear(6, 6), nn.Linear(6, 3), step

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.out(self.step(y, x)[..., :6].tanh())


def agrees(module: nn.Module, *inputs: Tensor, path: Path, tolerance: float = 1e-11) -> None:
    model = zoo.Model(module.eval(), inputs, None)
    zoo.export(model, path / "m.pt2", dynamic=False)
    network = read_model(path / "m.pt2")
    wanted = module(*inputs)
    leaves = {name: w.clone().requires_grad_() for name, w in network.weights.items() if w.is_floating_point()}
    (got,) = network.run(inputs, leaves)
    assert got.dtype == wanted.dtype
    assert torch.allclose(got, wanted, rtol=tolerance, atol=tolerance)
    spread = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view(got.shape)
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad((wanted * spread).sum(), [*parameters.values()], materialize_grads=True)
    found = torch.autograd.grad((got * spread).sum(), [leaves[n] for n in parameters], materialize_grads=True)
    for name, a, b in zip(parameters, found, expected, strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("name", PROGRAMS)
def test_writes_through_views(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(Program(PROGRAMS[name]).double(), torch.randn(4, 6, dtype=torch.float64), path=tmp_path)


@pytest.mark.parametrize("left", [(6,), (1, 6), (4, 6), (2, 4, 6), (2, 1, 4, 6)])
@pytest.mark.parametrize("right", [(6,), (6, 1), (6, 5), (2, 6, 3), (2, 1, 6, 3)])
def test_a_product_is_never_a_view_of_what_it_is_made_of(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = torch.randn(left), torch.randn(right)
    products = [torch.ops.aten.matmul.default(a, b), torch.ops.aten.einsum.default("...i,j->...ij", [a, b.flatten()])]
    if b.dim() < 3:
        products.append(torch.ops.aten.tensordot.default(a, b, [a.dim() - 1], [0]))
    given = {t.untyped_storage().data_ptr() for t in (a, b)}
    assert not given & {t.untyped_storage().data_ptr() for t in products}


def _without_gradient(y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y.mul_(2)
    return y


def _of_perhaps_a_copy(y: Tensor, x: Tensor) -> Tensor:
    other = y.t().reshape(3, 8)
    y.mul_(2)
    return other.reshape(4, 6) + y


def _of_an_expanded_input(y: Tensor, x: Tensor) -> Tensor:
    x.view(-1)[0] = 1.0
    return y + x


@pytest.mark.parametrize("step", [_without_gradient, _of_perhaps_a_copy, _of_an_expanded_input])
def test_writes_with_no_certain_meaning_are_refused(step: Step, tmp_path: Path) -> None:
    model = zoo.Model(Program(step).double(), (torch.randn(4, 6, dtype=torch.float64),), None)
    zoo.export(model, tmp_path / "m.pt2", dynamic=False)
    with pytest.raises(UnsupportedModel, match=r"in place|own state"):
        read_model(tmp_path / "m.pt2")


class Spelled(nn.Module):
    """The other names that operations have, and their other forms: torch.export keeps them as they were written."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.multiply(torch.absolute(self.fc(x)), 0.1) % 0.9
        z = torch.arccos(y) + torch.arcsin(y) + torch.arctan(y) + torch.arctanh(y) + torch.arcsinh(y)
        z = z + torch.arccosh(y + 2) + torch.arctan2(y, x) + torch.negative(y) + torch.subtract(y, 2) + y.float_power(2)
        z = z + torch.divide(y, 3) + torch.true_divide(y, 7) + torch.divide(y, x, rounding_mode="floor") + torch.fix(z)
        z = z + torch.fmax(y, x) + torch.fmin(y, x) + torch.special.expit(z)
        flags = torch.less_equal(y, x) ^ torch.greater_equal(y, 0.3) ^ torch.not_equal(y, x) ^ torch.isclose(y, x)
        flags = flags ^ torch.less_equal(y, 0.1) ^ torch.greater_equal(y, x) ^ torch.not_equal(y, 0.2)
        z = torch.where(flags ^ torch.isposinf(y) ^ torch.isneginf(y), z, y)
        z = z + torch.addr(y, y[:, 0], x[0]) + torch.ger(y[:, 1], x[1]) + torch.linalg.matmul(y, self.fc.weight)
        z = z + torch.std(y) + torch.var(x) + torch.nansum(y) + torch.nanmean(y) + torch.trace(y) + torch.dist(y, x)
        z = z + functional.mse_loss(y, x) + functional.l1_loss(y, x, reduction="none") + torch.var_mean(y)[0]
        return torch.vstack([z, torch.dstack([y, z])[..., 0]])


def test_other_names_of_operations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(Spelled().double(), torch.randn(4, 6, dtype=torch.float64), path=tmp_path)


class Autocast(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc1, self.fc2, self.options = nn.Linear(6, 8), nn.Linear(8, 4), options

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", **self.options):
            y = self.fc1(x)
            y[:, 0].mul_(2)
            y = y / (y.abs().amax() + 1)
        return self.fc2(y.float())


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"enabled": False}, {}], ids=["bfloat16", "off", "own"])
def test_autocast_regions(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(Autocast(**options), torch.randn(4, 6), path=tmp_path, tolerance=1e-6)


class Bags(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 6, dtype=torch.float64, **options), nn.Linear(6, 3).double()

    def forward(self, words: Tensor, starts: Tensor) -> Tensor:
        return self.head(self.bag(words, starts))


@pytest.mark.parametrize(
    "options", [{"mode": "sum"}, {"mode": "mean", "padding_idx": 2}, {"mode": "mean", "include_last_offset": True}]
)
def test_bags_of_embeddings(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = torch.tensor([1, 2, 2, 8, 0, 5, 2])
    agrees(Bags(**options), words, torch.tensor([0, 0, 3, 4, 5, 5, 7]), path=tmp_path)


class Standardised(nn.Module):
    """BiT's convolution: the weight standardised by a batch norm in train mode that keeps nothing."""

    def __init__(self, of_data: bool) -> None:
        super().__init__()
        self.weight, self.of_data = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64)), of_data

    def forward(self, x: Tensor) -> Tensor:
        if self.of_data:
            x = functional.batch_norm(x, None, None, training=True)
        weight = functional.batch_norm(self.weight.reshape(1, 4, -1), None, None, training=True)
        return functional.conv2d(x, weight.reshape_as(self.weight))


def test_batch_statistics_of_a_weight_but_not_of_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    agrees(Standardised(of_data=False), x, path=tmp_path, tolerance=1e-9)
    zoo.export(zoo.Model(Standardised(of_data=True), (x,), None), tmp_path / "m.pt2", dynamic=False)
    with pytest.raises(UnsupportedModel, match="train mode"):
        read_model(tmp_path / "m.pt2")
