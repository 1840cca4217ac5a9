"""A piece of a network linearised at a weight: Jacobian products as cheap as a run, with the derivatives kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pruning_core.network.graph import Ref, Value, names, references
from pruning_core.network.interpreter import Call, Interpreter, bind, resolve
from pruning_core.network.ops import words

Tangents = dict[str, Any]

#: Linear in their one tensor: the tangent takes its place.
_LINEAR = words(
    "view reshape _unsafe_view view_as reshape_as permute transpose t numpy_T mT flatten unflatten expand expand_as "
    "unsqueeze squeeze select slice narrow split split_with_sizes chunk unbind contiguous clone alias mean sum neg "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d dropout pixel_shuffle pixel_unshuffle roll flip tile repeat movedim"
)
#: Linear in each of two factors: where one of them depends on the weight, its tangent takes its place.
_BILINEAR = words("linear conv1d conv2d conv3d convolution mm matmul bmm mul")
#: Elementwise in one tensor: the tangent is multiplied by the derivative.
_ELEMENTWISE = words(
    "relu relu6 gelu silu mish elu celu selu leaky_relu hardtanh hardswish hardsigmoid softplus sigmoid log_sigmoid "
    "tanh threshold clamp_min clamp exp log sqrt rsqrt erf sin cos reciprocal"
)


class Linearised:
    """Some nodes of a network as a linear map of one weight, around the value it has.

    The run is made once; what each node's derivative needs is kept, so memory is that of a backward pass. `push` goes
    through the nodes once more with tangents in place of values: a product costs about as much as a run, and where a
    node has no rule of its own its derivative is computed anew by forward-mode differentiation.

    Args:
        interpreter: Of the graph.
        environment: Live values and weights; values are detached.
        leaves: Graph inputs that are the weight.
        value: What the weight is.
        nodes: Indices of the nodes to run, in order.
        outputs: Names of the values wanted. The derivative of one that the weight reaches by choices alone (which
            experts take a token) is 0.
        device: Where new tensors are made.

    Attributes:
        values: Of the outputs, detached.
        bytes: About what is kept, in bytes.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        environment: dict[str, Any],
        leaves: Sequence[str],
        value: Tensor,
        nodes: Sequence[int],
        outputs: Sequence[str],
        device: torch.device,
    ) -> None:
        self._leaves, self._outputs = leaves, tuple(outputs)
        self._weight = value.detach().requires_grad_()
        environment.update(dict.fromkeys(leaves, self._weight))
        self._rules: list[tuple[Call, Callable[[Tangents], Any]]] = []
        self._last = dict(_last_reads(interpreter, nodes))
        found: dict[str, Tensor] = {}
        self.bytes = 0
        with torch.enable_grad():
            for index in nodes:
                call = interpreter.calls[index]
                dependent = {name for name in references(call.node.arguments) if _depends(environment.get(name))}
                arguments = resolve(call, environment, device)
                interpreter.execute(index, environment, device)
                defined = {name: environment[name] for name in names(call.node.outputs)}
                if dependent and any(_depends(item) for item in defined.values()):
                    self._rules.append((call, _rule(call, arguments, dependent, defined)))
                    self.bytes += sum(t.nbytes for t in defined.values() if isinstance(t, Tensor))
                found.update((name, defined[name]) for name in outputs if name in defined)
                for name in [n for n in (*dependent, *defined) if self._last.get(n, -1) <= index]:
                    environment.pop(name, None)
        self._graph = tuple(found[name] for name in self._outputs)
        self.values = tuple(tensor.detach() for tensor in self._graph)

    def push(self, tangent: Tensor) -> tuple[Tensor, ...]:
        """Return J·v for each output: how it changes when the weight changes by v."""
        tangents: Tangents = dict.fromkeys(self._leaves, tangent)
        found: Tangents = {}
        with torch.no_grad():
            for call, rule in self._rules:
                bind(call.node, call.node.outputs, rule(tangents), tangents)
                for name in names(call.node.outputs):
                    if name in self._outputs:
                        found[name] = tangents[name]
        return tuple(
            found[name] if name in found else torch.zeros_like(value)
            for name, value in zip(self._outputs, self.values, strict=True)
        )

    def pull(self, cotangents: Sequence[Tensor], *, to_output: bool = False) -> Tensor:
        """Return Σ Jᵀ·u over the outputs: the gradient at the weight, or at the first output."""
        target = self._graph[0] if to_output else self._weight
        pairs = [(value, u) for value, u in zip(self._graph, cotangents, strict=True) if value.requires_grad]
        if not target.requires_grad or not pairs:
            return torch.zeros_like(target)
        values, given = zip(*pairs, strict=True)
        return torch.autograd.grad(values, target, given, retain_graph=True)[0]


def _last_reads(interpreter: Interpreter, nodes: Sequence[int]) -> Mapping[str, int]:
    return {name: i for i in nodes for name in references(interpreter.calls[i].node.arguments)}


def _depends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _rule(
    call: Call, arguments: dict[str, Any], dependent: set[str], defined: Mapping[str, Any]
) -> Callable[[Tangents], Any]:
    """Return the function from the tangents of a node's arguments to those of its results."""
    packet = call.node.op.split(".")[1] if call.node.op.startswith("aten.") else ""
    given = {key: value for key, value in call.node.arguments.items() if not dependent.isdisjoint(references(value))}
    plain = {key: value.name for key, value in given.items() if isinstance(value, Ref)}
    arguments = {key: _detached(value) for key, value in arguments.items()}
    if len(plain) == len(given):
        if len(plain) == 1:
            ((key, name),) = plain.items()
            if packet in _LINEAR:
                return lambda tangents: call.perform({**arguments, key: tangents[name]})
            if packet in _BILINEAR:
                fixed = {**arguments, "bias": None} if arguments.get("bias") is not None else arguments
                return lambda tangents: call.perform({**fixed, key: tangents[name]})
            if packet in _ELEMENTWISE and key in ("self", "input"):
                slope = _slope(call, arguments, key)
                return lambda tangents: tangents[name] * slope
            if packet == "batch_norm" and key == "input":
                scale = _batch_norm_scale(arguments)
                return lambda tangents: tangents[name] * scale
        if packet in ("add", "sub"):
            return _sum_rule(plain, arguments, packet, next(iter(defined.values())))
    return _general_rule(call, arguments)


def _detached(value: Any) -> Any:
    if isinstance(value, list):
        return [_detached(item) for item in value]
    return value.detach() if isinstance(value, Tensor) else value


def _slope(call: Call, arguments: dict[str, Any], key: str) -> Tensor:
    x = arguments[key].detach().requires_grad_()
    y = call.perform({**arguments, key: x})
    slope: Tensor = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    return slope


def _batch_norm_scale(arguments: Mapping[str, Any]) -> Tensor:
    scale: Tensor = torch.rsqrt(arguments["running_var"] + arguments["eps"])
    weight: Tensor | None = arguments.get("weight")
    if weight is not None:
        scale = scale * weight
    dimensions: int = arguments["input"].dim()
    return scale.view([1, -1] + [1] * (dimensions - 2))


def _sum_rule(
    plain: Mapping[str, str], arguments: Mapping[str, Any], packet: str, result: Tensor
) -> Callable[[Tangents], Tensor]:
    factor = arguments.get("alpha", 1) * (-1 if packet == "sub" else 1)
    shape, dtype = result.shape, result.dtype

    def rule(tangents: Tangents) -> Tensor:
        parts = [tangents[name] * (1 if key == "self" else factor) for key, name in plain.items()]
        total: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return total.expand(shape).to(dtype)

    return rule


def _general_rule(call: Call, arguments: dict[str, Any]) -> Callable[[Tangents], Any]:
    """Differentiate the node in forward mode, around the values it had."""
    written = call.node.arguments

    def substitute(value: Value, primal: Any, given: Mapping[str, Tensor]) -> Any:
        if isinstance(value, Ref):
            return given.get(value.name, primal)
        if isinstance(value, tuple):
            return [substitute(item, old, given) for item, old in zip(value, primal, strict=True)]
        return primal

    def primals(value: Value, primal: Any, wanted: Collection[str]) -> dict[str, Tensor]:
        if isinstance(value, Ref):
            return {value.name: primal} if value.name in wanted else {}
        found: dict[str, Tensor] = {}
        if isinstance(value, tuple):
            for item, old in zip(value, primal, strict=True):
                found.update(primals(item, old, wanted))
        return found

    def rule(tangents: Tangents) -> Any:
        around: dict[str, Tensor] = {}
        for key, value in written.items():
            around.update(primals(value, arguments[key], tangents.keys()))

        def function(given: dict[str, Tensor]) -> Any:
            result = call.perform({key: substitute(v, arguments[key], given) for key, v in written.items()})
            return tuple(result) if isinstance(result, list) else result

        return torch.func.jvp(function, (around,), ({name: tangents[name] for name in around},))[1]

    _load_forward_mode()
    return rule


@cache
def _load_forward_mode() -> None:
    """Let PyTorch load its forward-mode rules, once: in 2.13 this warns of an outdated call of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))
