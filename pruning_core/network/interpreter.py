"""Runs a graph node by node. Differentiable, because every node is an ordinary aten call on ordinary tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, PruningError
from pruning_core.network.allocation import check_allocation
from pruning_core.network.graph import Graph, Node, Outputs, OwnDevice, Ref, Value, names
from pruning_core.network.kernels import KERNELS, SCALAR_OPS
from pruning_core.network.ops import argument_names, overload

#: Sizes and flags stay in the range of a 64-bit integer.
_MAX_SCALAR = 2**63


class NodeFailed(ModelError, RuntimeError):  # noqa: N818
    """An operation of the graph failed on these inputs; also a RuntimeError, which is what PyTorch raised."""


@dataclass(frozen=True, slots=True)
class Call:
    """A node made ready: what to call, and how its arguments are passed."""

    node: Node
    function: Callable[..., Any]
    positional: tuple[str, ...]
    keywords: tuple[str, ...]

    def perform(self, arguments: Mapping[str, Any]) -> Any:
        """Call it with these values of its arguments, by name; errors are PyTorch's own."""
        if self.node.autocast is not None:
            with torch.autocast(_device_type(arguments), self.node.autocast):
                return self._perform(arguments)
        return self._perform(arguments)

    def _perform(self, arguments: Mapping[str, Any]) -> Any:
        return self.function(
            *(arguments[name] for name in self.positional),
            **{name: arguments[name] for name in self.keywords},
        )


class Interpreter:
    """Runs one graph, as often as wanted, with other weights, inputs and devices each time.

    Args:
        graph: Checked against the allowlist (`ops.check`).

    Attributes:
        calls: Its nodes, made ready, in execution order.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.calls = tuple(_prepare(node) for node in graph.nodes)

    def run(self, values: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
        """Return the graph's outputs.

        Args:
            values: A value for every graph input, weights included.
            device: Where new tensors are made.

        Raises:
            NodeFailed: An operation does not accept what it gets, e.g. inputs of a wrong shape.
            UnsupportedModel: An operation asks for a huge tensor.
        """
        environment = dict(values)
        self.advance(environment, 0, len(self.calls), device)
        return tuple(environment[name] for name in self._graph.outputs)

    def advance(
        self, environment: dict[str, Any], start: int, stop: int, device: torch.device, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Run the nodes from ``start`` up to, not including, ``stop``; return the values to keep.

        Each intermediate value is let go after its last use, so that without autograd only live values take memory.

        Args:
            environment: The values known so far, by name; what the nodes define is added, what none needs any more
                is taken out.
            start: First node to run.
            stop: Node to stop before.
            device: Where new tensors are made.
            keep: Names to return, whether or not they are needed afterwards.

        Raises:
            NodeFailed: An operation does not accept what it gets.
            UnsupportedModel: An operation asks for a huge tensor.
        """
        found = {name: environment[name] for name in keep if name in environment}
        for call, done in zip(self.calls[start:stop], self._graph.last_uses[start:stop], strict=True):
            self._execute(call, environment, device)
            found.update((name, environment[name]) for name in names(call.node.outputs) if name in keep)
            for name in done:
                del environment[name]
        return found

    def execute(self, index: int, environment: dict[str, Any], device: torch.device) -> None:
        """Run one node and add what it defines."""
        self._execute(self.calls[index], environment, device)

    @staticmethod
    def _execute(call: Call, environment: dict[str, Any], device: torch.device) -> None:
        bind(call.node, call.node.outputs, _perform(call, resolve(call, environment, device)), environment)


def _device_type(arguments: Mapping[str, Any]) -> str:
    """Return where the tensors among some arguments are."""
    for value in arguments.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Tensor):
                return item.device.type
    return "cpu"


def execute(node: Node, environment: dict[str, Any], device: torch.device) -> None:
    """Run one node that is in no graph yet, and add what it defines; as `Interpreter.advance` does.

    Raises:
        NodeFailed: The operation does not accept what it gets.
        UnsupportedModel: It asks for a huge tensor.
    """
    call = _prepare(node)
    bind(node, node.outputs, _perform(call, resolve(call, environment, device)), environment)


def _prepare(node: Node) -> Call:
    if node.op in SCALAR_OPS:
        return Call(node, SCALAR_OPS[node.op], tuple(node.arguments), ())
    positional: list[str] = []
    keywords: list[str] = []
    gap = False
    for name, keyword_only in argument_names(node.op):
        gap = gap or keyword_only or name not in node.arguments
        if name in node.arguments:
            (keywords if gap else positional).append(name)
    return Call(node, KERNELS.get(node.op) or overload(node.op), tuple(positional), tuple(keywords))


def resolve(call: Call, environment: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the values of a node's arguments, by name."""
    return {name: _resolve(value, environment, device) for name, value in call.node.arguments.items()}


def _resolve(value: Value, environment: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(value, Ref):
        return environment[value.name]
    if isinstance(value, tuple):
        return [_resolve(item, environment, device) for item in value]
    if isinstance(value, OwnDevice):
        return device
    return value


def _perform(call: Call, arguments: dict[str, Any]) -> Any:
    node = call.node
    try:
        check_allocation(node.op, arguments)
        if node.op in SCALAR_OPS and not all(isinstance(value, int | float) for value in arguments.values()):
            raise TypeError("arithmetic on sizes takes numbers only")  # "x" * 2**40 would be text
        with contextlib.nullcontext() if node.grad else torch.no_grad():
            result = call.perform(arguments)
        if node.op in SCALAR_OPS and abs(result) >= _MAX_SCALAR:
            raise OverflowError("a size does not fit in 64 bits")
    except (PruningError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, ArithmeticError, AttributeError) as error:
        if "allocate memory" in str(error):
            raise
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NodeFailed(
            f"The operation {node.op} (node {node.name!r}) failed: {message[:400]}",
            advice="Check that the data has the shape and dtype that the model was exported for.",
            node=node.name,
        ) from error
    return result


def bind(node: Node, outputs: Outputs, result: Any, environment: dict[str, Any]) -> None:
    """Add a node's results to the environment under their names."""
    if isinstance(outputs, str):
        environment[outputs] = result
    elif outputs is not None:
        if not isinstance(result, Sequence) or len(result) != len(outputs):
            raise NodeFailed(
                f"The graph names {len(outputs)} results of {node.op} (node {node.name!r}).",
                expected=len(result) if isinstance(result, Sequence) else 1,
                received=len(outputs),
            )
        for item, value in zip(outputs, result, strict=True):
            bind(node, item, value, environment)
