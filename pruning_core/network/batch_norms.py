"""The batch norms of a network in eval mode, and which of their statistics can be replaced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pruning_core.network.graph import Node, Ref, references
from pruning_core.network.network import Network

BATCH_NORMS = frozenset({"aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default"})


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """A batch norm that reads its own running statistics.

    Attributes:
        node: Index of its node.
        input: Name of the value it normalises, channels in dimension 1.
        mean: Name of the running mean among the network's weights, (channels,).
        variance: The same of the running variance.
    """

    node: int
    input: str
    mean: str
    variance: str


def batch_norms(network: Network) -> tuple[BatchNorm, ...]:
    """Return the batch norms in execution order; without those whose statistics something else reads, too."""
    graph = network._graph
    uses = Counter(
        canonical
        for node in graph.nodes
        for name in references(node.arguments)
        if (canonical := graph.weights.get(name)) is not None
    )
    found = []
    for index, node in enumerate(graph.nodes):
        value, mean, variance = (_name(node, key) for key in ("input", "running_mean", "running_var"))
        if node.op not in BATCH_NORMS or value is None or mean not in graph.weights or variance not in graph.weights:
            continue
        assert mean is not None
        assert variance is not None
        names = graph.weights[mean], graph.weights[variance]
        if all(uses[name] == 1 for name in names):
            found.append(BatchNorm(node=index, input=value, mean=names[0], variance=names[1]))
    return tuple(found)


def _name(node: Node, key: str) -> str | None:
    value = node.arguments.get(key)
    return value.name if isinstance(value, Ref) else None
