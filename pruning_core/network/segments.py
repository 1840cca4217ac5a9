"""Running a network piece by piece: where its layers are used, where it may stop, and what must be kept there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pruning_core.errors import ModelError
from pruning_core.network.graph import Graph, Node, Ref, names, references
from pruning_core.network.layers import TRANSPOSES, Layer, weight_use
from pruning_core.network.ops import words

#: Elementwise non-linear operations that count as activations.
ACTIVATIONS = words(
    "relu relu6 gelu silu mish elu celu selu leaky_relu prelu hardtanh hardswish hardsigmoid hardshrink softshrink "
    "softplus sigmoid log_sigmoid tanh threshold clamp_min glu"
)
#: Operations that are a linear layer or a convolution if one of their arguments is a weight.
_INPUTS = {"linear": "input", "mm": "self", "addmm": "mat1", "matmul": "self"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """One use of a prunable layer.

    Attributes:
        layer: Whose weight it is.
        node: Index of the operation in the graph's nodes.
        input: Name of the value x it takes: (N, in, ...) for a convolution, (..., in) for a linear layer.
        output: Name of the value y it gives.
        alone: Nothing else in the network reads the weight: no second use, no embedding tied to it.
        bias: Name of the value that it adds, None where it adds none. It may be a graph input that holds a weight.
        stride: Per spatial dimension; empty for a linear layer, as the next two.
        padding: Zeros (before, after) per spatial dimension.
        dilation: Per spatial dimension.
    """

    layer: Layer
    node: int
    input: str
    output: str
    alone: bool
    bias: str | None
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Groups of the convolution; 1 for a linear layer."""
        return self.layer.groups


@dataclass(frozen=True, kw_only=True)
class State:
    """A run that stopped before a node, with exactly the values that later nodes need.

    Weights are not among them, nor are transposed views of weights: whoever goes on says which weights to use.

    Attributes:
        position: Index of the next node; the number of nodes at the end.
        values: Value name -> tensor (or size).
    """

    position: int
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some operations in a row, the first of them a site's.

    Attributes:
        start: Index of the site's node.
        stop: Index after the last operation's node.
        outputs: Names of what the operations give: Y_0, the site's own output, Y_1, ...
    """

    start: int
    stop: int
    outputs: tuple[str, ...]


class Segments:
    """What is known about the places of a graph where a run may stop; worked out once.

    Args:
        graph: The network's graph.
        layers: Its prunable layers.
    """

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self._graph = graph
        self._layers = {layer.weight: layer for layer in layers}
        self._producers = {name: index for index, node in enumerate(graph.nodes) for name in names(node.outputs)}
        self._last_reads = {name: i for i, node in enumerate(graph.nodes) for name in references(node.arguments)}
        self._last_reads.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
        self._views = frozenset(
            name
            for name, index in self._producers.items()
            if graph.nodes[index].op in TRANSPOSES
            and all(source in graph.weights for source in references(graph.nodes[index].arguments))
        )

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every use of a prunable layer, in execution order."""
        return tuple(self._sites())

    @cached_property
    def operations(self) -> tuple[int, ...]:
        """Indices of the nodes that are linear layers, convolutions (prunable or not) or activations, in order."""
        return tuple(index for index, node in enumerate(self._graph.nodes) if self._counts(node))

    @cached_property
    def _readers(self) -> Counter[str]:
        """Canonical weight name -> how many nodes read it, themselves or through a transposition."""
        found: Counter[str] = Counter()
        for node in self._graph.nodes:
            if not self._views.issuperset(names(node.outputs)):
                found.update({weight for name in references(node.arguments) if (weight := self._behind(name))})
        return found

    def window(self, site: Site, further: int) -> Window:
        """Return the window of a site's own output and up to so many further operations that depend on it."""
        dependent, outputs, stop = {site.output}, [site.output], site.node + 1
        counted = frozenset(self.operations)
        for index in range(site.node + 1, len(self._graph.nodes)):
            if len(outputs) > further:
                break
            node = self._graph.nodes[index]
            if dependent.isdisjoint(references(node.arguments)):
                continue
            dependent.update(names(node.outputs))
            if index in counted and isinstance(node.outputs, str):
                outputs.append(node.outputs)
                stop = index + 1
        return Window(start=site.node, stop=stop, outputs=tuple(outputs))

    def live(self, position: int) -> tuple[str, ...]:
        """Return the names of the values that a state at this position holds."""
        alive = self._alive(position)
        return tuple(name for name in alive if name not in self._views)

    def remade(self, position: int) -> tuple[int, ...]:
        """Return the indices of the earlier nodes whose results, views of weights, are made again at this position."""
        return tuple(dict.fromkeys(self._producers[name] for name in self._alive(position) if name in self._views))

    def check_stop(self, position: int, stop: int) -> None:
        """Refuse to run backwards or past the end."""
        if not position <= stop <= len(self._graph.nodes):
            raise ModelError(
                "A run can only go on to a later node of the graph.",
                expected=f"{position} to {len(self._graph.nodes)}",
                received=stop,
            )

    def _alive(self, position: int) -> Iterator[str]:
        for name in self._graph.inputs:
            if self._last_reads.get(name, -1) >= position:
                yield name
        for name, index in self._producers.items():
            if index < position <= self._last_reads.get(name, -1):
                yield name

    def _counts(self, node: Node) -> bool:
        packet = node.op.split(".")[1] if node.op.startswith("aten.") else ""
        if packet in ACTIVATIONS:
            return True
        use = weight_use(node)
        if use is None:
            return False
        sources = {*references(node.arguments[use[1]])}
        return all(name in self._graph.weights or name in self._views for name in sources)

    def _sites(self) -> Iterator[Site]:
        for index, node in enumerate(self._graph.nodes):
            use = weight_use(node)
            weight = self._weight(node, use[1]) if use else None
            if use is None or weight not in self._layers:
                continue
            layer = self._layers[weight]
            source = node.arguments[_INPUTS.get(node.op.split(".")[1], "input")]
            bias = node.arguments.get("self" if ".addmm." in node.op else "bias")
            if not isinstance(source, Ref) or not isinstance(node.outputs, str):
                continue
            yield Site(
                layer=layer,
                node=index,
                input=source.name,
                output=node.outputs,
                alone=self._readers[weight] == 1,
                bias=bias.name if isinstance(bias, Ref) else None,
                **(_geometry(node, layer) if layer.kind == "conv" else {}),
            )

    def _weight(self, node: Node, argument: str) -> str | None:
        """Return the canonical weight that an argument is, seen through a transposition."""
        value = node.arguments[argument]
        return self._behind(value.name) if isinstance(value, Ref) else None

    def _behind(self, name: str) -> str | None:
        if name in self._views:
            name = next(references(self._graph.nodes[self._producers[name]].arguments))
        return self._graph.weights.get(name)


def _geometry(node: Node, layer: Layer) -> dict[str, Any]:
    kernel = layer.shape[2:]

    def each(name: str, default: int) -> tuple[int, ...]:
        given: Any = node.arguments.get(name, default)
        sizes: tuple[int, ...] = given if isinstance(given, tuple) else (given,)
        return sizes * len(kernel) if len(sizes) == 1 else sizes

    dilation, padding = each("dilation", 1), node.arguments.get("padding", 0)
    sides: tuple[tuple[int, int], ...]
    if padding == "valid":
        sides = ((0, 0),) * len(kernel)
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = tuple((p, p) for p in each("padding", 0))
    return {"stride": each("stride", 1), "padding": sides, "dilation": dilation}


def kept(environment: Mapping[str, Any], keep: Collection[str]) -> dict[str, Any]:
    """Return the values of these names.

    Raises:
        ModelError: One of them is not there.
    """
    if missing := sorted(set(keep) - environment.keys()):
        raise ModelError(f"The value {missing[0]!r} is not computed on this way.", received=missing[:20])
    return {name: environment[name] for name in keep}
