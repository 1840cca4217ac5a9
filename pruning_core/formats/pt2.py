"""``.pt2`` archives (torch.export.save of torch 2.4 or later) -> `Network`: as data, nothing is loaded or executed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.document import integer, mapping, member, parse_json, sequence, text, union
from pruning_core.formats.pt2_graph import NodeParser, Scope, argument, value_name
from pruning_core.formats.pt2_layout import EXPORT_ADVICE, read_layout
from pruning_core.formats.pt2_types import dtype
from pruning_core.formats.pt2_weights import Payload, read_tensor
from pruning_core.network.graph import Graph, Ref
from pruning_core.network.inplace import functionalise
from pruning_core.network.network import Input, Network
from pruning_core.network.ops import without_checks

#: Versions of torch's export schema: 5 is torch 2.4's, 7 is 2.5's, 8 of every torch since. Minor ones only add.
SCHEMA_MAJORS = (5, 7, 8)
MAX_GRAPH_BYTES = 64 * 2**20
_EVAL_ADVICE = "Call model.eval() before torch.export.export, and export again."


def read_pt2(path: Path) -> Network:
    """Return the network of a ``.pt2`` archive; its weights are read lazily through a memory map.

    Raises:
        ModelError: The archive is broken or hostile.
        UnsupportedModel: It uses something that is not supported; says what and what to do.
    """
    layout = read_layout(path)
    document = parse_json(layout.archive.view(layout.model, MAX_GRAPH_BYTES), "The graph")
    major = integer(member(member(document, "schema_version", "The graph"), "major", "The graph"), "schema version")
    if major not in SCHEMA_MAJORS:
        raise UnsupportedModel(
            "The graph is written in a version of the export schema that is not read.",
            expected=" or ".join(f"{known}.x" for known in SCHEMA_MAJORS) + " (torch 2.4 to 2.13)",
            received=f"{major}.x",
            advice=EXPORT_ADVICE,
        )
    module = member(document, "graph_module", "The graph")
    signature = Signature(module, layout.payloads.keys())
    canonical = _canonical_names(layout.payloads, signature.weights.values())
    for record in dict.fromkeys(payload.record for payload in layout.payloads.values()):
        layout.archive.view(record)
    return Network(
        graph=signature.graph({node: canonical[name] for node, name in signature.weights.items()}),
        weights={
            name: read_tensor(layout.archive, layout.payloads[name]) for name in dict.fromkeys(canonical.values())
        },
        parameters={name for name in canonical.values() if layout.payloads[name].is_parameter},
        inputs=signature.inputs,
        fixed=_entangled([layout.payloads[name] for name in dict.fromkeys(canonical.values())]),
    )


def _canonical_names(payloads: dict[str, Payload], signature: Iterable[str]) -> dict[str, str]:
    """Return name -> the first name, in the order of the signature, that sees the same part of the same record."""
    first: dict[Any, str] = {}
    order = [*dict.fromkeys(signature), *payloads]
    return {name: first.setdefault(payloads[name].view, name) for name in order}


def _entangled(payloads: Iterable[Payload]) -> dict[str, str]:
    """Return name -> reason for weights that share memory with another weight without being the same view."""
    reasons: dict[str, str] = {}
    widest: Payload | None = None
    for payload in sorted(payloads, key=lambda p: (p.record, p.span)):
        if widest and widest.record == payload.record and payload.span[0] < widest.span[1]:
            reasons[payload.name] = f"shares memory with {widest.name!r}, which sees it differently"
            reasons.setdefault(widest.name, f"shares memory with {payload.name!r}, which sees it differently")
        if widest is None or widest.record != payload.record or payload.span[1] > widest.span[1]:
            widest = payload
    return reasons


class Signature:
    """The graph's inputs and outputs, matched with their specifications.

    Args:
        module: The JSON of the graph module.
        names: Parameters, buffers and constants that there are values for.

    Attributes:
        weights: Graph input -> name of the weight that it is.
        inputs: What the user gives.
    """

    def __init__(self, module: Any, names: Collection[str]) -> None:
        self._graph = member(module, "graph", "The graph")
        self._tensors = mapping(member(self._graph, "tensor_values", "The graph"), "tensor_values")
        self._names = names
        self._scope = Scope()
        self.weights: dict[str, str] = {}
        self.inputs: list[Input] = []
        specs = member(module, "signature", "The graph")
        self._read_inputs(sequence(member(specs, "input_specs", "The signature"), "input_specs"))
        self._check_outputs(sequence(member(specs, "output_specs", "The signature"), "output_specs"))

    def graph(self, weights: dict[str, str]) -> Graph:
        """Return the whole graph, its weights under the given canonical names."""
        parser = NodeParser()
        parser.parse(member(self._graph, "nodes", "The graph"), self._scope)
        outputs = []
        for item in sequence(member(self._graph, "outputs", "The graph"), "outputs"):
            value = argument(item, self._scope, "An output") if union(item, "An output")[0] == "as_tensor" else None
            if isinstance(value, Ref):
                outputs.append(value.name)
        if not outputs:
            raise UnsupportedModel("The model returns no tensor.", expected="at least one tensor as output")
        inputs = [i.name for i in self.inputs]
        nodes, outputs = functionalise(without_checks(parser.nodes, outputs), outputs, {*weights, *inputs})
        return Graph(weights=weights, inputs=inputs, nodes=nodes, outputs=outputs)

    def _read_inputs(self, specs: list[Any]) -> None:
        for item in specs:
            kind, spec = union(item, "An input specification")
            if kind == "user_input":
                self._read_user_input(member(spec, "arg", "An input specification"))
            elif kind in ("parameter", "buffer", "tensor_constant"):
                node = text(member(member(spec, "arg", kind), "name", kind), kind)
                name = text(member(spec, f"{kind}_name", kind), kind)
                if name not in self._names:
                    raise ModelError(f"The archive has no values for the {kind} {name!r}.", expected=name)
                self._scope.define(node, Ref(node))
                self.weights[node] = name
            elif kind != "constant_input":
                raise UnsupportedModel(f"The model takes an input of kind {kind!r}.", received=kind)

    def _read_user_input(self, item: Any) -> None:
        name = value_name(item, "A user input")
        if name is None:
            return
        if union(item, "A user input")[0] != "as_tensor":
            raise UnsupportedModel(
                f"The input {name!r} is a number, not a tensor.",
                advice="Export with numbers fixed, or pass them as tensors.",
            )
        meta = member(self._tensors, name, "tensor_values")
        shape: list[int | None] = []
        for size in sequence(member(meta, "sizes", name), f"{name}: sizes", 64):
            kind, value = union(size, name)
            shape.append(integer(value, name) if kind == "as_int" else None)  # expressions are never evaluated
        self._scope.define(name, Ref(name))
        self.inputs.append(Input(name=name, dtype=dtype(member(meta, "dtype", name), name), shape=tuple(shape)))

    def _check_outputs(self, specs: list[Any]) -> None:
        for item in specs:
            kind, spec = union(item, "An output specification")
            if kind in ("buffer_mutation", "parameter_mutation", "user_input_mutation"):
                where = str(next((v for k, v in mapping(spec, kind).items() if k.endswith("_name")), "?"))
                raise UnsupportedModel(
                    f"The model changes its own state when it runs ({kind} of {where!r}).",
                    expected="a model that only computes outputs",
                    received=kind,
                    advice=_EVAL_ADVICE,
                )
            if kind != "user_output":
                raise UnsupportedModel(
                    f"The model has an output of kind {kind!r}.", expected="user_output", received=kind
                )
