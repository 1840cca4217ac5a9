"""A network: an exported graph, its weights, and the layers that can be pruned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.network import ops
from pruning_core.network.graph import Graph
from pruning_core.network.interpreter import Interpreter
from pruning_core.network.layers import Layer, find_layers
from pruning_core.network.segments import Segments, Site, State, Window, kept
from pruning_core.network.tangents import Linearised


@dataclass(frozen=True, kw_only=True)
class Input:
    """One tensor that the network takes.

    Attributes:
        name: As in the exported model's signature.
        dtype: What it must be.
        shape: What it must be; None stands for a dynamic dimension.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


class Network:
    """A network as a pure function of its weights and inputs. Immutable.

    Attributes:
        weights: Every parameter, buffer and constant by canonical name; tied names share one entry.
        layers: The prunable layers, in execution order of first use.
        unprunable: Weight name -> why it cannot be pruned.
        inputs: What it takes, in order.
        batch: The batch size it was exported with, or None if that is dynamic.
        device: Where the weights are.

    Args:
        graph: What to compute.
        weights: By canonical name; all that ``graph.weights`` names.
        parameters: Which of the weights are parameters, not buffers or constants.
        inputs: One for each of ``graph.inputs``, in order.
        fixed: Weight name -> why its file cannot hold other values for it; such a weight is no layer.

    Raises:
        UnsupportedModel: An operation is not on the allowlist, or the inputs have no common batch dimension.
        ModelError: The graph asks for a weight that is not there.
    """

    def __init__(
        self,
        *,
        graph: Graph,
        weights: Mapping[str, Tensor],
        parameters: Collection[str],
        inputs: Sequence[Input],
        fixed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        ops.check(graph)
        if missing := sorted(set(graph.weights.values()) - weights.keys()):
            raise ModelError(f"The model has no weight {missing[0]!r}, which its graph uses.", received=missing[:20])
        self._graph = graph
        self._parameters = frozenset(parameters)
        self._interpreter = Interpreter(graph)
        self.weights: Mapping[str, Tensor] = MappingProxyType(dict(weights))
        self.inputs = tuple(inputs)
        self.batch = _batch(self.inputs)
        layers, unprunable = find_layers(graph, weights, self._parameters, fixed)
        self.layers: tuple[Layer, ...] = layers
        self.unprunable: Mapping[str, str] = MappingProxyType(unprunable)
        self._segments = Segments(graph, layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a network without weights."""
        return next((tensor.device for tensor in self.weights.values()), torch.device("cpu"))

    @property
    def parameter_count(self) -> int:
        """How many numbers the parameters hold, tied ones counted once."""
        return sum(self.weights[name].numel() for name in self._parameters)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return the flat outputs.

        Pure: writes to nothing. Differentiable in the weights and in floating-point inputs, by autograd and by
        ``torch.func``.

        Args:
            inputs: One tensor for each of `inputs`, in order.
            weights: Replaces some of `weights`, by canonical name.

        Raises:
            ModelError: An input or a weight does not fit; says which and how.
        """
        self._check_inputs(inputs)
        values = self._values(weights)
        values.update(zip(self._graph.inputs, inputs, strict=True))
        return self._interpreter.run(values, self.device)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every use of a prunable layer, in execution order."""
        return self._segments.sites

    @property
    def operations(self) -> tuple[int, ...]:
        """Indices of the nodes that are linear layers, convolutions or activations, in execution order."""
        return self._segments.operations

    @property
    def length(self) -> int:
        """How many nodes the graph has; a state at this position has all outputs."""
        return len(self._graph.nodes)

    def window(self, site: Site, further: int) -> Window:
        """Return a site's own output and up to ``further`` operations that depend on it, in execution order.

        Fewer where the network ends. What does not depend on the site's output (another branch) is not counted.
        """
        return self._segments.window(site, further)

    def begin(self, inputs: Sequence[Tensor]) -> State:
        """Return the state before the first node.

        Args:
            inputs: One tensor for each of `inputs`, in order.

        Raises:
            ModelError: An input does not fit.
        """
        self._check_inputs(inputs)
        values = dict(zip(self._graph.inputs, inputs, strict=True))
        return State(position=0, values={name: values[name] for name in self._segments.live(0)})

    def advance(
        self, state: State, stop: int, weights: Mapping[str, Tensor] | None = None, keep: Collection[str] = ()
    ) -> tuple[State, dict[str, Tensor]]:
        """Run on from a state, up to but not including the node ``stop``.

        Piece by piece or at once, the values are the same to the bit. Pure, and differentiable in the weights and in
        the state's values, as `run` is. The state given is left as it is: a run may branch there.

        Args:
            state: Where to begin.
            stop: Index of the node to stop before; `length` to run to the end.
            weights: Replaces some of `weights` on this way.
            keep: Names of values to return: live ones of ``state``, or any that is computed on the way.

        Returns:
            The state there, and the values to keep.

        Raises:
            ModelError: ``stop`` lies behind, a kept value is not met, or a weight does not fit.
        """
        self._segments.check_stop(state.position, stop)
        environment = self._values(weights)
        environment.update(state.values)
        for index in self._segments.remade(state.position):
            self._interpreter.execute(index, environment, self.device)
        found = self._interpreter.advance(environment, state.position, stop, self.device, keep)
        values = {name: environment[name] for name in self._segments.live(stop)}
        return State(position=stop, values=values), kept(found, keep)

    def linearise(self, state: State, window: Window, weight: str, value: Tensor) -> Linearised:
        """Run a window with this value of a weight, and keep what Jacobian products with respect to it need.

        Args:
            state: At ``window.start``.
            window: What to run; the site's weight is the one.
            weight: Its canonical name.
            value: What to linearise at. All other weights are the network's own.
        """
        environment = self._values({weight: value})
        environment.update(state.values)
        leaves = [name for name, canonical in self._graph.weights.items() if canonical == weight]
        nodes = (*self._segments.remade(state.position), *range(window.start, window.stop))
        return Linearised(self._interpreter, environment, leaves, value, nodes, window.outputs, self.device)

    def outputs(self, state: State, weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Run a state to the end and return the flat outputs, as `run` gives them."""
        end, _ = self.advance(state, self.length, weights)
        values = {**self._values(weights), **end.values}
        return tuple(values[name] for name in self._graph.outputs)

    def with_weights(self, updates: Mapping[str, Tensor]) -> Network:
        """Return a network with some weights replaced.

        Args:
            updates: Canonical weight name -> new tensor of the same shape and dtype.

        Raises:
            ModelError: A name is unknown, or a shape or dtype differs.
        """
        chosen = self._chosen(updates)
        for name in updates:
            if chosen[name].dtype != self.weights[name].dtype:
                raise ModelError(
                    f"The new values of {name!r} have another dtype.",
                    expected=str(self.weights[name].dtype),
                    received=str(chosen[name].dtype),
                )
        return self._replaced({name: tensor.detach().to(self.device) for name, tensor in chosen.items()})

    def to(self, device: torch.device | str) -> Network:
        """Return the network with its weights on a device."""
        target = torch.device(device)
        return self._replaced({name: tensor.to(target) for name, tensor in self.weights.items()})

    def _replaced(self, weights: Mapping[str, Tensor]) -> Network:
        twin = object.__new__(Network)
        twin.__dict__.update(self.__dict__)
        twin.weights = MappingProxyType(dict(weights))
        return twin

    def _chosen(self, updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in updates.items():
            if name not in self.weights:
                raise ModelError(f"There is no weight {name!r}.", expected=sorted(self.weights)[:20], received=name)
            if tensor.shape != self.weights[name].shape:
                raise ModelError(
                    f"The new values of {name!r} have another shape.",
                    expected=list(self.weights[name].shape),
                    received=list(tensor.shape),
                )
        return {**self.weights, **updates}

    def _values(self, weights: Mapping[str, Tensor] | None) -> dict[str, Any]:
        given = self._chosen(weights or {})
        return {name: given[weight] for name, weight in self._graph.weights.items()}

    def _check_inputs(self, tensors: Sequence[Tensor]) -> None:
        if len(tensors) != len(self.inputs):
            raise ModelError(
                "The model takes another number of inputs.",
                expected=[i.name for i in self.inputs],
                received=len(tensors),
            )
        for wanted, tensor in zip(self.inputs, tensors, strict=True):
            fits = tensor.dim() == len(wanted.shape) and all(
                size is None or size == got for size, got in zip(wanted.shape, tensor.shape, strict=True)
            )
            if not fits:
                raise ModelError(
                    f"The input {wanted.name!r} has another shape.",
                    expected=list(wanted.shape),
                    received=list(tensor.shape),
                )
            if tensor.dtype != wanted.dtype:
                raise ModelError(
                    f"The input {wanted.name!r} has another dtype.",
                    expected=str(wanted.dtype),
                    received=str(tensor.dtype),
                )


def _batch(inputs: Sequence[Input]) -> int | None:
    leading = {input_.shape[0] if input_.shape else -1 for input_ in inputs}
    if not leading:
        raise UnsupportedModel("The model takes no tensor as input.", expected="at least one tensor input")
    if len(leading) > 1 or -1 in leading:
        raise UnsupportedModel(
            "The inputs have no common batch dimension.",
            expected="the same dynamic or fixed size of dimension 0 in every input",
            received={input_.name: list(input_.shape) for input_ in inputs},
            advice="Export with the batch as dimension 0 of every input, e.g. dynamic_shapes={'x': {0: Dim('batch')}}.",
        )
    return leading.pop()
