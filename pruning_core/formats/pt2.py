"""``.pt2`` archives (torch.export.save of torch 2.13) -> `Network`: read as data, nothing is loaded or executed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.archive import Archive
from pruning_core.formats.document import integer, mapping, member, parse_json, sequence, text, union
from pruning_core.formats.pt2_graph import NodeParser, Scope, argument, value_name
from pruning_core.formats.pt2_types import dtype
from pruning_core.formats.pt2_weights import Payload, read_table, read_tensor
from pruning_core.network.graph import Graph, Ref
from pruning_core.network.inplace import functionalise
from pruning_core.network.network import Input, Network

SCHEMA_MAJOR = 8
MAX_GRAPH_BYTES = 64 * 2**20
_EXPORT_ADVICE = "Write the file with torch.export.save(torch.export.export(model.eval(), ...), path) of torch 2.13."
_EVAL_ADVICE = "Call model.eval() before torch.export.export, and export again."
#: Members that may be there, below the archive's one folder. {} is the model's name.
_KNOWN = (
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|\.format_version"
    r"|\.storage_alignment|models/[^/]+\.json|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/weights/[^/]+_weights_config\.json|data/constants/[^/]+_constants_config\.json"
    r"|data/sample_inputs/[^/]+\.pt|extra/.+"
)
#: What else torch.export.load would look at, and why we do not.
_REFUSED = (
    (r"data/(weights|constants)/[^/]+\.pt", "weights in the old, pickled form"),
    (r"data/constants/(custom|opaque)_obj_.*", "custom (pickled) objects"),
    (r"data/aotinductor/.*", "compiled code"),
    (r".*\.(so|dll|dylib|o|cpp|cubin|pyd)", "compiled code"),
)


@dataclass(frozen=True)
class Layout:
    """What is where in a checked archive.

    Attributes:
        archive: The archive.
        model: Full name of the JSON graph.
        weights: Payloads of parameters and persistent buffers by name.
        constants: Payloads of the rest by name.
    """

    archive: Archive
    model: str
    weights: dict[str, Payload]
    constants: dict[str, Payload]

    @property
    def payloads(self) -> dict[str, Payload]:
        """All of them; parameters come first where a name occurs in both tables."""
        return {**self.constants, **self.weights}


def read_layout(path: Path) -> Layout:
    """Check an archive and its tables of weights.

    Raises:
        ModelError: It is broken or hostile.
        UnsupportedModel: It holds pickles, compiled code or anything unknown.
    """
    archive = Archive(path)
    if "serialized_exported_program.json" in archive.members:
        raise UnsupportedModel(
            "The archive is in the form that torch.export.save wrote before torch 2.8.",
            expected="a folder with models/, data/weights/ and data/constants/",
            received=sorted(archive.members)[:9],
            advice="Load it with torch.export.load where it was made, and save it again with torch 2.13.",
        )
    roots = {name.split("/", 1)[0] for name in archive.members}
    if len(roots) != 1 or not all("/" in name for name in archive.members):
        raise ModelError(
            "The archive's members are not in one folder.", expected="one folder", received=sorted(roots)[:9]
        )
    root = roots.pop() + "/"
    models = []
    for name in archive.members:
        inner = name.removeprefix(root)
        for pattern, what in _REFUSED:
            if re.fullmatch(pattern, inner) and not inner.startswith(("data/sample_inputs/", "extra/")):
                raise UnsupportedModel(f"The archive holds {what}.", received=name, advice=_EXPORT_ADVICE)
        if not re.fullmatch(_KNOWN, inner):
            raise UnsupportedModel("The archive has a member that is not known.", received=name, advice=_EXPORT_ADVICE)
        if inner.startswith("models/"):
            models.append(inner.removeprefix("models/").removesuffix(".json"))
    for name, value in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        found = bytes(archive.view(root + name, 64))
        if found.strip() != value:
            raise UnsupportedModel(
                f"The archive's {name} is not supported.", expected=value.decode(), received=repr(found)
            )
    if len(models) != 1:
        raise UnsupportedModel("The archive should hold one model.", expected=1, received=len(models))
    model = models[0]
    return Layout(
        archive,
        f"{root}models/{model}.json",
        read_table(archive, f"{root}data/weights/{model}_weights_config.json", f"{root}data/weights/", "weight_"),
        read_table(archive, f"{root}data/constants/{model}_constants_config.json", f"{root}data/constants/", "tensor_"),
    )


def read_pt2(path: Path) -> Network:
    """Return the network of a ``.pt2`` archive; its weights are read lazily through a memory map.

    Raises:
        ModelError: The archive is broken or hostile.
        UnsupportedModel: It uses something that is not supported; says what and what to do.
    """
    layout = read_layout(path)
    document = parse_json(layout.archive.view(layout.model, MAX_GRAPH_BYTES), "The graph")
    major = integer(member(member(document, "schema_version", "The graph"), "major", "The graph"), "schema version")
    if major != SCHEMA_MAJOR:
        raise UnsupportedModel(
            "The graph is written in another version of the export schema.",
            expected=f"{SCHEMA_MAJOR}.x",
            received=f"{major}.x",
            advice=_EXPORT_ADVICE,
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
        nodes, outputs = functionalise(parser.nodes, outputs, {*weights, *inputs})
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
