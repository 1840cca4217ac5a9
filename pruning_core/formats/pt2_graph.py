"""The graph of a ``.pt2`` archive: JSON of torch's export schema -> `Graph`. No name in it is ever resolved here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.document import boolean, integer, mapping, member, number, sequence, text, union
from pruning_core.formats.pt2_types import AUTOCAST_REGION, GRAD_REGION, PLAIN, Modes, dtype, strided, switched
from pruning_core.network.graph import Node, Outputs, OwnDevice, Ref, Value
from pruning_core.network.ops import ASSERTIONS

MAX_NODES = 50_000
MAX_ARGUMENTS = 10_000
#: How deep no_grad regions may nest.
_MAX_REGIONS = 8
_GRAD_REGION_24 = "torch._higher_order_ops.wrap.wrap_with_set_grad_enabled"

_MEMORY_FORMATS: dict[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


class Scope:
    """What the names of one graph stand for."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}

    def define(self, name: str, value: Value) -> None:
        """Give a name its value.

        Raises:
            ModelError: It has one already.
        """
        if name in self._values:
            raise ModelError(
                f"The graph defines the value {name!r} twice.", expected="every name defined once", received=name
            )
        self._values[name] = value

    def __getitem__(self, name: str) -> Value:
        if name not in self._values:
            raise ModelError(
                f"The graph uses the value {name!r} before it is defined.",
                expected="nodes in the order in which they run",
                received=name,
            )
        return self._values[name]


class NodeParser:
    """Turns the JSON nodes of a graph and of its no_grad and autocast regions into one flat list of nodes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._regions = 0
        self._count = 0

    def parse(self, nodes: Any, scope: Scope, *, prefix: str = "", modes: Modes = PLAIN) -> None:
        """Append the nodes of one graph.

        Args:
            nodes: The JSON array.
            scope: Its graph's names; the nodes' results are added.
            prefix: Put before the names of a region's values, to keep them apart.
            modes: What is switched on or off here.

        Raises:
            ModelError: The graph is malformed or too large.
            UnsupportedModel: It has other regions than no_grad and autocast ones.
        """
        items = sequence(nodes, "The list of nodes")
        self._count += len(items)
        if self._count > MAX_NODES:
            raise ModelError("The graph is too large.", expected=f"at most {MAX_NODES} nodes", received=self._count)
        for i, item in enumerate(items):
            where = f"Node {i}"
            target = text(member(item, "target", where), f"{where}: target")
            op = _operation(target)
            inputs = sequence(member(item, "inputs", where), f"{where}: inputs", MAX_ARGUMENTS)
            results = sequence(member(item, "outputs", where), f"{where}: outputs", MAX_ARGUMENTS)
            name = prefix + text(mapping(item, where).get("name") or f"node_{i}", f"{where}: name")
            if op in ASSERTIONS:
                continue
            if op in (GRAD_REGION, AUTOCAST_REGION):
                self._region(name, op, inputs, results, scope, modes)
                continue
            arguments = _arguments(op, inputs, scope, f"{where} ({op})")
            outputs = _outputs(results, scope, prefix, f"{where} ({op})")
            self.nodes.append(
                Node(name=name, op=op, arguments=arguments, outputs=outputs, grad=modes.grad, autocast=modes.autocast)
            )

    def _region(self, name: str, op: str, inputs: list[Any], results: list[Any], scope: Scope, modes: Modes) -> None:
        """Inline ``wrap_with_set_grad_enabled(enabled, graph, *values)``, or autocast's that has four flags."""
        where = f"The region {name!r}"
        values = [member(item, "arg", where) for item in inputs]
        flags = 1 if op == GRAD_REGION else 4
        if len(values) <= flags or self._regions >= _MAX_REGIONS:
            raise ModelError(f"{where} is malformed or nests too deeply.", expected="flags, graph, values")
        modes = switched(op, values[:flags], modes, where)
        graph = member(member(values[flags], "as_graph", where), "graph", where)
        values = values[flags + 1 :]
        inner = Scope()
        formal = sequence(member(graph, "inputs", where), f"{where}: inputs")
        if len(formal) != len(values):
            raise ModelError(f"{where} gets {len(values)} values.", expected=len(formal), received=len(values))
        for own, given in zip(formal, values, strict=True):
            if (own_name := value_name(own, where)) is not None:
                inner.define(own_name, argument(given, scope, where))
        self._regions += 1
        self.parse(member(graph, "nodes", where), inner, prefix=f"{name}/", modes=modes)
        self._regions -= 1
        found = [argument(item, inner, where) for item in sequence(member(graph, "outputs", where), where)]
        flat = results
        if len(results) == 1 and union(results[0], where)[0] == "as_tensors":
            flat = [{"as_tensor": item} for item in sequence(union(results[0], where)[1], where)]
        if len(flat) != len(found):
            raise ModelError(f"{where} has other results than its graph.", expected=len(found), received=len(flat))
        for item, value in zip(flat, found, strict=True):
            if (outer := value_name(item, where)) is not None:
                scope.define(outer, value)


def _operation(target: str) -> str:
    """Return the name by which an operation is looked up; torch 2.4 wrote those of regions by their place in Python."""
    if target == _GRAD_REGION_24:
        return GRAD_REGION
    return (
        target.removeprefix("torch.ops.").removeprefix("_")
        if target.startswith(("torch.ops.", "_operator."))
        else target
    )


def _arguments(op: str, inputs: list[Any], scope: Scope, where: str) -> dict[str, Value]:
    arguments: dict[str, Value] = {}
    for i, item in enumerate(inputs):
        key = text(member(item, "name", where), f"{where}: argument name")
        if not op.startswith("aten."):
            key = str(i)  # scalar arithmetic is positional
        if key in arguments:
            raise ModelError(f"{where} gives the argument {key!r} twice.")
        arguments[key] = argument(member(item, "arg", where), scope, f"{where}: {key}")
    return arguments


def _outputs(results: list[Any], scope: Scope, prefix: str, where: str) -> Outputs:
    """Return where the results go: one value as it is, several (or one list of values) item by item."""

    def bind(item: Any) -> Outputs:
        kind, value = union(item, where)
        if kind in ("as_tensors", "as_sym_ints"):
            wrap = "as_tensor" if kind == "as_tensors" else "as_sym_int"
            return tuple(bind({wrap: part}) for part in sequence(value, where, MAX_ARGUMENTS))
        name = value_name(item, where)
        if name is not None:
            scope.define(name, Ref(prefix + name))
            return prefix + name
        return None

    if len(results) == 1:
        return bind(results[0])
    return tuple(bind(item) for item in results) or None


def value_name(item: Any, where: str) -> str | None:
    """Return the name in a tensor or symbolic argument; None for a constant."""
    kind, value = union(item, where)
    if kind == "as_tensor":
        return text(member(value, "name", where), where)
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        inner, name = union(value, where)
        return text(name, where) if inner == "as_name" else None
    if kind in ("as_none", "as_int", "as_float", "as_bool", "as_string"):
        return None
    raise UnsupportedModel(f"{where} has a value of kind {kind!r}, which is not supported.", received=kind)


def argument(item: Any, scope: Scope, where: str) -> Value:
    """Return the value of a JSON argument.

    Raises:
        UnsupportedModel: It is a custom object, a graph or an operator.
    """
    kind, value = union(item, where)
    if kind in _SCALARS:
        return _SCALARS[kind](value, where)
    if kind == "as_tensor":
        return scope[text(member(value, "name", where), where)]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float", "as_optional_tensor"):
        inner, content = union(value, where)
        return scope[text(content, where)] if inner == "as_name" else argument(value, scope, where)
    if kind in _LISTS:
        wrap = _LISTS[kind]
        return tuple(
            argument({wrap: part} if wrap else part, scope, where) for part in sequence(value, where, MAX_ARGUMENTS)
        )
    raise UnsupportedModel(
        f"{where} has an argument of kind {kind!r}, which is not supported.",
        expected="tensors, numbers, flags and strings",
        received=kind,
    )


_SCALARS: dict[str, Callable[[Any, str], Value]] = {
    "as_none": lambda _value, _where: None,
    "as_int": integer,
    "as_float": number,
    "as_bool": boolean,
    "as_string": text,
    "as_scalar_type": dtype,
    "as_layout": strided,
    "as_device": lambda _value, _where: OwnDevice(),
    "as_memory_format": lambda value, where: _memory_format(value, where),
    "as_complex": lambda value, where: complex(
        number(member(value, "real", where), where), number(member(value, "imag", where), where)
    ),
}
#: Lists -> how one item is wrapped to be an argument by itself; None if it already is.
_LISTS: dict[str, str | None] = {
    "as_tensors": "as_tensor",
    "as_ints": "as_int",
    "as_floats": "as_float",
    "as_bools": "as_bool",
    "as_strings": "as_string",
    "as_sym_ints": "as_sym_int",
    "as_sym_bools": "as_sym_bool",
    "as_sym_floats": "as_sym_float",
    "as_optional_tensors": None,
    "as_nested_tensors": "as_tensors",
}


def _memory_format(value: Any, where: str) -> torch.memory_format:
    code = integer(value, where)
    if code not in _MEMORY_FORMATS:
        raise ModelError(f"{where} has an unknown memory format.", expected=sorted(_MEMORY_FORMATS), received=code)
    return _MEMORY_FORMATS[code]
