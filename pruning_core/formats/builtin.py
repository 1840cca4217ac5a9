"""The built-in architectures, as graphs over weights with the usual state-dict names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.network.graph import Graph, Node, Ref, Value
from pruning_core.network.network import Input, Network

Shape = tuple[int, ...]
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Builder:
    """Collects the nodes of a graph; every method adds one operation and returns its result.

    Args:
        weights: State-dict name -> tensor.
        name: Of the architecture, for messages.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        self._given = weights
        self._name = name
        self._used: dict[str, str] = {}
        self._nodes: list[Node] = []

    def weight(self, name: str, shape: Shape) -> Ref:
        """Return a weight that must be there with this shape.

        Raises:
            ModelError: It is not.
        """
        found = self._given.get(name)
        if found is None or tuple(found.shape) != shape:
            raise ModelError(
                f"The weights do not fit the architecture {self._name!r}: {name!r} is "
                + ("missing." if found is None else "of another shape."),
                expected={name: list(shape)},
                received=None if found is None else list(found.shape),
            )
        self._used[f"w_{name}"] = name
        return Ref(f"w_{name}")

    def optional(self, name: str, shape: Shape) -> Ref | None:
        """Return a weight that may be absent."""
        return self.weight(name, shape) if name in self._given else None

    def apply(self, op: str, /, **arguments: Value) -> Ref:
        """Add a node that returns one tensor."""
        name = f"{op.split('.')[1]}_{len(self._nodes)}"
        self._nodes.append(Node(name=name, op=op, arguments=arguments, outputs=name))
        return Ref(name)

    def linear(self, x: Ref, name: str, size: Shape) -> Ref:
        """Add a linear layer of (out, in) features; its bias may be absent."""
        bias = self.optional(f"{name}.bias", size[:1])
        return self.apply("aten.linear.default", input=x, weight=self.weight(f"{name}.weight", size), bias=bias)

    def convolution(self, x: Ref, name: str, size: Shape, stride: int = 1) -> Ref:
        """Add a convolution without bias, (out, in, k, k), padded by k // 2."""
        return self.apply(
            "aten.conv2d.default",
            input=x,
            weight=self.weight(f"{name}.weight", size),
            bias=None,
            stride=(stride, stride),
            padding=(size[-1] // 2, size[-1] // 2),
        )

    def batch_norm(self, x: Ref, name: str, channels: int) -> Ref:
        """Add an eval-mode batch norm."""
        kinds = ("weight", "bias", "running_mean", "running_var")
        weights = {kind: self.weight(f"{name}.{kind}", (channels,)) for kind in kinds}
        settings: dict[str, Value] = {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}
        self.optional(f"{name}.num_batches_tracked", ())
        return self.apply("aten.batch_norm.default", input=x, **weights, **settings)

    def relu(self, x: Ref) -> Ref:
        """Add a ReLU."""
        return self.apply("aten.relu.default", self=x)

    def network(self, output: Ref, shape: Shape) -> Network:
        """Return the network with one input ``x`` of this shape, the batch left out.

        Raises:
            ModelError: The file has weights that the architecture has no place for, or mixed dtypes.
        """
        if extra := sorted(self._given.keys() - self._used.values()):
            raise ModelError(
                f"The architecture {self._name!r} has no place for the weight {extra[0]!r}.", received=extra[:20]
            )
        dtypes = {tensor.dtype for name, tensor in self._given.items() if not name.endswith("num_batches_tracked")}
        if len(dtypes) != 1 or not (dtype := dtypes.pop()).is_floating_point:
            raise ModelError("The weights should have one floating-point dtype.", received=sorted(map(str, dtypes)))
        graph = Graph(weights=self._used, inputs=("x",), nodes=self._nodes, outputs=(output.name,))
        parameters = [name for name in self._given if not name.endswith(_BUFFERS)]
        inputs = [Input(name="x", dtype=dtype, shape=(None, *shape))]
        return Network(graph=graph, weights=self._given, parameters=parameters, inputs=inputs)


def _mlpnet(make: Builder) -> Network:
    """MLPNet for MNIST: 784 -> 40 -> 20 -> 10 with ReLU (32 360 weights without biases)."""
    x = make.relu(make.linear(Ref("x"), "fc1", (40, 784)))
    x = make.relu(make.linear(x, "fc2", (20, 40)))
    return make.network(make.linear(x, "fc3", (10, 20)), (784,))


def _resnet20(make: Builder) -> Network:
    """ResNet20 for CIFAR-10 (He et al. 2016, section 4.2), its shortcuts 1x1 convolutions with batch norm."""
    x = make.relu(make.batch_norm(make.convolution(Ref("x"), "conv1", (16, 3, 3, 3)), "bn1", 16))
    width = 16
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", channels // width
            y = make.convolution(x, f"{name}.conv1", (channels, width, 3, 3), stride)
            y = make.relu(make.batch_norm(y, f"{name}.bn1", channels))
            y = make.convolution(y, f"{name}.conv2", (channels, channels, 3, 3))
            y = make.batch_norm(y, f"{name}.bn2", channels)
            if stride != 1:
                x = make.convolution(x, f"{name}.downsample.0", (channels, width, 1, 1), stride)
                x = make.batch_norm(x, f"{name}.downsample.1", channels)
            x = make.relu(make.apply("aten.add.Tensor", self=y, other=x))
            width = channels
    x = make.apply("aten.mean.dim", self=x, dim=(2, 3))
    return make.network(make.linear(x, "fc", (10, 64)), (3, 32, 32))


ARCHITECTURES: dict[str, Callable[[Builder], Network]] = {"mlpnet-mnist": _mlpnet, "resnet20-cifar10": _resnet20}


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Network:
    """Return the network of a built-in architecture.

    Args:
        config: ``{"architecture": name, ...}``; other members are not looked at.
        weights: State-dict name -> tensor.

    Raises:
        UnsupportedModel: The architecture is not built in.
        ModelError: The weights do not fit it.
    """
    name = config.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"The architecture {str(name)[:80]!r} is not built in.",
            expected=sorted(ARCHITECTURES),
            received=str(name)[:80],
            advice="Any other model can be sent as a .pt2 archive: torch.export.save(torch.export.export(...), path).",
        )
    for key, tensor in weights.items():
        if tensor.dtype == torch.bool:
            raise ModelError(f"The weight {key!r} is of dtype bool.", expected="floating-point weights")
    return ARCHITECTURES[name](Builder(weights, name))


def recognise(weights: Mapping[str, Tensor]) -> Network:
    """Return the network of the one built-in architecture that has exactly these weights, by name and shape.

    Args:
        weights: State-dict name -> tensor.

    Raises:
        UnsupportedModel: None has, or more than one.
    """
    fits: dict[str, Network] = {}
    reasons: dict[str, str] = {}
    for name in ARCHITECTURES:
        try:
            fits[name] = build({"architecture": name}, weights)
        except ModelError as error:
            reasons[name] = error.detail
    if len(fits) == 1:
        return next(iter(fits.values()))
    raise UnsupportedModel(
        "The file does not say which architecture its weights are for, and they are not those of one that is built in."
        if not fits
        else "The weights fit more than one built-in architecture.",
        expected=reasons or sorted(fits),
        received=sorted(weights)[:20],
        advice="Name it: safetensors with metadata 'config': '{\"architecture\": ...}'. Any other model can be sent as "
        "a .pt2 archive: torch.export.save(torch.export.export(...), path).",
    )
