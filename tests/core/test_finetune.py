"""Zeros stay zeros through every optimiser, and the weights that are left go where they would go alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim import Optimizer

from pruning_core import keep_zeros
from pruning_core.errors import MaskError

Make = Callable[[Iterable[Any]], Optimizer]
OPTIMISERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def problem() -> tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    masks = {name: torch.rand_like(w) > 0.7 for name, w in module.named_parameters() if w.dim() > 1}
    return module, masks, torch.randn(32, 1, 6, 6), torch.randint(0, 5, (32,))


def train(optimizer: Optimizer, loss: Callable[[], Tensor], steps: int = 6) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS.keys())
def test_zeros_stay_and_the_others_are_trained_as_if_alone(make: Make) -> None:
    module, masks, x, y = problem()
    # The oracle: weights enter the loss multiplied by their mask, so that what is pruned has no gradient at all.
    alone = copy.deepcopy(module)
    with torch.no_grad():
        for name, weight in alone.named_parameters():
            weight.mul_(masks.get(name, torch.ones(())))
    own = dict(alone.named_parameters())

    def oracle() -> Tensor:
        weights = {name: weight * masks.get(name, torch.ones(())) for name, weight in own.items()}
        return functional.cross_entropy(functional_call(alone, weights, (x,)), y)

    train(make(alone.parameters()), oracle)
    optimizer = make(module.parameters())
    with keep_zeros(module, masks, optimizer):
        train(optimizer, lambda: functional.cross_entropy(module(x), y))
    for name, weight in module.named_parameters():
        if name in masks:
            assert not weight[~masks[name]].any()
            assert weight[masks[name]].ne(0).all()
        torch.testing.assert_close(weight, own[name], rtol=1e-5, atol=1e-7)


def test_momentum_from_before_moves_nothing() -> None:
    module, masks, x, y = problem()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    train(optimizer, lambda: functional.cross_entropy(module(x), y))
    with keep_zeros(module, masks, optimizer):
        train(optimizer, lambda: functional.cross_entropy(module(x), y))
        assert not any(dict(module.named_parameters())[name][~mask].any() for name, mask in masks.items())
    train(optimizer, lambda: functional.cross_entropy(module(x), y), steps=1)
    assert any(dict(module.named_parameters())[name][~mask].any() for name, mask in masks.items()), "it was removed"


def test_a_step_that_evaluates_several_times() -> None:
    module, masks, x, y = problem()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.5, max_iter=5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()
        return loss.item()

    with keep_zeros(module, masks, optimizer):
        before = closure()
        optimizer.step(closure)
        assert closure() < before
    assert not any(dict(module.named_parameters())[name][~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize(
    ("name", "mask"), [("0.bias.more", torch.ones(4, dtype=torch.bool)), ("3.weight", torch.ones(5, dtype=torch.bool))]
)
def test_masks_that_do_not_fit_change_nothing(name: str, mask: Tensor) -> None:
    module, masks, _, _ = problem()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(MaskError):
        keep_zeros(module, {**masks, name: mask}, torch.optim.SGD(module.parameters(), lr=0.1))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_tied_weights_are_masked_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    module = nn.Sequential(first, second)
    masks = {"0.weight": torch.eye(4, dtype=torch.bool)}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with keep_zeros(module, masks, optimizer):
        train(optimizer, lambda: module(torch.ones(2, 4)).square().sum())
    assert not second.weight[~masks["0.weight"]].any()
