"""An exported graph held as data: nodes in execution order, values by name, nothing that can be executed by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from pruning_core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of this name: a graph input or an output of an earlier node."""

    name: str


@dataclass(frozen=True, slots=True)
class OwnDevice:
    """Stands where the exporter wrote a device: wherever the network is now."""


Value: TypeAlias = (
    bool
    | int
    | float
    | complex
    | str
    | Ref
    | OwnDevice
    | torch.dtype
    | torch.layout
    | torch.memory_format
    | tuple["Value", ...]
    | None
)

#: Names for what a node returns: one value, or a (nested) sequence of values, None where a value is not kept.
Outputs: TypeAlias = str | tuple["Outputs", ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation.

    Attributes:
        name: Unique in the graph; for messages.
        op: Key of the allowlist, e.g. ``"aten.linear.default"`` or ``"operator.mul"``.
        arguments: Argument name (as in the operator's schema) -> value.
        outputs: Where the result goes.
        grad: False inside a ``torch.no_grad`` region of the exported model.
        autocast: The dtype of the ``torch.autocast`` region that it is in; None outside, and where that is off.
    """

    name: str
    op: str
    arguments: Mapping[str, Value]
    outputs: Outputs
    grad: bool = True
    autocast: torch.dtype | None = None


def references(value: Value | Mapping[str, Value]) -> Iterator[str]:
    """Yield the names that a value refers to, in order, repeats included."""
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, tuple):
        for item in value:
            yield from references(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)


def names(outputs: Outputs) -> Iterator[str]:
    """Yield the names that a node defines."""
    if isinstance(outputs, str):
        yield outputs
    elif outputs is not None:
        for item in outputs:
            yield from names(item)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A straight-line program in single-assignment form.

    Attributes:
        weights: Graph input -> canonical weight name; tied weights map to one name.
        inputs: Graph inputs that the user gives, in order.
        nodes: In execution order.
        outputs: Flat results, in order.
        last_uses: Per node, the names that no later node and no output reads (worked out here).

    Raises:
        ModelError: A name is used before it is defined, or defined twice.
    """

    weights: Mapping[str, str]
    inputs: Sequence[str]
    nodes: Sequence[Node]
    outputs: Sequence[str]
    last_uses: Sequence[tuple[str, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_order()
        object.__setattr__(self, "last_uses", self._last_uses())

    def _check_order(self) -> None:
        known: set[str] = set()

        def define(new: Iterable[str], where: str) -> None:
            for name in new:
                if name in known:
                    raise ModelError(
                        f"The graph defines the value {name!r} twice (the second time in {where}).",
                        expected="every name defined once",
                        received=name,
                    )
                known.add(name)

        def require(used: Iterable[str], where: str) -> None:
            for name in used:
                if name not in known:
                    raise ModelError(
                        f"The graph uses the value {name!r} in {where} before it is defined.",
                        expected="nodes in the order in which they run",
                        received=name,
                    )

        define(self.weights, "the inputs")
        define(self.inputs, "the inputs")
        for node in self.nodes:
            require(references(node.arguments), f"node {node.name!r}")
            define(names(node.outputs), f"node {node.name!r}")
        require(self.outputs, "the outputs")

    def _last_uses(self) -> tuple[tuple[str, ...], ...]:
        live = set(self.outputs)
        frees: list[tuple[str, ...]] = []
        for node in reversed(self.nodes):
            touched = dict.fromkeys((*references(node.arguments), *names(node.outputs)))
            frees.append(tuple(name for name in touched if name not in live))
            live.update(touched)
        return tuple(reversed(frees))
