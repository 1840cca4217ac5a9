"""Which weights can be pruned: those that reach a linear or convolution operation as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from pruning_core.network.graph import Graph, Node, Ref, names, references

_CONVOLUTIONS = frozenset(
    (*(f"aten.conv{d}d.{kind}" for d in (1, 2, 3) for kind in ("default", "padding")), "aten.convolution.default")
)
#: Where the (in, out) matrix of a product x·W stands; it is a layer if it is the transpose of a weight.
_PRODUCTS = {
    "aten.mm.default": "mat2",
    "aten.addmm.default": "mat2",
    "aten.matmul.default": "other",
}
#: Operations that give a view of a matrix with its dimensions swapped (or moved).
TRANSPOSES = frozenset(
    ("aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.numpy_T.default", "aten.mT.default")
)
#: Operations that take a weight which is not meant to be pruned, and say nothing about it.
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "_native_batch_norm_legit_no_training")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One prunable layer.

    Attributes:
        name: The weight's name without ``.weight``.
        kind: ``"linear"`` or ``"conv"``.
        weight: The canonical weight name, a key of ``Network.weights``.
        shape: PyTorch's layout: (out, in), or (out, in / groups, *kernel).
        uses: How many operations use the weight.
        groups: Groups of the convolution; 1 for a linear layer.
    """

    name: str
    kind: Literal["linear", "conv"]
    weight: str
    shape: tuple[int, ...]
    uses: int = 1
    groups: int = 1


def find_layers(
    graph: Graph, weights: Mapping[str, Tensor], parameters: Collection[str], fixed: Mapping[str, str]
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Return the prunable layers in execution order of first use, and why each other weight matrix is not one.

    Args:
        graph: The network's graph.
        weights: By canonical name.
        parameters: Canonical names of the weights that are parameters (not buffers or constants).
        fixed: Weight name -> why it must keep its values.

    Returns:
        The layers; and weight name -> reason for every parameter with two or more dimensions that is not a layer.
        Biases and norms have one dimension and are not mentioned.
    """
    producers = {name: node for node in graph.nodes for name in names(node.outputs)}
    layers: dict[str, Layer] = {}
    reasons: dict[str, str] = {}
    computed: dict[str, str] = {}
    seen_values: set[str] = set()
    for node in graph.nodes:
        use = weight_use(node)
        direct = None
        if use is not None:
            kind, argument, groups = use
            direct = _direct(node, argument, graph, producers)
            if direct is not None and direct in parameters and _fits(kind, weights[direct]):
                seen = layers.get(direct)
                layers[direct] = (
                    replace(seen, uses=seen.uses + 1)
                    if seen
                    else Layer(
                        name=direct.removesuffix(".weight"),
                        kind=kind,
                        weight=direct,
                        shape=tuple(weights[direct].shape),
                        groups=groups,
                    )
                )
            elif direct is None:
                for source, op in _ancestors(references(node.arguments[argument]), graph, producers, seen_values):
                    computed.setdefault(source, f"reaches {node.op} through a computation ({op})")
        for name in references(node.arguments):
            weight = graph.weights.get(name)
            if weight is not None and weight != direct and not _only_moves(node):
                reasons.setdefault(weight, _why_not(node, name))
    reasons.update(computed)
    for name, tensor in weights.items():
        if name in layers and (why := fixed.get(name) or _unfit(tensor)):
            del layers[name]
            reasons[name] = why
    unprunable = {
        name: reasons.get(name, "is not used by the graph")
        for name, tensor in weights.items()
        if name in parameters and name not in layers and tensor.dim() > 1
    }
    return tuple(layers.values()), unprunable


def weight_use(node: Node) -> tuple[Literal["linear", "conv"], str, int] | None:
    """Return kind, argument that holds the weight, and groups, if the node is a linear or convolution operation."""
    arguments = node.arguments
    if node.op == "aten.linear.default" and "weight" in arguments:
        return "linear", "weight", 1
    if node.op in _CONVOLUTIONS and "weight" in arguments:
        if node.op == "aten.convolution.default" and arguments.get("transposed") is not False:
            return None
        groups = arguments.get("groups", 1)
        return "conv", "weight", groups if isinstance(groups, int) else 1
    if (argument := _PRODUCTS.get(node.op)) and argument in arguments:
        if arguments.get("alpha", 1) != 1 or arguments.get("beta", 1) != 1:
            return None  # a scaled product is not the layer y = Wx + b
        return "linear", argument, 1
    return None


def _direct(node: Node, argument: str, graph: Graph, producers: Mapping[str, Node]) -> str | None:
    """Return the weight that the argument is, seen through one transposition where the operation wants W transposed."""
    value = node.arguments[argument]
    if not isinstance(value, Ref):
        return None
    if node.op not in _PRODUCTS:
        return graph.weights.get(value.name)
    producer = producers.get(value.name)
    if producer is None or producer.op not in TRANSPOSES:
        return None
    source = producer.arguments.get("self")
    return graph.weights.get(source.name) if isinstance(source, Ref) and _swaps(producer) else None


def _why_not(node: Node, name: str) -> str:
    """Return why the weight that an operation uses under this name is no layer."""
    if node.arguments.get(_PRODUCTS.get(node.op, "")) == Ref(name):
        return (
            f"is multiplied by {node.op} as (inputs, outputs), as GPT-2's Conv1D does; a layer is (outputs, inputs): "
            "put an nn.Linear with the weight transposed in its place before the export"
        )
    return f"is used by {node.op}, which is not a linear or convolution layer"


def _swaps(node: Node) -> bool:
    """Return whether a transposition swaps the two dimensions of a matrix."""
    if node.op == "aten.permute.default":
        return node.arguments.get("dims") in ((1, 0), (-1, -2))
    if node.op == "aten.transpose.int":
        return {node.arguments.get("dim0"), node.arguments.get("dim1")} in ({0, 1}, {-1, -2}, {0, -1}, {1, -2})
    return True


def _only_moves(node: Node) -> bool:
    packet = node.op.split(".")[1] if "." in node.op else ""
    return node.op in TRANSPOSES or packet in _NORMS


def _ancestors(
    start: Iterable[str], graph: Graph, producers: Mapping[str, Node], seen: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield (weight, first operation on it) for every weight from which the values are computed.

    Values in ``seen`` were followed before, and are not again; those followed now are added.
    """
    stack = [(name, "") for name in start]
    while stack:
        name, op = stack.pop()
        if name in graph.weights:
            if op:
                yield graph.weights[name], op
        elif name in producers and name not in seen:
            seen.add(name)
            stack.extend((source, producers[name].op) for source in references(producers[name].arguments))


def _fits(kind: str, weight: Tensor) -> bool:
    return weight.is_floating_point() and (weight.dim() == 2 if kind == "linear" else weight.dim() > 2)


def _unfit(weight: Tensor) -> str | None:
    """Return why a layer's weight cannot be changed element by element, if so."""
    extents = sorted((stride, size) for stride, size in zip(weight.stride(), weight.shape, strict=True) if size > 1)
    reach = 1
    for stride, size in extents:
        if stride < reach:
            return "has elements that overlap in memory"
        reach = stride * (size - 1) + reach
    return None
