"""Building a `Graph` out of ONNX nodes: values by their ONNX names, and sizes kept apart from tensors.

ONNX computes shapes with tensors; the interpreter takes sizes as plain numbers. So integers that come from ``Shape`` or
from constants are followed here as numbers (`Sizes`), and become a tensor only where an operation takes them as one.
Every node is run once without data (on PyTorch's meta device) as it is added: from that come ranks and dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.network.graph import Node, Outputs, OwnDevice, Ref, Value, names
from pruning_core.network.interpreter import execute

#: Integers that are followed as numbers; larger tensors are tensors.
MAX_SIZES = 1024
MAX_NODES = 200_000
_META = torch.device("meta")

Size = int | Ref


@dataclass(frozen=True)
class Sizes:
    """Integers (or flags) known as numbers: a vector, or one number.

    Attributes:
        items: Numbers, or references to numbers that are worked out when the network runs.
        scalar: Whether it stands for a tensor without dimensions; then there is one item.
    """

    items: tuple[Size, ...]
    scalar: bool = False

    @property
    def known(self) -> tuple[int, ...] | None:
        """The numbers, where all are known now."""
        return tuple(i for i in self.items if not isinstance(i, Ref)) if not self._open else None

    @property
    def _open(self) -> bool:
        return any(isinstance(item, Ref) for item in self.items)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One ONNX node.

    Attributes:
        kind: Its op_type.
        name: For messages.
        inputs: Value names; "" where one is left out.
        outputs: Value names; "" where one is not kept.
        attributes: Plain values and tensors.
        opset: Version of the default domain.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def input(self, index: int) -> str:
        """Return the name of an input, "" where there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def refuse(self, what: str, **more: Any) -> UnsupportedModel:
        """Return the error for something that this node asks for."""
        more.setdefault("advice", "Rewrite this part of the model without it, or send a .pt2 of torch.export.")
        return UnsupportedModel(f"The ONNX operator {self.kind} (node {self.name!r}): {what}", **more)


@dataclass(kw_only=True)
class Builder:
    """The graph so far.

    Attributes:
        initialisers: By name; as they are stored.
        swapped: Names of matrices that the network holds as (out, in) though the file has (in, out).
        nodes: What was emitted.
        used: Initialiser name -> the graph input that holds it.
    """

    initialisers: Mapping[str, Tensor]
    swapped: frozenset[str]
    nodes: list[Node] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    _values: dict[str, Ref | Sizes] = field(default_factory=dict)
    _aliases: dict[str, str] = field(default_factory=dict)
    _meta: dict[str, Any] = field(default_factory=dict)
    _stored_views: dict[str, Ref] = field(default_factory=dict)

    def add_input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Define an input of the network, of a shape to try it with."""
        self._meta[name] = torch.empty(tuple(shape), dtype=dtype, device=_META)
        self._values[name] = Ref(name)

    def define(self, name: str, value: Ref | Sizes | Tensor) -> None:
        """Give an ONNX name its value.

        Raises:
            ModelError: It has one.
        """
        if not name:
            return
        if name in self._values or name in self.initialisers or name in self.constants or name in self._aliases:
            raise ModelError(f"The graph defines the value {name!r} twice.", expected="every name once", received=name)
        if isinstance(value, Tensor):
            self.constants[name] = value
        else:
            self._values[name] = value

    def alias(self, name: str, source: str) -> None:
        """Give an ONNX name the value of another."""
        self.require(source)
        if name:
            self.define(name, Sizes(()))
            del self._values[name]
            self._aliases[name] = source

    def require(self, name: str) -> str:
        """Return the name that a value was first known by.

        Raises:
            ModelError: There is none, or not yet.
        """
        while name in self._aliases:
            name = self._aliases[name]
        if name in self._values or name in self.initialisers or name in self.constants:
            return name
        raise ModelError(
            f"The graph uses the value {name!r} before it is defined.",
            expected="nodes in the order in which they run",
            received=name[:200],
        )

    def constant(self, name: str) -> Tensor | None:
        """Return a value that is known now, or None."""
        name = self.require(name)
        found = self.constants.get(name)
        if found is None and name in self.initialisers:
            found = self.initialisers[name]
        value = self._values.get(name)
        if found is None and isinstance(value, Sizes) and (known := value.known) is not None:
            return torch.tensor(known[0] if value.scalar else known)
        return found

    def sizes(self, name: str) -> Sizes | None:
        """Return a value as numbers, or None where it is a tensor."""
        name = self.require(name)
        value = self._values.get(name)
        if isinstance(value, Sizes):
            return value
        tensor = self.constants.get(name, self.initialisers.get(name))
        if tensor is None or tensor.dim() > 1 or tensor.is_floating_point() or tensor.numel() > MAX_SIZES:
            return None
        return Sizes(tuple(tensor.reshape(-1).tolist()), scalar=tensor.dim() == 0)

    def tensor(self, name: str) -> Ref:
        """Return a value as a tensor, as it is stored."""
        name = self.require(name)
        if name in self.swapped:
            if name not in self._stored_views:
                self._stored_views[name] = self.emit("aten.permute.default", self=self.weight(name), dims=(1, 0))
            return self._stored_views[name]
        if name in self.initialisers or name in self.constants:
            return self.weight(name)
        value = self._values[name]
        return self._made(value) if isinstance(value, Sizes) else value

    def weight(self, name: str) -> Ref:
        """Return an initialiser or constant as the network holds it: a matrix of ``swapped`` as (out, in)."""
        name = self.require(name)
        if name not in self.used:
            self.used[name] = f"weight {len(self.used)}"
            found = self.constants.get(name, self.initialisers.get(name))
            assert found is not None
            held = found.t() if name in self.swapped else found
            self._meta[self.used[name]] = torch.empty_like(held, device=_META)
        return Ref(self.used[name])

    def like(self, name: str) -> Tensor:
        """Return a tensor without data, of a value's dtype and number of dimensions (sizes are only examples)."""
        found = self.constant(name)
        return self.shape(self.tensor(name)) if found is None else found

    def shape(self, value: Ref) -> Tensor:
        """Return the same of a value that was emitted."""
        found: Tensor = self._meta[value.name]
        return found

    def emit(self, op: str, count: int = 0, /, **arguments: Value) -> Any:
        """Add a node, and return a reference to its result; with ``count`` a tuple of so many."""
        label = f"{len(self.nodes)}"
        outputs: Outputs = tuple(f"value {label}.{i}" for i in range(count)) if count else f"value {label}"
        node = Node(name=label, op=op, arguments=arguments, outputs=outputs)
        if len(self.nodes) >= MAX_NODES:
            raise ModelError("The graph has too many nodes.", expected=f"at most {MAX_NODES}")
        execute(node, self._meta, _META)
        self.nodes.append(node)
        found = tuple(Ref(name) for name in names(outputs))
        return found if count else found[0]

    def arithmetic(self, op: str, *numbers: Size) -> Size:
        """Return the result of size arithmetic: at once, where all numbers are known."""
        known = {"add": int.__add__, "sub": int.__sub__, "mul": int.__mul__, "floordiv": int.__floordiv__}
        if op in known and not any(isinstance(n, Ref) for n in numbers):
            first, second = (int(n) for n in numbers if not isinstance(n, Ref))
            if op == "floordiv" and second == 0:
                raise ModelError("The graph divides a size by zero.")
            if abs(found := known[op](first, second)) >= 2**63:
                raise ModelError("A size does not fit in 64 bits.")
            return found
        prefix = "torch.sym_" if op in ("max", "min") else "operator."
        found_later: Ref = self.emit(prefix + op, **{"ab"[i]: n for i, n in enumerate(numbers)})
        return found_later

    def size_of(self, value: Ref, dim: int) -> Size:
        """Return one dimension of a tensor."""
        found: Ref = self.emit("aten.sym_size.int", self=value, dim=dim)
        return found

    def product(self, sizes: Sequence[Size]) -> Size:
        """Return the product of sizes."""
        known = math.prod(s for s in sizes if not isinstance(s, Ref))
        total: Size = known
        for size in sizes:
            if isinstance(size, Ref):
                total = size if total == 1 else self.arithmetic("mul", total, size)
        return total

    def _made(self, value: Sizes) -> Ref:
        flags = bool(value.items) and all(isinstance(item, bool) for item in value.items)
        if (known := value.known) is not None:
            name = f"constant of node {len(self.nodes)}.{len(self.used)}"
            self.constants[name] = torch.tensor(
                known[0] if value.scalar else known, dtype=torch.bool if flags else torch.int64
            )
            return self.weight(name)
        options: dict[str, Value] = {"dtype": torch.int64, "device": OwnDevice()}
        parts = tuple(self.emit("aten.scalar_tensor.default", s=item, **options) for item in value.items)
        made: Ref = parts[0] if value.scalar else self.emit("aten.stack.default", tensors=parts, dim=0)
        return made
