"""Latency in 2:4 kernels: NVIDIA's sparse tensor cores, through PyTorch's semi-structured tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pruning_core.network import Network
from pruning_core.report import RuntimeReport
from worker.runtimes import compare, run_batch, runtime_report

#: Ampere; earlier GPUs have no sparse tensor cores.
_CAPABILITY = (8, 0)
#: Of the outputs, relative: both sides compute in half precision and add up in another order.
_TOLERANCE = 1e-2


def semi_structured(dense: Network, pruned: Network, inputs: Sequence[Tensor], seconds: float) -> RuntimeReport | None:
    """Run a batch in half precision: dense kernels on the dense weights, 2:4 kernels on the pruned ones.

    Args:
        dense: The network as it was sent,
        pruned: and as it became, both on one device.
        inputs: One batch, there too.
        seconds: At most about so long.

    Returns:
        What it took; None if the device has no such kernels, no linear layer is 2:4 and of a shape they take, or the
        outputs differ from those of dense kernels by more than rounding.
    """
    if pruned.device.type != "cuda" or torch.cuda.get_device_capability(pruned.device) < _CAPABILITY:
        return None
    from torch.sparse import to_sparse_semi_structured

    return timed(dense, pruned, inputs, seconds, to_sparse_semi_structured)


def timed(
    dense: Network, pruned: Network, inputs: Sequence[Tensor], seconds: float, pack: Callable[[Tensor], Tensor]
) -> RuntimeReport | None:
    """Measure with a packing given: half-precision (out, in) matrix -> tensor whose product uses 2:4 kernels.

    Raises nothing for what the packing or the kernels refuse.
    """
    halves = {name: pruned.weights[name].half() for name in two_of_four(pruned)}
    packed = _packed(halves, pack)
    if not packed:
        return None
    before = {name: dense.weights[name].half() for name in packed}
    try:
        wanted, got = _run(pruned, inputs, {name: halves[name] for name in packed}), _run(pruned, inputs, packed)
        if not all(_close(one, other) for one, other in zip(wanted, got, strict=True)):
            return None
        timing = compare(partial(_run, dense, inputs, before), partial(_run, pruned, inputs, packed), seconds)
    except (RuntimeError, NotImplementedError):  # a kernel does not take what this network does with the weight
        return None
    return runtime_report("2:4 kernels (float16)", torch.__version__, timing)


def two_of_four(network: Network) -> list[str]:
    """Return the weights of linear layers in which every four consecutive inputs have two zeros or more."""
    found = []
    for layer in network.layers:
        if layer.kind == "linear" and layer.shape[1] % 4 == 0:
            groups = network.weights[layer.weight].reshape(-1, 4)
            if bool((groups.count_nonzero(dim=1) <= 2).all()):
                found.append(layer.weight)
    return found


def _packed(halves: Mapping[str, Tensor], pack: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    packed = {}
    for name, weight in halves.items():
        try:
            packed[name] = pack(weight)
        except (RuntimeError, NotImplementedError):  # not a multiple of the kernel's tile: stays dense
            continue
    return packed


def _run(network: Network, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.autocast(network.device.type, dtype=torch.float16):
        return run_batch(network, inputs, weights)


def _close(wanted: Tensor, got: Tensor) -> bool:
    difference, scale = (got.float() - wanted.float()).norm(), wanted.float().norm()
    return bool(difference <= _TOLERANCE * scale)
