"""Network: the exported graph as data, its prunable layers in execution order, and `Network.run`."""

from pruning_core.network.graph import Graph, Node, OwnDevice, Ref
from pruning_core.network.interpreter import NodeFailed
from pruning_core.network.layers import Layer
from pruning_core.network.network import Input, Network
from pruning_core.network.segments import Site, State, Window
from pruning_core.network.tangents import Linearised

__all__ = [
    "Graph",
    "Input",
    "Layer",
    "Linearised",
    "Network",
    "Node",
    "NodeFailed",
    "OwnDevice",
    "Ref",
    "Site",
    "State",
    "Window",
]
