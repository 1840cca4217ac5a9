"""Training on after pruning: zeros stay zeros, whatever the optimiser.

::

    from pruning_core import keep_zeros, read_masks

    with keep_zeros(module, read_masks("net-masks.safetensors"), optimizer):
        for x, y in batches:
            optimizer.zero_grad()
            loss(module(x), y).backward()
            optimizer.step()

Setting the gradient to zero is not enough: momentum that is left from before moves a weight on, and so does decoupled
weight decay of a weight that is not zero yet. So gradients are masked where they arise, and after each step weights and
the optimiser's state are masked too. What is trained is then what the same optimiser would do to the weights that are
left, if the others were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pruning_core.errors import MaskError


class KeptZeros:
    """The hooks of `keep_zeros`; `remove` takes them away, and leaving a ``with`` block does."""

    def __init__(self, masked: Mapping[nn.Parameter, Tensor], optimizer: Optimizer) -> None:
        self._pruned, self._optimizer = {parameter: ~mask for parameter, mask in masked.items()}, optimizer
        self._hooks: list[RemovableHandle] = [
            parameter.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient, pruned=pruned: gradient.masked_fill(pruned, 0)
            )
            for parameter, pruned in self._pruned.items()
        ]
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        self.apply()

    def apply(self) -> None:
        """Set pruned weights, and what the optimiser remembers of them, to exactly zero."""
        with torch.no_grad():
            for parameter, pruned in self._pruned.items():
                parameter.masked_fill_(pruned, 0)
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(pruned, 0)
                for value in self._optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(pruned, 0)

    def remove(self) -> None:
        """Take the hooks away; the zeros stay until somebody trains them."""
        while self._hooks:
            self._hooks.pop().remove()

    def _after_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self.apply()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def keep_zeros(module: nn.Module, masks: Mapping[str, Tensor], optimizer: Optimizer) -> KeptZeros:
    """Keep the pruned weights of a module at exactly zero while an optimiser trains the others.

    Call it once the module is where it is trained (device and dtype) and its optimiser is made. Works with every
    optimiser of `torch.optim`, with momentum, weight decay, gradient clipping and accumulation.

    Args:
        module: Holds the weights by the names of the masks, as the module does that was exported.
        masks: Weight name -> bool, True = kept: a masks file of a job (`pruning_core.read_masks`).
        optimizer: Of this module.

    Returns:
        Its ``remove`` ends it; it may be used in a ``with`` statement.

    Raises:
        MaskError: A mask fits no parameter of the module. Nothing was changed.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    masked: dict[nn.Parameter, Tensor] = {}
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None or tuple(parameter.shape) != tuple(mask.shape) or mask.dtype != torch.bool:
            raise MaskError(
                f"The mask {name!r} fits no parameter of the module.",
                expected=sorted(parameters)[:50] if parameter is None else ["bool", *parameter.shape],
                received=name if parameter is None else [str(mask.dtype).removeprefix("torch."), *mask.shape],
                advice="Use the module that was exported, with the names it had then.",
            )
        kept = mask.to(parameter.device)
        masked[parameter] = masked[parameter] & kept if parameter in masked else kept
    return KeptZeros(masked, optimizer)
