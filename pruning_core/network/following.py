"""What a layer's output goes into: the affine batch norm and the sum that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_core.network.batch_norms import BATCH_NORMS
from pruning_core.network.graph import Graph, Node, Ref, names, references
from pruning_core.network.network import Network
from pruning_core.network.segments import ACTIVATIONS, Site

#: What in-place operations become; of its other argument it reads the type only.
_TYPE_AS = "aten.type_as.default"
#: Operations that return what they get, in eval mode.
_IDENTITIES = frozenset(
    {
        "aten.alias.default",
        "aten.alpha_dropout.default",
        "aten.clone.default",
        "aten.contiguous.default",
        "aten.detach.default",
        "aten.dropout.default",
        "aten.feature_dropout.default",
        _TYPE_AS,
    }
)


@dataclass(frozen=True, kw_only=True)
class Following:
    """The value z = s∘y + t (+ r) that a layer's output y goes into, and nothing else reads.

    Attributes:
        target: Name of z: the sum where y ends in one, else the batch norm's output, else y.
        known: Index after the last node that z needs.
        norm: Index of the batch norm's node; None where there is none (s = 1, t = 0).
        residual: Name of r, which does not depend on y; None where nothing is added.
        residual_known: Index after the node that makes r (0 for an input of the network).
        activation: Name of what an activation makes of z, where that is z's only use; else None.
    """

    target: str
    known: int
    norm: int | None = None
    residual: str | None = None
    residual_known: int = 0
    activation: str | None = None


def follow(network: Network, site: Site) -> Following:
    """Return what a site's output goes into."""
    return _Follower(network._graph).follow(site)


def affine(network: Network, following: Following) -> tuple[Tensor, Tensor] | None:
    """Return scale s and shift t, (out,) each, of the batch norm that follows; None where there is none."""
    if following.norm is None:
        return None
    graph = network._graph
    arguments = graph.nodes[following.norm].arguments

    def read(name: str) -> Tensor | None:
        value = arguments.get(name)
        return network.weights[graph.weights[value.name]] if isinstance(value, Ref) else None

    mean, variance, epsilon = read("running_mean"), read("running_var"), arguments.get("eps", 1e-5)
    assert mean is not None
    assert variance is not None
    assert isinstance(epsilon, float | int)
    scale = torch.rsqrt(variance + epsilon)
    weight, bias = read("weight"), read("bias")
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


class _Follower:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._readers: dict[str, list[int]] = {name: [] for name in graph.outputs}
        for index, node in enumerate(graph.nodes):
            for name in references(node.arguments["self"] if node.op == _TYPE_AS else node.arguments):
                self._readers.setdefault(name, []).append(index)
        self._producers = {name: i for i, node in enumerate(graph.nodes) for name in names(node.outputs)}

    def follow(self, site: Site) -> Following:
        value, known = self._through_identities(site.output, site.node + 1)
        norm = None
        reader = self._only_reader(value)
        if reader is not None and self._is_affine_norm(reader, value):
            norm = reader
            value, known = self._through_identities(self._result(reader), reader + 1)
        reader = self._only_reader(value)
        residual = None if reader is None else self._added(reader, value)
        if reader is None or residual is None:
            return Following(target=value, known=known, norm=norm, activation=self._activation(value))
        value, known = self._through_identities(self._result(reader), reader + 1)
        return Following(
            target=value,
            known=known,
            norm=norm,
            residual=residual,
            residual_known=self._producers.get(residual, -1) + 1,
            activation=self._activation(value),
        )

    def _only_reader(self, name: str) -> int | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._graph.outputs else None

    def _result(self, index: int) -> str:
        outputs = self._graph.nodes[index].outputs
        first = outputs if isinstance(outputs, str) else outputs[0] if outputs else None
        assert isinstance(first, str)
        return first

    def _through_identities(self, name: str, known: int) -> tuple[str, int]:
        while (reader := self._only_reader(name)) is not None and self._graph.nodes[reader].op in _IDENTITIES:
            name, known = self._result(reader), reader + 1
        return name, known

    def _is_affine_norm(self, index: int, value: str) -> bool:
        node = self._graph.nodes[index]
        if node.op not in BATCH_NORMS or node.arguments.get("input") != Ref(value):
            return False
        needed, optional = ("running_mean", "running_var"), ("weight", "bias")
        return all(self._is_weight(node.arguments.get(name)) for name in needed) and all(
            node.arguments.get(name) is None or self._is_weight(node.arguments[name]) for name in optional
        )

    def _is_weight(self, value: object) -> bool:
        return isinstance(value, Ref) and value.name in self._graph.weights

    def _added(self, index: int, value: str) -> str | None:
        """Return the other term, where this node adds it to the value and it is computed by the network."""
        node = self._graph.nodes[index]
        if node.op != "aten.add.Tensor" or node.arguments.get("alpha", 1) != 1:
            return None
        terms = [node.arguments.get("self"), node.arguments.get("other")]
        others = [term for term in terms if term != Ref(value)]
        if len(others) != 1 or not isinstance(others[0], Ref) or others[0].name in self._graph.weights:
            return None
        return others[0].name

    def _activation(self, name: str) -> str | None:
        reader = self._only_reader(name)
        if reader is None:
            return None
        return self._result(reader) if _is_activation(self._graph.nodes[reader]) else None


def _is_activation(node: Node) -> bool:
    return node.op.startswith("aten.") and node.op.split(".")[1] in ACTIVATIONS


def followings(network: Network) -> Mapping[int, Following]:
    """Return what follows each of the network's sites, by the index of the site's node."""
    follower = _Follower(network._graph)
    return {site.node: follower.follow(site) for site in network.sites}


def added_bias(network: Network, site: Site, values: Mapping[str, Tensor]) -> Tensor | None:
    """Return what a layer adds to its products, (out,): a weight, or a value of the run so far; None for nothing."""
    if site.bias is None:
        return None
    graph = network._graph
    return network.weights[graph.weights[site.bias]] if site.bias in graph.weights else values[site.bias]
